# SPDX-License-Identifier: Apache-2.0
"""asyncpg and redis.asyncio as they are on our loop, against real servers, and plain clients inside the same tasks."""

import pytest

TASKS = 100
START = """
import asyncio
import gossamer
count = int(sys.argv[2])

def run(main):
    report(**asyncio.run(main(), loop_factory=gossamer.new_event_loop))

async def wait_until(is_so):
    while not await is_so():
        await asyncio.sleep(0.01)
"""
ASYNCPG = (
    START
    + """
os.environ["PSYCOPG_IMPL"] = "python"
import asyncpg
where = dict(host="127.0.0.1", port=int(sys.argv[1]), user="postgres", database="postgres")
at_gate = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
"""
)
REDIS = (
    START
    + """
import redis, redis.asyncio
where = dict(host="127.0.0.1", port=int(sys.argv[1]), max_connections=2 * count)
plain = redis.Redis(connection_pool=redis.ConnectionPool(**where))
plain.flushall()
"""
)


@pytest.fixture
def asyncpg_program(run_program, postgres_server):
    """A function that runs a program that uses asyncpg."""
    pytest.importorskip("asyncpg")
    return lambda code: run_program(ASYNCPG + code, postgres_server, TASKS)


@pytest.fixture
def redis_program(run_program, redis_server):
    """A function that runs a program that uses redis."""
    pytest.importorskip("redis")
    return lambda code: run_program(REDIS + code, redis_server, TASKS)


def test_asyncpg_pool_serves_100_tasks(asyncpg_program):
    """Twenty hold a connection at once: each of them waits for the others of its round."""
    facts = asyncpg_program(
        """
async def main():
    round_of = asyncio.Barrier(20)
    async with asyncpg.create_pool(**where, min_size=20, max_size=20) as pool:
        async def query(number):
            async with pool.acquire() as connection:
                await round_of.wait()
                rows = await connection.fetch("SELECT n, repeat('x', 100) FROM generate_series($1::int, $2) n",
                                              number, number + 999)
                return [row["n"] for row in rows]
        answers = await asyncio.gather(*map(query, range(count)))
    return {"right": answers == [list(range(number, number + 1000)) for number in range(count)]}
run(main)
"""
    )

    assert {"right": True} == facts


def test_asyncpg_transactions_that_overlap(asyncpg_program):
    """All have written before the first of them ends; what the odd ones undo is gone."""
    facts = asyncpg_program(
        """
class Undo(Exception):
    pass

async def main():
    all_have = asyncio.Barrier(count)
    async with asyncpg.create_pool(**where, min_size=count, max_size=count) as pool:
        await pool.execute("DROP TABLE IF EXISTS numbers")
        await pool.execute("CREATE TABLE numbers (n int)")
        async def write(number):
            try:
                async with pool.acquire() as connection, connection.transaction():
                    await connection.execute("INSERT INTO numbers VALUES ($1)", number)
                    await all_have.wait()
                    if number % 2:
                        raise Undo
            except Undo:
                pass
        await asyncio.gather(*map(write, range(count)))
        left = await pool.fetch("SELECT n FROM numbers ORDER BY n")
    return {"right": [row["n"] for row in left] == list(range(0, count, 2))}
run(main)
"""
    )

    assert {"right": True} == facts


def test_asyncpg_queries_cancelled_on_their_way(asyncpg_program):
    """All wait in the server when they are cancelled: it ends them, and their connections serve on."""
    facts = asyncpg_program(
        """
async def main():
    gate = await asyncpg.connect(**where)
    await gate.execute("SELECT pg_advisory_lock(1)")
    async with asyncpg.create_pool(**where, min_size=count, max_size=count) as pool:
        async def backends():
            all_have = asyncio.Barrier(count)
            async def backend():
                async with pool.acquire() as connection:
                    await all_have.wait()
                    return connection.get_server_pid()
            return sorted(await asyncio.gather(*(backend() for _ in range(count))))
        before = await backends()
        tasks = [asyncio.create_task(pool.execute("SELECT pg_advisory_lock(1)")) for _ in range(count)]
        async def all_wait():
            return await gate.fetchval(at_gate) == count
        await wait_until(all_wait)
        for task in tasks:
            task.cancel()
        ends = {type(end).__name__ for end in await asyncio.gather(*tasks, return_exceptions=True)}
        left = await gate.fetchval(at_gate)
        after = await backends()
    await gate.close()
    return {"ends": sorted(ends), "left": left, "same connections": before == after}
run(main)
"""
    )

    assert {"ends": ["CancelledError"], "left": 0, "same connections": True} == facts


def test_psycopg_in_the_same_tasks_as_asyncpg(asyncpg_program):
    """100 tasks block in psycopg, until one that uses asyncpg opens their gate."""
    pytest.importorskip("psycopg", reason="psycopg finds no libpq", exc_type=ImportError)

    facts = asyncpg_program(
        """
import psycopg

async def main():
    gate = await asyncpg.connect(**where)
    await gate.execute("SELECT pg_advisory_lock(1)")
    async with asyncpg.create_pool(**where, min_size=10, max_size=10) as pool:
        async def both(number):
            first = await pool.fetchval("SELECT $1::int + 1", number)
            with psycopg.connect(host="127.0.0.1", port=where["port"], user="postgres") as connection:
                connection.execute("SELECT pg_advisory_xact_lock_shared(1)")
                second = connection.execute("SELECT %s::int * 2", [first]).fetchone()[0]
            return await pool.fetchval("SELECT $1::int + 1", second)
        tasks = [asyncio.create_task(both(number)) for number in range(count)]
        async def all_wait():
            return await gate.fetchval(at_gate) == count
        await wait_until(all_wait)
        await gate.close()
        answers = await asyncio.gather(*tasks)
    return {"right": answers == [2 * (number + 1) + 1 for number in range(count)]}
run(main)
"""
    )

    assert {"right": True} == facts


