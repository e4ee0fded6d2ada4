# SPDX-License-Identifier: Apache-2.0
"""What a blocking call in a task does is the loop's choice: it parks the task, blocks the loop, or is an error."""

import asyncio
import queue
import threading
import time

import gossamer as gs
import pytest
from gossamer import _core
from tasks import blocking_get, settle


async def get_and_put(log):
    """Two tasks, the first of which waits for the second; that works only where the first parks alone."""
    gate = queue.SimpleQueue()

    async def getter():
        log.append(gate.get())

    task = asyncio.create_task(getter())
    await settle()
    gate.put("parked")
    await task


def test_run_parks_tasks_unless_told_otherwise():
    log = []

    gs.run(get_and_put, log)

    assert ["parked"] == log


def test_block_blocks_the_loop_as_on_plain_asyncio():
    log = []
    gate = queue.SimpleQueue()

    async def main():
        async def getter():
            threading.Thread(target=gate.put, args=[None]).start()
            gate.get()
            log.append("getter")

        async def other():
            log.append("other")

        await asyncio.gather(getter(), other())

    gs.run(main, blocking="block")

    assert ["getter", "other"] == log


def test_error_names_the_call_and_its_line():
    async def main():
        with pytest.raises(
            RuntimeError, match=r"SimpleQueue.get would block the event loop at .*tasks\.py:\d"
        ) as caught:
            blocking_get(queue.SimpleQueue())
        assert "in blocking_get: return gate.get()" in str(caught.value)
        with pytest.raises(RuntimeError, match=r"time.sleep would block .*test_steps_modes"):
            time.sleep(10)

    gs.run(main, blocking="error")


def test_error_leaves_calls_alone_that_need_not_wait():
    async def main():
        gate = queue.SimpleQueue()
        gate.put("there")
        with threading.Lock(), threading.RLock():
            return gate.get()

    assert "there" == gs.run(main, blocking="error")


def test_error_is_for_tasks_only():
    """A callback, and plain code of the same thread, may wait."""

    def main():
        gate = queue.SimpleQueue()
        with gs.scope() as scope:
            scope.spawn(gate.put, "from plain code")
            log = [gate.get()]

            async def in_callback():
                asyncio.get_running_loop().call_soon(lambda: log.append(gate.get()))
                scope.spawn(gate.put, "in a callback")
                await settle()

            asyncio.run(in_callback())
        return log

    assert ["from plain code", "in a callback"] == gs.run(main, blocking="error")


def test_run_refuses_what_is_no_mode():
    with pytest.raises(ValueError, match="'park', 'block', 'error'"):
        gs.run(print, blocking="no")


def test_blocking_in_tasks_refuses_what_is_no_mode():
    with pytest.raises(ValueError, match="'park', 'block', 'error'"), gs.blocking_in_tasks("no"):
        pass


def test_blocking_in_tasks_around_a_plain_loop():
    log = []

    with gs.blocking_in_tasks("park"):
        asyncio.run(get_and_put(log))

    assert ["parked"] == log
    assert not _core.is_virtual(), "the thread is an ordinary one again"


@pytest.mark.usefixtures("no_bridge")
def test_blocking_in_tasks_inside_a_running_loop():
    log = []

    async def main():
        with gs.blocking_in_tasks("park"):
            await get_and_put(log)
        await asyncio.sleep(0)
        assert not _core.is_virtual()

    asyncio.run(main())

    assert ["parked"] == log


@pytest.mark.usefixtures("no_bridge")
def test_tasks_that_are_parked_when_it_is_left_go_on():
    log = []
    gate = queue.SimpleQueue()

    async def main():
        async def getter():
            log.append(gate.get())

        with gs.blocking_in_tasks("park"):
            tasks = [asyncio.create_task(getter()) for _ in range(2)]
            await settle()
        assert _core.is_virtual(), "their stacks belong to this thread's hub"
        gate.put("first")
        gate.put("second")
        await asyncio.gather(*tasks)
        await settle()
        assert not _core.is_virtual()

    asyncio.run(main())

    assert ["first", "second"] == log


def test_blocking_in_tasks_makes_plain_loops_tell_of_blocking_calls():
    async def main():
        time.sleep(10)

    with gs.blocking_in_tasks("error"), pytest.raises(RuntimeError, match=r"time.sleep would block"):
        asyncio.run(main())


def test_blocking_in_tasks_nests():
    log = []

    def main():
        with gs.blocking_in_tasks("error"):
            with gs.blocking_in_tasks("park"):
                asyncio.run(get_and_put(log))
            with pytest.raises(RuntimeError):
                asyncio.run(get_and_put(log))

    gs.run(main)

    assert ["parked"] == log


def test_blocking_in_tasks_may_be_left_in_any_order():
    """Tasks interleave: whoever chose first may end it first, and nothing is left behind."""
    modes = []

    async def choose(mode: str, entered: asyncio.Event, leaves: asyncio.Event) -> None:
        with gs.blocking_in_tasks(mode):
            entered.set()
            await leaves.wait()

    async def main() -> None:
        first, second, leaves_first, leaves_second = (asyncio.Event() for _ in range(4))
        async with asyncio.TaskGroup() as tasks:
            one = tasks.create_task(choose("error", first, leaves_first))
            await first.wait()
            two = tasks.create_task(choose("block", second, leaves_second))
            await second.wait()
            leaves_first.set()
            await one
            modes.append(_core.block_in_tasks(1))
            leaves_second.set()
            await two
            modes.append(_core.block_in_tasks(0))

    gs.run(main)

    assert [1, 0] == modes  # "block", then "park"


def test_blocking_in_tasks_is_the_virtual_threads_own():
    log = []

    def other():
        asyncio.run(get_and_put(log))

    def main():
        with gs.scope() as scope, gs.blocking_in_tasks("error"):
            scope.spawn(other)
            gs.checkpoint()

    gs.run(main, blocking="park")

    assert ["parked"] == log


def test_virtual_threads_start_with_the_mode_of_run():
    async def sleeper():
        time.sleep(10)

    def main():
        with gs.scope() as scope:
            task = scope.spawn(asyncio.run, sleeper())
            task.exception()

    with pytest.raises(ExceptionGroup) as caught:
        gs.run(main, blocking="error")
    assert "would block" in str(caught.value.exceptions[0])


def test_no_switch_refuses_a_wait_in_a_task():
    async def main():
        with gs.no_switch(), pytest.raises(RuntimeError, match="no_switch"):
            queue.SimpleQueue().get()

    gs.run(main)
