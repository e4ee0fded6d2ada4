# SPDX-License-Identifier: Apache-2.0
"""To asyncio a parked task is one that awaits: cancelling, time-outs, groups, shields."""

import asyncio
import queue
import threading
import traceback

import pytest
from gossamer import _core
from tasks import in_task, settle


@in_task
async def test_a_cancellation_reaches_the_parked_call_once_and_may_be_caught():
    gate = queue.SimpleQueue()
    log = []

    async def getter():
        try:
            gate.get()
        except asyncio.CancelledError as error:
            log.append((str(error), asyncio.current_task().cancelling()))
            asyncio.current_task().uncancel()
        return gate.get()

    task = asyncio.create_task(getter())
    await settle()
    assert task.cancel("why")
    assert 1 == task.cancelling()
    await settle()
    gate.put("after")

    assert "after" == await task
    assert [("why", 1)] == log
    assert 0 == task.cancelling()


@in_task
async def test_an_event_that_is_cancelled_twice_gets_its_lock_back():
    """As anyio cancels: again and again, until the task has left the scope."""
    event = threading.Event()
    log = []

    async def waiter():
        try:
            event.wait()
        finally:
            log.append("out")

    task = asyncio.create_task(waiter())
    await settle()
    with event._cond:
        for _ in range(2):
            task.cancel()
            await settle()
        log.append("held")
    with pytest.raises(asyncio.CancelledError):
        await task

    assert ["held", "out"] == log


@in_task
async def test_a_cancelled_task_has_the_line_of_the_parked_call_in_its_traceback():
    gate = queue.SimpleQueue()

    def wait_here():
        gate.get()

    async def getter():
        wait_here()

    task = asyncio.create_task(getter())
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task

    assert task.cancelled()
    assert ["getter", "wait_here"] == [call.name for call in traceback.extract_tb(caught.tb)][-2:]


@in_task
async def test_a_task_that_cancelled_itself_is_cancelled_at_its_next_await_not_at_its_park():
    """As on plain asyncio: what runs is never interrupted, and the future that it awaits next is cancelled."""
    gate = queue.SimpleQueue()

    async def getter():
        asyncio.current_task().cancel()
        try:
            gate.get()
        except asyncio.CancelledError:
            return "cancelled at the call"

    assert "cancelled at the call" == await asyncio.create_task(getter())


@in_task
async def test_a_cancellation_before_the_first_step_runs_nothing():
    log = []

    async def getter():
        log.append("ran")

    task = asyncio.create_task(getter())
    task.cancel()
    await settle()

    assert task.cancelled()
    assert [] == log


@in_task
async def test_who_was_served_keeps_what_it_got_and_is_cancelled_at_its_next_await():
    gate = queue.SimpleQueue()
    log = []

    async def getter():
        log.append(gate.get())
        await asyncio.sleep(0)
        log.append("went on")

    task = asyncio.create_task(getter())
    await settle()
    gate.put("served")
    task.cancel("late")
    with pytest.raises(asyncio.CancelledError, match="late"):
        await task

    assert ["served"] == log
    assert gate.empty()


@in_task
async def test_who_was_served_is_cancelled_at_its_next_park():
    gate = queue.SimpleQueue()
    log = []

    async def getter():
        log.append(gate.get())
        try:
            gate.get()
        except asyncio.CancelledError:
            log.append("cancelled")

    task = asyncio.create_task(getter())
    await settle()
    gate.put("served")
    task.cancel()
    await task

    assert ["served", "cancelled"] == log


@in_task
async def test_who_was_served_and_returns_is_cancelled_all_the_same():
    gate = queue.SimpleQueue()
    log = []

    async def getter():
        log.append(gate.get())

    task = asyncio.create_task(getter())
    await settle()
    gate.put("served")
    task.cancel()
    await settle()

    assert ["served"] == log
    assert task.cancelled()


@in_task
async def test_a_lock_given_to_a_cancelled_task_goes_to_the_next():
    lock = threading.Lock()
    log = []

    async def taker(name):
        with lock:
            log.append(name)

    lock.acquire()
    first, second = asyncio.create_task(taker("first")), asyncio.create_task(taker("second"))
    await settle()
    first.cancel()
    lock.release()
    await second

    assert "second" in log
    assert lock.acquire(blocking=False)


@in_task
async def test_a_time_out_ends_a_parked_call():
    gate = queue.SimpleQueue()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            gate.get()

    assert 0 == asyncio.current_task().cancelling()


@in_task
async def test_a_time_out_that_is_not_reached_does_nothing():
    gate = queue.SimpleQueue()

    async def getter():
        async with asyncio.timeout(600):
            return gate.get()

    task = asyncio.create_task(getter())
    await settle()
    gate.put("given")

    assert "given" == await task


@in_task
async def test_wait_for_ends_a_parked_call():
    gate = queue.SimpleQueue()

    async def getter():
        return gate.get()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(getter(), 0.001)


