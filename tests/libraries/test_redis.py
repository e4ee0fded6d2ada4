# SPDX-License-Identifier: Apache-2.0
"""redis-py as it is against a real Redis, 500 calls at a time on one OS thread."""

import pytest

pytest.importorskip("redis")

CALLS = 500
CONNECT = """
import redis, time
count = int(sys.argv[2])
pool = redis.ConnectionPool(host="127.0.0.1", port=int(sys.argv[1]), max_connections=count + 10)
client = redis.Redis(connection_pool=pool)

def wait_until(is_so):
    while not is_so():
        time.sleep(0.01)
"""


def test_blpop_by_500_waits_for_500_pushes(run_program, redis_server):
    """Nothing is pushed before Redis itself says that 500 clients are blocked."""
    facts = run_program(
        CONNECT
        + """
client.flushall()
def push():
    wait_until(lambda: client.info("clients")["blocked_clients"] == count)
    for index in range(count):
        client.rpush(f"list:{index}", index)
pusher = threading.Thread(target=push)
pusher.start()
answers = at_once(count, lambda index: client.blpop(f"list:{index}", timeout=60)[1])
pusher.join()
report(right=answers == [str(index).encode() for index in range(count)])
client.close()
""",
        redis_server,
        CALLS,
    )

    assert {"right": True} == facts


def test_blpop_that_nobody_answers_times_out(run_program, redis_server):
    facts = run_program(
        CONNECT
        + """
answers = at_once(count, lambda index: client.blpop(f"none:{index}", timeout=0.05))
report(answers=list(set(answers)))
client.close()
""",
        redis_server,
        CALLS,
    )

    assert {"answers": [None]} == facts


def test_pipelines_of_500_do_not_mix(run_program, redis_server):
    facts = run_program(
        CONNECT
        + """
client.flushall()
together = threading.Barrier(count)
def call(index):
    with client.pipeline() as pipe:
        together.wait()
        for turn in range(10):
            pipe.incr("all").set(f"key:{index}", turn).get(f"key:{index}")
        return pipe.execute()
answers = at_once(count, call)
counted = sorted(value for answer in answers for value in answer[0::3])
report(
    all=int(client.get("all")),
    each_once=counted == list(range(1, 10 * count + 1)),
    own=all(answer[2::3] == [str(turn).encode() for turn in range(10)] for answer in answers),
)
client.close()
""",
        redis_server,
        CALLS,
    )

    assert {"all": 10 * CALLS, "each_once": True, "own": True} == facts


def test_one_message_reaches_500_subscribers(run_program, redis_server):
    facts = run_program(
        CONNECT
        + """
published = []
def publish():
    wait_until(lambda: client.pubsub_numsub("news") == [(b"news", count)])
    published.append(client.publish("news", "hello"))
publisher = threading.Thread(target=publish)
publisher.start()
def call(index):
    with client.pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe("news")
        return next(subscription.listen())["data"].decode()
answers = at_once(count, call)
publisher.join()
report(published=published, answers=sorted(set(answers)), count=len(answers))
client.close()
""",
        redis_server,
        CALLS,
    )

    assert {"published": [CALLS], "answers": ["hello"], "count": CALLS} == facts
