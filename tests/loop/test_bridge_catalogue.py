# SPDX-License-Identifier: Apache-2.0
"""The programs that hang, fail or mix up contexts with asgiref, each through our bridge and from every kind of outside.

A number is that of an issue of django/asgiref, unless another tracker is named. The programs use `asyncify` and
`syncify` as theirs use `sync_to_async` and `async_to_sync`.
"""

import asyncio
import concurrent.futures
import contextvars
import functools
import multiprocessing
import sqlite3
import threading

import gossamer as gs
import pytest
from gossamer import asyncify, await_, syncify

VARIABLE = contextvars.ContextVar("VARIABLE", default="outside")


def on_our_loop(program):
    return gs.run(program)


def on_a_stock_loop(program):
    return asyncio.run(program())


def on_a_stock_loop_inside(program):
    return gs.run(lambda: asyncio.run(program()))


def on_uvloop(program):
    uvloop = pytest.importorskip("uvloop")
    return asyncio.run(program(), loop_factory=uvloop.new_event_loop)


def from_a_virtual_thread(program):
    return gs.run(lambda: contextvars.copy_context().run(syncify(program)))


def from_an_ordinary_thread(program):
    return contextvars.copy_context().run(syncify(program))


def from_everywhere(program):
    """Decorates an `async def` program: a test that runs it from each kind of outside."""

    @pytest.mark.parametrize(
        "enter",
        [
            on_our_loop,
            on_a_stock_loop,
            on_a_stock_loop_inside,
            on_uvloop,
            from_a_virtual_thread,
            from_an_ordinary_thread,
        ],
    )
    @functools.wraps(program)
    def test(enter):
        enter(program)

    del test.__wrapped__
    return test


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


# --- Deadlocks ---


@from_everywhere
async def test_a_task_made_below_a_plain_function_calls_another_plain_function():
    """#249: sync_to_async in a task that was made below async_to_sync, which is below sync_to_async."""
    calls = []

    async def write():
        await asyncify(calls.append)("written")

    async def work():
        await asyncio.create_task(write())
        await asyncio.gather(write())
        await asyncio.shield(write())

    await asyncify(syncify(work))()

    assert 3 * ["written"] == calls


@from_everywhere
async def test_a_plain_function_under_wait_for_below_a_plain_function():
    """#348: wait_for() makes a task of its sync_to_async below async_to_sync below sync_to_async."""

    async def view():
        return await asyncio.wait_for(asyncify(lambda: "viewed")(), timeout=60)

    assert "viewed" == await asyncify(syncify(view))()


@from_everywhere
async def test_one_plain_function_waits_for_what_another_sets():
    """Pull request #282: sync_to_async(event.wait) has the thread that sync_to_async(event.set) needs."""
    event = threading.Event()

    async def set_later():
        await asyncio.sleep(0)
        await asyncify(event.set)()

    setting = asyncio.create_task(set_later())
    assert await asyncify(event.wait)()
    await setting


def test_a_plain_function_waits_for_another_process():
    """Pull request #282: the event was one of multiprocessing's."""
    context = multiprocessing.get_context("spawn")
    left, right = context.Pipe()

    async def program():
        child = context.Process(target=right.send, args=("from the child",))
        await asyncify(child.start)()
        received = await asyncify(left.recv)()
        await asyncify(child.join)()
        return received, child.exitcode

    assert ("from the child", 0) == gs.run(program)


@from_everywhere
async def test_two_plain_functions_of_one_task_at_once():
    """#323: "Single thread executor already being used, would deadlock"."""
    both = threading.Barrier(2)

    await asyncio.gather(asyncify(both.wait)(), asyncify(both.wait)())


@from_everywhere
async def test_many_requests_through_layers_of_both_colours():
    """#275: plain middleware around async middleware around plain middleware, many requests at once."""
    everyone = threading.Barrier(20)

    def view(request):
        everyone.wait()
        return [request]

    def plain_layer(inner):
        return asyncify(lambda request: [*syncify(inner)(request), "plain"])

    def async_layer(inner):
        async def layer(request):
            await asyncio.sleep(0)
            return [*await inner(request), "async"]

        return layer

    application = plain_layer(async_layer(plain_layer(async_layer(asyncify(view)))))

    responses = await asyncio.gather(*(application(request) for request in range(20)))

    assert [[request, "async", "plain", "async", "plain"] for request in range(20)] == responses


