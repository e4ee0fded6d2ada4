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
    """No query ends before the last one of both kinds has begun: all wait for a lock that is released when they do."""
    pytest.importorskip("psycopg", reason="psycopg finds no libpq", exc_type=ImportError)

    facts = run_program(
        """
import asyncio, time
os.environ["PSYCOPG_IMPL"] = "python"
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

port, count = sys.argv[1], int(sys.argv[2])
limits = dict(pool_size=count + 1, max_overflow=0)
engine = sqlalchemy.create_engine(f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres", **limits)
wait = sqlalchemy.text("SELECT pg_advisory_lock_shared(1)")
echo = sqlalchemy.text("SELECT CAST(:number AS int)")

def query(number):
    with engine.connect() as connection:
        connection.execute(wait)
        return connection.execute(echo, {"number": number}).scalar()

async def query_async(engine, number):
    async with engine.connect() as connection:
        await connection.execute(wait)
        return (await connection.execute(echo, {"number": number})).scalar()

async def main():
    engine = create_async_engine(f"postgresql+asyncpg://postgres@127.0.0.1:{port}/postgres", **limits)
    answers = await asyncio.gather(*(query_async(engine, number) for number in range(count)))
    await engine.dispose()
    return answers

def open_gate(gate):
    waiting = sqlalchemy.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    while gate.execute(waiting).scalar() < 2 * count:
        time.sleep(0.01)
    gate.execute(sqlalchemy.text("SELECT pg_advisory_unlock(1)"))

async_answers = []
with engine.connect() as gate:
    gate.execute(sqlalchemy.text("SELECT pg_advisory_lock(1)"))
    others = [
        threading.Thread(target=open_gate, args=(gate,)),
        threading.Thread(target=lambda: async_answers.extend(asyncio.run(main()))),
    ]
    for other in others:
        other.start()
    answers = at_once(count, query)
    for other in others:
        other.join()
engine.dispose()
report(plain=answers == list(range(count)), asyncio=async_answers == list(range(count)))
""",
        postgres_server,
        QUERIES,
    )

    assert {"plain": True, "asyncio": True} == facts
