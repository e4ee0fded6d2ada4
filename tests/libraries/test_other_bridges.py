# SPDX-License-Identifier: Apache-2.0
"""Other ways between `def` and `async def` go on to work: asgiref, anyio and `asyncio.to_thread`, on our loop and on
asyncio's, where threads are virtual and where they are not.
"""

import asyncio
import contextvars
import functools
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import gossamer as gs
import pytest
from gossamer import _core

VARIABLE = contextvars.ContextVar("VARIABLE", default="outside")


def on_our_loop(program):
    """On an ordinary thread; the threads that a library starts are ordinary too."""
    with asyncio.Runner(loop_factory=gs.new_event_loop) as runner:
        return runner.run(program())


def on_our_loop_inside(program):
    return gs.run(program)


def on_a_stock_loop_inside(program):
    return gs.run(lambda: asyncio.run(program()))


def on_our_loop_in_a_virtual_thread(program):
    def main():
        with gs.scope() as scope:
            return scope.spawn(on_our_loop, program).result()

    return gs.run(main)


def on_a_stock_loop(program):
    return asyncio.run(program())


if _core.is_virtual():  # this file under `gossamer run`: the threads that a library starts are virtual
    RUNS = [on_our_loop, on_a_stock_loop]
else:
    RUNS = [on_our_loop, on_our_loop_inside, on_a_stock_loop_inside, on_our_loop_in_a_virtual_thread]

everywhere = pytest.mark.parametrize("run", RUNS)


@pytest.fixture(autouse=True)
def no_thread_stays():
    """asgiref keeps one for good, which could wake anybody: nothing would be a deadlock any more."""
    yield
    if "asgiref.sync" in sys.modules:
        kept = sys.modules["asgiref.sync"].SyncToAsync
        kept.single_thread_executor.shutdown()
        kept.single_thread_executor = ThreadPoolExecutor(max_workers=1)


def run_virtually(main):
    return main() if _core.is_virtual() else gs.run(main)


@pytest.mark.skipif(_core.is_virtual(), reason="this is the child")
def test_all_of_this_under_gossamer_run():
    run = [sys.executable, "-m", "gossamer", "run", "-m"]
    known = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"  # the package that has our plugin
    command = [*run, "pytest", "-q", "-W", known, __file__]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)

    assert (0, "") == (result.returncode, result.stderr), result.stdout
    assert " failed" not in result.stdout
    assert " passed" in result.stdout


def on_loops(program):
    """Decorates an `async def` program: a test that runs it everywhere."""

    @everywhere
    @functools.wraps(program)
    def test(run):
        run(program)

    del test.__wrapped__
    return test


def set_and_tell(value):
    before = VARIABLE.get()
    VARIABLE.set(value)
    return before, threading.current_thread().name


# --- asgiref ---


@on_loops
async def test_asgiref_calls_thread_sensitive_functions_in_one_thread():
    sync = pytest.importorskip("asgiref.sync")
    VARIABLE.set("task")

    first = await sync.sync_to_async(set_and_tell)("first")
    second = await sync.sync_to_async(set_and_tell)("second")

    assert ("task", "first") == (first[0], second[0])
    assert first[1] == second[1] != threading.current_thread().name
    assert "second" == VARIABLE.get()


@on_loops
async def test_asgiref_calls_others_at_once():
    sync = pytest.importorskip("asgiref.sync")
    both = threading.Barrier(2)
    wait = sync.sync_to_async(both.wait, thread_sensitive=False)

    assert [0, 1] == sorted(await asyncio.gather(wait(), wait()))


@on_loops
async def test_asgiref_comes_back_to_the_loop_of_its_caller():
    sync = pytest.importorskip("asgiref.sync")
    loop, thread = asyncio.get_running_loop(), threading.current_thread()

    async def inner(value):
        await asyncio.sleep(0)
        VARIABLE.set(value)
        return asyncio.get_running_loop(), threading.current_thread()

    assert (loop, thread) == await sync.sync_to_async(sync.async_to_sync(inner))("inner")
    assert "inner" == VARIABLE.get()


@on_loops
async def test_asgiref_keeps_thread_sensitive_functions_of_a_context_apart():
    sync = pytest.importorskip("asgiref.sync")

    outside = await sync.sync_to_async(threading.get_ident)()  # of a thread that stays
    async with sync.ThreadSensitiveContext():
        inside = await sync.sync_to_async(threading.get_ident)()

    assert inside != outside


