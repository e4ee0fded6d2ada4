# SPDX-License-Identifier: Apache-2.0
"""`with syncify(manager)` and loops over `syncify(iterator)`: one task awaits all that is awaited in the block, so what
belongs to the task that enters it, as time-outs and task groups do, works in plain functions wherever they are called.
"""

import asyncio
import contextlib
import contextvars
import queue
import threading
import time
import traceback

import gossamer as gs
import pytest
from gossamer import _run, await_, syncify

VARIABLE = contextvars.ContextVar("VARIABLE", default=0)


def in_virtual_thread(function):
    return gs.run(function)


def in_task(function):
    async def main():
        return function()

    return gs.run(main)


def on_ordinary_thread(function):
    return function()


def in_callback(function):
    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(lambda: future.set_result(function()))
        return await future

    return gs.run(main)


PLACES = [in_virtual_thread, in_task, on_ordinary_thread, in_callback]
everywhere = pytest.mark.parametrize("place", PLACES)


async def current_task():
    return asyncio.current_task()


@contextlib.asynccontextmanager
async def limit(seconds):
    async with asyncio.timeout(seconds):
        yield asyncio.current_task()


@everywhere
def test_one_task_awaits_all_that_is_awaited_in_a_block(place):
    def use():
        with syncify(limit(None)) as outer, syncify(limit(None)) as inner:
            return {outer, inner, await_(current_task()), await_(current_task())}

    assert 1 == len(place(use))


@everywhere
def test_it_ends_with_the_block(place):
    async def others():
        return asyncio.all_tasks() - {asyncio.current_task(), here}

    here = None

    def use():
        nonlocal here
        if place is in_task:
            here = await_(current_task())
        with syncify(limit(None)) as task:
            pass
        return place is in_task or task.done(), await_(others())

    assert (True, set()) == place(use)


@everywhere
def test_a_time_out_ends_an_await_in_the_block_and_nothing_after_it(place):
    def use():
        with pytest.raises(TimeoutError), syncify(limit(0.001)):
            await_(asyncio.sleep(3600))
        with pytest.raises(TimeoutError), syncify(limit(0.001)), syncify(limit(None)):
            await_(asyncio.sleep(3600))
        await_(asyncio.sleep(0))
        return await_(asyncio.sleep(0, "after"))

    assert "after" == place(use)


@pytest.mark.parametrize("place", [in_virtual_thread, in_task])
def test_a_time_out_ends_a_park_in_the_block_and_nothing_after_it(place):
    def use():
        with pytest.raises(TimeoutError), syncify(limit(0.001)):
            queue.Queue().get()
        time.sleep(0)
        await_(asyncio.sleep(0))
        return "after"

    assert "after" == place(use)


@everywhere
def test_a_time_out_that_comes_while_the_block_computes_ends_its_next_await(place):
    async def let_time_out(task):
        task.get_loop().call_soon(task.cancel)

    def use():
        with pytest.raises(asyncio.CancelledError), syncify(limit(None)) as task:
            await_(let_time_out(task))
            for _ in range(10):
                await_(asyncio.sleep(0))
            pytest.fail("it was not cancelled")
        return True

    assert place(use)


def test_a_time_out_that_nobody_noticed_is_over_with_its_block():
    def main():
        with syncify(limit(None)):
            with syncify(limit(0.001)) as task:
                gone = threading.Event()
                task.get_loop().call_later(0.002, gone.set)
                with gs.shield():
                    gone.wait()
            time.sleep(0)
            await_(asyncio.sleep(0))
        return task.cancelling()

    assert 0 == gs.run(main)


@everywhere
def test_a_task_group_waits_for_its_tasks(place):
    async def number():
        await asyncio.sleep(0)
        return 7

    def use():
        with syncify(asyncio.TaskGroup()) as group:
            task = group.create_task(number())
        return task.result()

    assert 7 == place(use)


@everywhere
def test_a_task_of_a_group_that_fails_ends_the_block(place):
    async def fail():
        await asyncio.sleep(0)
        raise KeyError("here")

    def use():
        with pytest.raises(ExceptionGroup) as caught, syncify(asyncio.TaskGroup()) as group:
            group.create_task(fail())
            await_(asyncio.sleep(3600))
        return repr(caught.value.exceptions), await_(asyncio.sleep(0, "after"))

    assert ("(KeyError('here'),)", "after") == place(use)


def test_a_task_of_a_group_that_fails_ends_a_park_of_the_block():
    async def fail():
        raise KeyError("here")

    def main():
        with pytest.raises(ExceptionGroup), syncify(asyncio.TaskGroup()) as group:
            group.create_task(fail())
            queue.Queue().get()

    gs.run(main)


@pytest.mark.parametrize("place", [in_virtual_thread, in_task])
def test_the_cancellation_of_a_park_has_the_message_of_its_task_s(place):
    messages = []

    @contextlib.asynccontextmanager
    async def manager():
        task = asyncio.current_task()
        task.get_loop().call_later(0.001, task.cancel, "enough")
        try:
            yield
        except asyncio.CancelledError as error:
            messages.append(error.args)
            task.uncancel()

    def use():
        with syncify(manager()):
            queue.Queue().get()
        time.sleep(0)

    place(use)

    assert [("enough",)] == messages