@in_task
async def test_a_call_with_a_time_out_of_its_own_is_timed_out():
    gate = queue.Queue()

    async def getter():
        with pytest.raises(queue.Empty):
            gate.get(timeout=0.001)
        return threading.Event().wait(0.001)

    assert not await asyncio.create_task(getter())


@in_task
async def test_a_task_group_cancels_parked_tasks():
    gate = queue.SimpleQueue()
    fail = queue.SimpleQueue()
    log = []

    async def failing():
        fail.get()
        raise ValueError("bad")

    async def waiting():
        try:
            gate.get()
        finally:
            log.append("ended")

    async def group():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(failing())
            tasks.create_task(waiting())
            tasks.create_task(waiting())

    task = asyncio.create_task(group())
    await settle()
    fail.put(None)
    with pytest.raises(ExceptionGroup) as caught:
        await task

    assert ["bad"] == [str(error) for error in caught.value.exceptions]
    assert ["ended", "ended"] == log


@in_task
async def test_a_task_group_cancels_its_own_parked_body():
    gate = queue.SimpleQueue()

    async def failing():
        raise ValueError("bad")

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(failing())
            gate.get()


@in_task
async def test_a_shielded_task_stays_parked():
    gate = queue.SimpleQueue()

    async def getter():
        return gate.get()

    inner = asyncio.create_task(getter())

    async def shielding():
        return await asyncio.shield(inner)

    outer = asyncio.create_task(shielding())
    await settle()
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    gate.put("given")

    assert "given" == await inner


@in_task
async def test_a_cancelled_eager_task_that_parked_in_its_first_step():
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    gate = queue.SimpleQueue()

    async def getter():
        return gate.get()

    task = asyncio.create_task(getter())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@in_task
async def test_clean_up_of_a_cancelled_task_may_wait():
    gate = queue.SimpleQueue()
    log = []

    async def getter():
        try:
            gate.get()
        finally:
            log.append(gate.get())

    task = asyncio.create_task(getter())
    await settle()
    task.cancel()
    await settle()
    gate.put("cleaned up")
    with pytest.raises(asyncio.CancelledError):
        await task

    assert ["cleaned up"] == log


@in_task
async def test_the_exception_handled_where_the_task_parked_is_the_context_of_its_cancellation():
    gate = queue.SimpleQueue()

    async def getter():
        try:
            raise ValueError("handled")
        except ValueError:
            gate.get()

    task = asyncio.create_task(getter())
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task

    assert "handled" == str(caught.value.__context__)


@in_task
async def test_any_exception_may_be_thrown_into_a_parked_coroutine():
    gate = queue.SimpleQueue()

    async def getter():
        try:
            gate.get()
        except KeyError:
            return "caught"

    coroutine = getter()
    task = asyncio.create_task(coroutine)
    await settle()
    with pytest.raises(StopIteration, match="caught"):
        coroutine.throw(KeyError("thrown"))
    task.cancel()
    with pytest.raises((asyncio.CancelledError, RuntimeError)):
        await task


@in_task
async def test_closing_a_parked_coroutine_runs_its_clean_up():
    gate = queue.SimpleQueue()
    log = []

    async def getter():
        try:
            gate.get()
        except GeneratorExit:
            log.append("closed")
            raise

    coroutine = getter()
    task = asyncio.create_task(coroutine)
    await settle()
    coroutine.close()

    assert ["closed"] == log
    assert coroutine.cr_frame is None
    task.cancel()
    with pytest.raises((asyncio.CancelledError, RuntimeError)):
        await task


@in_task
async def test_a_second_await_of_a_parked_coroutine_is_refused():
    gate = queue.SimpleQueue()

    async def getter():
        return gate.get()

    coroutine = getter()
    task = asyncio.create_task(coroutine)
    await settle()
    with pytest.raises(RuntimeError, match="awaited already"):
        await coroutine
    gate.put("given")

    assert "given" == await task


@in_task
async def test_cancelled_and_served_in_every_order_loses_nothing():
    """Tasks that take items while they are cancelled at random: every item is taken once."""
    import random

    chance = random.Random(4711)
    gate = queue.SimpleQueue()
    taken = []

    async def getter():
        while True:
            taken.append(gate.get())
            await asyncio.sleep(0)

    tasks = []
    for number in range(300):
        tasks.append(asyncio.create_task(getter()))
        gate.put(number)
        if chance.random() < 0.5:
            await asyncio.sleep(0)
        for task in chance.sample(tasks, min(3, len(tasks))):
            if chance.random() < 0.3:
                task.cancel()
    last = asyncio.create_task(getter())
    await settle()
    for task in [*tasks, last]:
        task.cancel()
    await asyncio.gather(*tasks, last, return_exceptions=True)
    while not gate.empty():
        taken.append(gate.get())

    assert list(range(300)) == sorted(taken)
    assert 0 == _core.statistics()["parked_steps"]
