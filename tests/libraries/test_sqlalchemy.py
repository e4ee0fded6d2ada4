# SPDX-License-Identifier: Apache-2.0
"""SQLAlchemy as it is against a real PostgreSQL: both of its engines in one program, on one OS thread.

psycopg waits in Python here: its C part has a wait of its own, which blocks the OS thread.
"""

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("asyncpg")

QUERIES = 50


def test_the_asyncio_engine_may_block_in_between(run_program, postgres_server):
    """A blocking call between two queries suspends its task alone: the queue is filled by another one."""
    facts = run_program(
        """
import asyncio, queue
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

port, count = sys.argv[1], int(sys.argv[2])
ready = queue.Queue()

async def query(engine, number):
    async with engine.connect() as connection:
        ready.put(number) if number == 0 else ready.put(number + ready.get() * 0)
        return (await connection.execute(sqlalchemy.text("SELECT CAST(:number AS int)"), {"number": number})).scalar()

async def main():
    url = f"postgresql+asyncpg://postgres@127.0.0.1:{port}/postgres"
    engine = create_async_engine(url, pool_size=count, max_overflow=0)
    answers = await asyncio.gather(*(query(engine, number) for number in reversed(range(count))))
    await engine.dispose()
    return answers

report(right=asyncio.run(main()) == list(reversed(range(count))))
""",
        postgres_server,
        QUERIES,
    )

    assert {"right": True} == facts


def test_plain_and_asyncio_engine_beside_each_other(run_program, postgres_server):
    """No query ends before the last one of both kinds has begun: each waits until the server counts them all."""
    pytest.importorskip("psycopg", reason="psycopg finds no libpq", exc_type=ImportError)

    facts = run_program(
        """
import asyncio
os.environ["PSYCOPG_IMPL"] = "python"
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

port, count = sys.argv[1], int(sys.argv[2])
limits = dict(pool_size=count, max_overflow=0)
engine = sqlalchemy.create_engine(f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres", **limits)
begin = sqlalchemy.text("SELECT pg_advisory_lock_shared(1)")
is_full = sqlalchemy.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 1")
echo = sqlalchemy.text("SELECT CAST(:number AS int) + 0 * length(CAST(pg_sleep(0.001) AS text))")

def query(number):
    with engine.connect() as connection:
        connection.execute(begin)
        while connection.execute(is_full).scalar() < 2 * count:
            connection.execute(echo, {"number": 0})
        return connection.execute(echo, {"number": number}).scalar()

async def query_async(engine, number):
    async with engine.connect() as connection:
        await connection.execute(begin)
        while (await connection.execute(is_full)).scalar() < 2 * count:
            await connection.execute(echo, {"number": 0})
        return (await connection.execute(echo, {"number": number})).scalar()

async def main():
    engine = create_async_engine(f"postgresql+asyncpg://postgres@127.0.0.1:{port}/postgres", **limits)
    answers = await asyncio.gather(*(query_async(engine, number) for number in range(count)))
    await engine.dispose()
    return answers

async_answers = []
runner = threading.Thread(target=lambda: async_answers.extend(asyncio.run(main())))
runner.start()
answers = at_once(count, query)
runner.join()
engine.dispose()
report(plain=answers == list(range(count)), asyncio=async_answers == list(range(count)))
""",
        postgres_server,
        QUERIES,
    )

    assert {"plain": True, "asyncio": True} == facts