@pytest.mark.parametrize("place", PLACES)
def test_anyio_s_scopes_and_task_groups_hold_for_a_block(place):
    anyio = pytest.importorskip("anyio")

    @contextlib.asynccontextmanager
    async def numbers():
        send, receive = anyio.create_memory_object_stream(0)

        async def count():
            async with send:
                for number in range(3):
                    await send.send(number)

        async with anyio.create_task_group() as group, receive:
            group.start_soon(count)
            yield receive
            group.cancel_scope.cancel()

    @contextlib.asynccontextmanager
    async def limit():
        with anyio.move_on_after(0.001) as scope:
            yield scope

    def use():
        with syncify(numbers()) as stream:
            received = list(syncify(stream))
        with syncify(limit()) as awaiting:
            await_(anyio.sleep_forever())
        with syncify(limit()) as parking:
            queue.Queue().get() if place in (in_virtual_thread, in_task) else await_(anyio.sleep_forever())
        await_(anyio.sleep(0))
        return received, awaiting.cancelled_caught, parking.cancelled_caught

    assert ([0, 1, 2], True, True) == place(use)


@pytest.mark.parametrize("is_timed_out_before", [False, True])
def test_a_cancelled_virtual_thread_cancels_what_its_block_awaits_once(is_timed_out_before):
    """The task counts it, as it counted what timed a park out before and took back."""
    seen = []

    @contextlib.asynccontextmanager
    async def manager():
        try:
            yield
        finally:
            await asyncio.sleep(0)
            seen.append(asyncio.current_task().cancelling())

    async def wait():
        waits.put(True)
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    waits = queue.SimpleQueue()

    def work():
        with syncify(manager()):
            if is_timed_out_before:
                with pytest.raises(TimeoutError), syncify(limit(0.001)):
                    queue.Queue().get()
            await_(wait())

    def main():
        with gs.scope() as scope:
            task = scope.spawn(work)
            waits.get()
            task.cancel()
        return task.cancelled()

    assert gs.run(main)
    assert ["cleaned up", 1] == seen


@everywhere
def test_each_await_in_a_block_has_the_context_of_its_caller(place):
    async def change(token):
        await asyncio.sleep(0)
        VARIABLE.reset(token)
        return VARIABLE.set(2)

    def inside():
        token = await_(change(VARIABLE.set(1)))
        value = VARIABLE.get()
        VARIABLE.reset(token)
        return value, VARIABLE.get()

    def use():
        with syncify(limit(None)):
            return inside(), contextvars.copy_context().run(inside)

    assert ((2, 0), (2, 0)) == place(use)


@everywhere
def test_a_generator_s_steps_are_of_one_task(place):
    async def numbers():
        async with asyncio.timeout(None):
            for _ in range(3):
                yield asyncio.current_task()
                await asyncio.sleep(0)

    def use():
        return set(syncify(numbers)())

    assert 1 == len(place(use))


@everywhere
def test_a_time_out_inside_of_a_generator(place):
    async def numbers():
        async with asyncio.timeout(0.001):
            yield 1
            await asyncio.sleep(3600)

    def use():
        seen = []
        with pytest.raises(TimeoutError):
            seen.extend(syncify(numbers)())
        for number in syncify(numbers)():
            seen.append(number)
            break
        return seen, await_(asyncio.sleep(0, "after"))

    assert ([1, 1], "after") == place(use)


def test_a_generator_is_ended_by_another_thread():
    closed = []

    async def numbers():
        try:
            yield 1
        finally:
            closed.append(True)

    async def tasks():
        return len(asyncio.all_tasks())

    generator = syncify(numbers)()
    next(generator)
    thread = threading.Thread(target=generator.close)
    thread.start()
    thread.join()

    assert [True] == closed
    await_(asyncio.sleep(0))
    assert 1 == await_(tasks()), "nothing of it is left here"


def test_a_block_that_is_open_at_the_end_of_its_hub():
    """The hub's loop closes under a virtual thread in a block, which cleans up on another one."""
    seen = []

    @contextlib.asynccontextmanager
    async def manager():
        try:
            yield
        finally:
            await asyncio.sleep(0)
            seen.append("left")

    def forget():
        with contextlib.suppress(asyncio.CancelledError), syncify(manager()):
            time.sleep(3600)

    def main():
        threading.Thread(target=forget, daemon=True).start()
        for _ in range(20):
            gs.checkpoint()

    _run.enter(virtual_threads=True)
    try:
        main()
    finally:
        _run.leave(5.0)

    assert ["left"] == seen


@everywhere
def test_what_the_block_raises_has_both_sides_in_its_traceback(place):
    async def fail():
        await asyncio.sleep(0)
        raise KeyError("here")

    def call():
        try:
            with syncify(limit(None)):
                await_(fail())
        except KeyError as error:
            return [frame.name for frame in traceback.extract_tb(error.__traceback__)]

    names = place(call)

    assert "call" == names[0]
    assert "fail" in names