def test_redis_asyncio_pipelines_do_not_mix(redis_program):
    facts = redis_program(
        """
async def main():
    together = asyncio.Barrier(count)
    async with redis.asyncio.Redis(**where) as client:
        async def call(index):
            async with client.pipeline(transaction=True) as pipe:
                await together.wait()
                for turn in range(10):
                    pipe.incr("all").set(f"key:{index}", turn).get(f"key:{index}")
                return await pipe.execute()
        answers = await asyncio.gather(*map(call, range(count)))
    return {
        # A transaction is one piece: its ten numbers follow each other.
        "in one piece": all(answer[0::3] == list(range(answer[0], answer[0] + 10)) for answer in answers),
        "all": sorted(number for answer in answers for number in answer[0::3]) == list(range(1, 10 * count + 1)),
        "own": all(answer[2::3] == [str(turn).encode() for turn in range(10)] for answer in answers),
    }
run(main)
"""
    )

    assert {"in one piece": True, "all": True, "own": True} == facts


def test_redis_asyncio_transaction_that_is_watched(redis_program):
    """100 tasks add one to a number that each has read itself: none is lost."""
    facts = redis_program(
        """
async def main():
    async with redis.asyncio.Redis(**where) as client:
        await client.set("number", 0)
        async def add_one(_):
            async with client.pipeline() as pipe:
                while True:
                    try:
                        await pipe.watch("number")
                        number = int(await pipe.get("number"))
                        pipe.multi()
                        pipe.set("number", number + 1)
                        return await pipe.execute()
                    except redis.WatchError:
                        continue
        await asyncio.gather(*map(add_one, range(count)))
        return {"number": int(await client.get("number"))}
run(main)
"""
    )

    assert {"number": TASKS} == facts


def test_a_message_from_plain_redis_reaches_100_tasks(redis_program):
    """A plain client publishes, inside a task, once all subscribers are there."""
    facts = redis_program(
        """
async def main():
    async with redis.asyncio.Redis(**where) as client:
        async def hear(_):
            async with client.pubsub(ignore_subscribe_messages=True) as subscription:
                await subscription.subscribe("news")
                async for message in subscription.listen():
                    return message["data"].decode()
        tasks = [asyncio.create_task(hear(index)) for index in range(count)]
        async def all_listen():
            return plain.pubsub_numsub("news") == [(b"news", count)]
        await wait_until(all_listen)
        published = plain.publish("news", "hello")
        answers = await asyncio.gather(*tasks)
    return {"published": published, "answers": sorted(set(answers))}
run(main)
"""
    )

    assert {"published": TASKS, "answers": ["hello"]} == facts


def test_redis_asyncio_calls_cancelled_on_their_way(redis_program):
    """A pool whose 100 calls were cancelled while they waited serves on, and nobody hears another's answer."""
    facts = redis_program(
        """
async def main():
    async with redis.asyncio.Redis(**where) as client:
        tasks = [asyncio.create_task(client.blpop("nothing", timeout=0)) for _ in range(count)]
        async def all_wait():
            return plain.info("clients")["blocked_clients"] == count
        await wait_until(all_wait)
        for task in tasks:
            task.cancel()
        ends = {type(end).__name__ for end in await asyncio.gather(*tasks, return_exceptions=True)}
        async def none_waits():  # for all that the server knows
            return plain.info("clients")["blocked_clients"] == 0
        await wait_until(none_waits)
        plain.rpush("nothing", *range(count))
        answers = await asyncio.gather(*(client.echo(str(index)) for index in range(count)))
        left = plain.llen("nothing")
    return {"ends": sorted(ends), "right": answers == [b"%d" % index for index in range(count)], "left": left}
run(main)
"""
    )

    assert {"ends": ["CancelledError"], "right": True, "left": TASKS} == facts


def test_plain_redis_blocks_in_the_same_tasks(redis_program):
    """100 tasks block in a plain client's BLPOP, until others push by redis.asyncio."""
    facts = redis_program(
        """
async def main():
    async with redis.asyncio.Redis(**where) as client:
        async def pop(index):
            return plain.blpop(f"list:{index}", timeout=0)[1]
        async def push(index):
            await client.rpush(f"list:{index}", index)
        tasks = [asyncio.create_task(pop(index)) for index in range(count)]
        async def all_wait():
            return (await client.info("clients"))["blocked_clients"] == count
        await wait_until(all_wait)
        await asyncio.gather(*map(push, range(count)))
        answers = await asyncio.gather(*tasks)
    return {"right": answers == [b"%d" % index for index in range(count)]}
run(main)
"""
    )

    assert {"right": True} == facts
