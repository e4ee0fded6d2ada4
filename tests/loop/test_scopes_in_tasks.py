# SPDX-License-Identifier: Apache-2.0
"""Scopes and time-outs of a task wait for that task alone, and cancel it and nothing else."""

import asyncio
import queue
import time

import gossamer as gs
import gossamer.testing
import pytest


@pytest.fixture(params=["ours", "stock"])
def run(request):
    """Run a coroutine on our loop, or on asyncio's inside of Gossamer."""
    if request.param == "ours":
        return gs.run
    return lambda main: gs.run(lambda: asyncio.run(main()))


def test_a_timeout_ends_a_blocking_call_and_an_await(run):
    async def main():
        with pytest.raises(TimeoutError), gs.timeout(0.001):
            time.sleep(3600)
        with pytest.raises(TimeoutError):
            async with gs.timeout(0.001):
                await asyncio.sleep(3600)
        await asyncio.sleep(0)
        return asyncio.current_task().cancelling()

    assert 0 == run(main)


def test_a_timeout_that_is_not_reached_changes_nothing(run):
    async def main():
        with gs.timeout(3600):
            await asyncio.sleep(0)
            time.sleep(0)
        return "done"

    assert "done" == run(main)


def test_a_failure_in_a_scope_cancels_its_task_and_its_other_threads(run):
    ended = []

    def wait():
        try:
            time.sleep(3600)
        except asyncio.CancelledError:
            ended.append("thread")
            raise

    async def main():
        async def beside():
            await asyncio.sleep(0)
            return "beside"

        other = asyncio.create_task(beside())
        with pytest.raises(ExceptionGroup) as caught:
            async with gs.scope() as scope:
                scope.spawn(wait)
                scope.spawn(lambda: 1 / 0)
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    ended.append("body")
                    raise
        assert [ZeroDivisionError] == [type(error) for error in caught.value.exceptions]
        return await other, asyncio.current_task().cancelling()

    assert ("beside", 0) == run(main)
    assert ["body", "thread"] == sorted(ended)


def test_scopes_of_several_tasks_are_apart(run):
    async def wait_in_scope(gate):
        with gs.scope() as scope:
            scope.spawn(gate.get)
        return "left"

    async def fail():
        with gs.scope() as scope:
            scope.spawn(lambda: 1 / 0)
            await asyncio.sleep(3600)

    async def main():
        gate = queue.SimpleQueue()
        waiter = asyncio.create_task(wait_in_scope(gate))
        with pytest.raises(ExceptionGroup):
            await fail()
        gate.put(None)
        return await waiter

    assert "left" == run(main)


def test_a_cancellation_from_outside_passes_through_a_scope(run):
    async def work():
        with gs.scope() as scope:
            scope.spawn(time.sleep, 3600)
            await asyncio.sleep(3600)

    async def main():
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return task.cancelled()

    assert run(main)


def test_cancel_of_a_scope_ends_the_body_of_its_task(run):
    async def main():
        with gs.scope() as scope:
            scope.spawn(scope.cancel)
            await asyncio.sleep(3600)
        return "left", asyncio.current_task().cancelling()

    assert ("left", 0) == run(main)


def test_a_time_out_of_a_task_whose_loop_is_closed_is_nothing():
    """It fires while nobody can be told."""

    async def forever() -> None:
        with gs.timeout(1):
            await asyncio.Event().wait()

    def main() -> None:
        with gossamer.testing.virtual_clock():
            loop = gs.new_event_loop()
            task = loop.create_task(forever())
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
            time.sleep(2)
        assert not task.done()
        task._log_destroy_pending = False
        task.get_coro().close()

    gs.run(main)
