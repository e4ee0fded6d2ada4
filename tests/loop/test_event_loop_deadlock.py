# SPDX-License-Identifier: Apache-2.0
"""A deadlock of asyncio tasks on our loop is an error that tells where each one waits."""

import asyncio
import queue
import signal
import time

import gossamer as gs
import pytest


async def wait_for_itself():
    lock = asyncio.Lock()
    await lock.acquire()
    await lock.acquire()


async def wait_for_nobody():
    await asyncio.get_running_loop().create_future()


async def block_for_ever():
    queue.Queue().get()


async def park_first():
    time.sleep(0)  # from here on the loop waits for the event of its parked steps too
    await wait_for_nobody()


async def spawn_a_task():
    await asyncio.create_task(wait_for_itself())


@pytest.mark.parametrize(
    ("main", "line"),
    [
        (wait_for_itself, "in wait_for_itself: await lock.acquire()"),
        (wait_for_nobody, "in wait_for_nobody: await asyncio.get_running_loop().create_future()"),
        (block_for_ever, "in block_for_ever: queue.Queue().get()"),
        (park_first, "in wait_for_nobody: await asyncio.get_running_loop().create_future()"),
        (spawn_a_task, "in wait_for_itself: await lock.acquire()"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_deadlock_of_tasks_is_an_error_with_their_lines(main, line):
    with pytest.raises(gs.DeadlockError) as caught:
        gs.run(main)

    assert line in str(caught.value)


def test_handler_of_the_programs_own_may_end_the_wait_of_a_task():
    async def main():
        done = asyncio.get_running_loop().create_future()
        signal.signal(signal.SIGALRM, lambda *_: done.get_loop().call_soon_threadsafe(done.set_result, "woken"))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        return await done

    try:
        assert "woken" == gs.run(main)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_parked_step_that_is_woken_from_another_task_is_no_deadlock():
    async def main():
        channel = queue.Queue()

        async def put():
            await asyncio.sleep(0)
            channel.put("item")

        task = asyncio.create_task(put())
        item = channel.get()
        await task
        return item

    assert "item" == gs.run(main)


def test_error_counts_the_threads_and_the_tasks_that_it_leaves_out():
    async def wait_in_tasks():
        await asyncio.gather(*(wait_for_nobody() for _ in range(51)))

    def main():
        with gs.scope() as scope:
            for _ in range(52):
                scope.spawn(queue.Queue().get)
            asyncio.run(wait_in_tasks(), loop_factory=gs.new_event_loop)

    with pytest.raises(ExceptionGroup) as caught:
        gs.run(main)

    told = str(caught.value.exceptions[0]).splitlines()
    assert [line for line in told if line.endswith("more")] == ["    ... and 2 more", "  ... and 3 more"]