@from_everywhere
async def test_a_lock_is_held_over_an_await_by_one_of_many_plain_functions():
    """#482: many tasks, each call a plain one, "I get deadlocks about 80% of the time"."""
    lock = threading.Lock()
    inside = []

    def write(number):
        with lock:
            inside.append(number)
            await_(asyncio.sleep(0))
            assert [number] == inside
            inside.clear()

    async def pull(number):
        await asyncio.sleep(0)
        await asyncify(write)(number)

    await asyncio.gather(*map(pull, range(50)))


@from_everywhere
async def test_a_database_connection_is_used_by_the_plain_functions_of_a_test():
    """django/channels #1852: `database_sync_to_async` in an `async def` test method freezes."""

    def work():
        with sqlite3.connect(":memory:") as connection:
            connection.execute("create table numbers (number)")

            async def test_method():
                await asyncify(connection.execute)("insert into numbers values (1)")
                return await asyncify(lambda: connection.execute("select number from numbers").fetchall())()

            rows = await_(test_method())
        connection.close()
        return rows

    assert [(1,)] == await asyncify(work)()


@from_everywhere
async def test_an_executor_whose_worker_waits_for_the_loop_is_shut_down_in_a_task():
    """#535, #458, #495 and pull request #563: `__aexit__` joins a thread that waits for this very loop."""
    loop = asyncio.get_running_loop()

    async def answer():
        await asyncio.sleep(0)
        return "answered"

    def ask_and_shut_down():
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            return executor.submit(lambda: asyncio.run_coroutine_threadsafe(answer(), loop).result())

    future = await asyncify(ask_and_shut_down)()

    assert "answered" == future.result()


@from_everywhere
async def test_a_request_is_cancelled_while_its_plain_function_awaits():
    """#535: the loop waits for a thread whose plain function waits for the loop, after a cancellation."""
    began, ended = asyncio.Event(), []

    async def wait_for_ever():
        began.set()
        await asyncio.Event().wait()

    def view():
        try:
            await_(wait_for_ever())
        finally:
            await_(settle())
            ended.append("cleaned up")

    request = asyncio.create_task(asyncify(view)())
    await began.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request

    assert ["cleaned up"] == ended


@from_everywhere
async def test_a_task_made_below_outlives_its_plain_function():
    """#492: its sync_to_async is queued where nobody looks any more."""
    done = asyncio.Event()
    calls = []

    async def inner():
        task = asyncio.create_task(asyncify(calls.append)("inner"))
        task.add_done_callback(lambda _task: done.set())

    await asyncify(syncify(inner))()
    await done.wait()

    assert ["inner"] == calls


@from_everywhere
async def test_a_timer_set_below_calls_a_plain_function_later():
    """#491: "CurrentThreadExecutor already quit or is broken"."""
    done = asyncio.get_running_loop().create_future()

    def later():
        task = asyncio.create_task(asyncify(lambda: "later")())
        task.add_done_callback(lambda task: done.set_result(task.result()))

    async def inner():
        asyncio.get_running_loop().call_later(0.001, later)

    await asyncify(syncify(inner))()

    assert "later" == await done


@from_everywhere
async def test_a_background_task_of_a_request_that_is_over_calls_a_plain_function():
    """#526: "CurrentThreadExecutor already quit or is broken" in a task that a request left behind."""
    over, calls = asyncio.Event(), []

    async def background():
        await over.wait()
        await asyncify(calls.append)("in the background")

    async def request():
        return asyncio.create_task(background())

    task = await asyncify(syncify(request))()
    over.set()
    await task

    assert ["in the background"] == calls


def test_a_function_made_where_a_loop_ran_is_called_after_that_loop_stopped():
    """#545, #525, #528 and the notes of 3.12.0: the loop of its making was kept, and nobody runs it."""

    async def inner():
        await asyncio.sleep(0)
        return "answered"

    async def make():
        return syncify(inner)

    loop = asyncio.new_event_loop()
    try:
        plain = loop.run_until_complete(make())
        assert "answered" == plain()
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            assert "answered" == executor.submit(plain).result()
        assert "answered" == gs.run(plain)
    finally:
        loop.close()


def test_a_plain_function_outlives_the_run_of_its_loop():
    """Pull request #562: a plain function that a task left behind awaits after its loop stopped."""
    may_go_on = threading.Event()

    async def inner():
        return "answered"

    def outlive():
        may_go_on.wait()
        return await_(inner())

    async def leave_behind():
        return asyncio.create_task(asyncify(outlive)())

    def main():
        loop = gs.new_event_loop()
        task = loop.run_until_complete(leave_behind())
        assert not task.done()
        may_go_on.set()
        answer = await_(inner()), loop.run_until_complete(task)
        loop.close()
        return answer

    assert ("answered", "answered") == gs.run(main)