@on_loops
async def test_asgiref_local_is_the_task_s_own():
    local = pytest.importorskip("asgiref.local").Local()
    sync = pytest.importorskip("asgiref.sync")

    async def task(number):
        local.number = number
        await asyncio.sleep(0)
        return await sync.sync_to_async(lambda: local.number)()

    assert [0, 1, 2] == await asyncio.gather(*map(task, range(3)))
    assert not hasattr(local, "number")


@on_loops
async def test_asgiref_and_we_call_each_other():
    sync = pytest.importorskip("asgiref.sync")

    async def innermost():
        await asyncio.sleep(0)
        return "innermost"

    def ours():
        return gs.await_(innermost())

    assert "innermost" == await sync.sync_to_async(ours)()
    assert "innermost" == await gs.asyncify(lambda: gs.await_(sync.sync_to_async(ours)()))()


def test_asgiref_is_called_by_many_virtual_threads():
    sync = pytest.importorskip("asgiref.sync")

    async def double(number):
        await asyncio.sleep(0)
        return await sync.sync_to_async(lambda: 2 * number)()

    def main():
        with gs.scope() as scope:
            tasks = [scope.spawn(sync.async_to_sync(double), number) for number in range(20)]
        return [task.result() for task in tasks]

    assert [2 * number for number in range(20)] == run_virtually(main)


# --- anyio ---


@on_loops
async def test_anyio_calls_in_a_thread_and_back():
    anyio = pytest.importorskip("anyio")
    loop = asyncio.get_running_loop()

    async def inner():
        await anyio.sleep(0)
        return asyncio.get_running_loop()

    def work():
        assert "main" == anyio.from_thread.run_sync(lambda: "main")
        return anyio.from_thread.run(inner), threading.current_thread()

    found, thread = await anyio.to_thread.run_sync(work)

    assert loop is found
    assert thread is not threading.current_thread()


@on_loops
async def test_anyio_threads_run_at_once():
    anyio = pytest.importorskip("anyio")
    everyone = threading.Barrier(10)

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(anyio.to_thread.run_sync, everyone.wait)


@on_loops
async def test_anyio_portal_serves_a_thread():
    anyio = pytest.importorskip("anyio")
    thread = threading.current_thread()

    async def inner(value):
        await anyio.sleep(0)
        return value, threading.current_thread()

    async with anyio.from_thread.BlockingPortal() as portal:
        answer = await anyio.to_thread.run_sync(lambda: portal.call(inner, "called"))
        started = await anyio.to_thread.run_sync(lambda: portal.start_task_soon(inner, "started").result())

    assert ("called", thread) == answer
    assert ("started", thread) == started


def test_anyio_starts_a_portal_from_a_virtual_thread():
    anyio = pytest.importorskip("anyio")

    async def inner(value):
        await anyio.sleep(0)
        return value

    def call(number):
        with anyio.from_thread.start_blocking_portal() as portal:
            return portal.call(inner, number)

    def main():
        with gs.scope() as scope:
            tasks = [scope.spawn(call, number) for number in range(3)]
        return [task.result() for task in tasks]

    assert [0, 1, 2] == run_virtually(main)


@on_loops
async def test_anyio_cancels_a_plain_function_that_awaits():
    anyio = pytest.importorskip("anyio")
    seen = []

    def wait():
        try:
            gs.await_(anyio.sleep_forever())
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    with anyio.move_on_after(0.001) as scope:
        await gs.asyncify(wait)()

    assert scope.cancelled_caught
    assert ["cancelled"] == seen


# --- asyncio ---


@on_loops
async def test_to_thread_carries_the_context_and_runs_elsewhere():
    VARIABLE.set("task")

    before, name = await asyncio.to_thread(set_and_tell, "thread")

    assert "task" == before
    assert name != threading.current_thread().name
    assert "task" == VARIABLE.get()


@on_loops
async def test_to_thread_calls_wait_for_each_other():
    event = threading.Event()

    waiting = asyncio.create_task(asyncio.to_thread(event.wait, 60))
    await asyncio.to_thread(event.set)

    assert await waiting


@on_loops
async def test_a_thread_runs_a_coroutine_on_the_loop():
    loop = asyncio.get_running_loop()

    async def inner():
        await asyncio.sleep(0)
        return "answered"

    def work():
        return asyncio.run_coroutine_threadsafe(inner(), loop).result(), gs.await_(inner()), asyncio.run(inner())

    assert 3 * ("answered",) == await asyncio.to_thread(work)