@from_everywhere
async def test_a_plain_function_that_failed_leaves_no_mark():
    """#495: after one failure every later call "would deadlock"."""

    def fail():
        await_(asyncio.sleep(0))
        raise ValueError("here")

    for _ in range(2):
        with pytest.raises(ValueError, match="here"):
            await asyncify(fail)()

    assert "fine" == await asyncify(lambda: "fine")()


@from_everywhere
async def test_a_plain_function_awaits_in_a_task_without_a_wrapper_between():
    """#56: "You cannot use AsyncToSync in the same thread as an async event loop"."""

    async def inner():
        await asyncio.sleep(0)
        return "answered"

    assert "answered" == syncify(inner)()
    assert "answered" == await_(inner())


# --- Contexts ---


@from_everywhere
async def test_a_token_of_one_plain_function_is_reset_in_another():
    """#534 and #267: "Token was created in a different Context"."""

    def reset(token):
        assert "request" == VARIABLE.get()
        VARIABLE.reset(token)

    token = await asyncify(VARIABLE.set)("request")
    assert "request" == VARIABLE.get()
    await asyncify(reset)(token)

    assert "outside" == VARIABLE.get()


@from_everywhere
async def test_a_token_crosses_into_an_awaited_coroutine_and_back():
    """#534: the same, where the coroutine resets what its plain caller set."""

    async def reset(token):
        await asyncio.sleep(0)
        VARIABLE.reset(token)
        return VARIABLE.set("from below")

    def plain():
        token = VARIABLE.set("plain")
        return await_(reset(token))

    token = await asyncify(plain)()
    assert "from below" == VARIABLE.get()
    VARIABLE.reset(token)

    assert "outside" == VARIABLE.get()


async def reset_below(token):
    await asyncio.sleep(0)
    VARIABLE.reset(token)
    return VARIABLE.set("from below")


def reset_elsewhere():
    """Awaits where no task is: a loop elsewhere runs the coroutine."""
    token = await_(reset_below(VARIABLE.set("plain")))
    seen = VARIABLE.get()
    VARIABLE.reset(token)
    return seen, VARIABLE.get()


def in_a_callback(function):
    async def main():
        answer = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: answer.set_result(function()))
        return await answer

    return gs.run(main)


def in_a_context_of_its_own(function):
    return gs.run(lambda: contextvars.Context().run(function))


@pytest.mark.parametrize(
    "place",
    [
        gs.run,
        in_a_callback,
        in_a_context_of_its_own,
        lambda function: function(),
        lambda function: contextvars.copy_context().run(function),
    ],
)
def test_a_token_crosses_to_a_loop_elsewhere_and_back(place):
    """#534: outside of a task too, the coroutine runs in its caller's own context."""
    assert ("from below", "outside") == place(reset_elsewhere)


@from_everywhere
async def test_what_is_set_at_any_depth_is_seen_at_every_other():
    """#170, #148, #71: handlers are "executed with the wrong contextvars context"."""
    seen = []

    async def innermost():
        seen.append(VARIABLE.get())
        VARIABLE.set("innermost")

    def plain():
        seen.append(VARIABLE.get())
        VARIABLE.set("plain")
        await_(innermost())
        seen.append(VARIABLE.get())

    VARIABLE.set("outermost")
    await asyncify(plain)()
    seen.append(VARIABLE.get())

    assert ["outermost", "plain", "innermost", "innermost"] == seen


@from_everywhere
async def test_what_a_task_sets_in_plain_functions_is_its_own():
    """#473 and #399: a change in one task is seen in another."""
    everyone = threading.Barrier(3)

    def plain(number):
        VARIABLE.set(number)
        everyone.wait()
        await_(asyncio.sleep(0))
        return VARIABLE.get()

    async def task(number):
        return await asyncify(plain)(number), VARIABLE.get()

    assert [(0, 0), (1, 1), (2, 2)] == await asyncio.gather(*map(task, range(3)))
    assert "outside" == VARIABLE.get()


@from_everywhere
async def test_a_timeout_around_a_plain_function_is_over_when_it_is_over():
    """#504: the time-out leaves the task marked as being cancelled."""

    def wait():
        await_(asyncio.Event().wait())

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await asyncify(wait)()

    assert 0 == asyncio.current_task().cancelling()
    await asyncio.sleep(0)
