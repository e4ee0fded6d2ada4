# SPDX-License-Identifier: Apache-2.0
"""Tasks: results, exceptions, waiting for them from anywhere, and the end of `run`."""

import asyncio
import contextvars
import gc
import queue
import sys
import threading
import traceback

import gossamer as gs
import pytest
from gossamer import _core
from virtually import settle, virtually


def fail(error):
    raise error


@virtually
def test_result_waits_and_returns():
    with gs.scope() as scope:
        task = scope.spawn(lambda: (gs.checkpoint(), 7)[1])

        assert not task.done()
        assert 7 == task.result()
        assert task.exception() is None
        assert task.done()


@virtually
def test_result_raises_the_bare_exception_each_time_with_the_same_traceback():
    with pytest.raises(ExceptionGroup), gs.scope() as scope:
        task = scope.spawn(fail, KeyError("k"))
    lengths = []

    for _ in range(3):
        with pytest.raises(KeyError) as caught:
            task.result()
        lengths.append(len(traceback.extract_tb(caught.value.__traceback__)))

    assert 1 == len(set(lengths))
    assert isinstance(task.exception(), KeyError)


@virtually
def test_result_of_a_cancelled_task_raises_cancelled_error():
    with gs.scope() as scope:
        task = scope.spawn(gs.sleep, 1000)
        task.cancel()

    for wait in (task.result, task.exception):
        with pytest.raises(asyncio.CancelledError):
            wait()


@pytest.mark.parametrize("timeout", [0, 0.001, -1])
@virtually
def test_result_gives_up_after_its_time_out_and_the_task_runs_on(timeout):
    gate = queue.SimpleQueue()
    with gs.scope() as scope:
        task = scope.spawn(gate.get)

        with pytest.raises(TimeoutError):
            task.result(timeout)
        with pytest.raises(TimeoutError):
            task.exception(timeout=timeout)
        gate.put(5)

        assert 5 == task.result()


@virtually
def test_task_cannot_wait_for_itself():
    with gs.scope() as scope:
        task = scope.spawn(lambda: pytest.raises(RuntimeError, gs.current().result))

    assert "own end" in str(task.result().value)


@virtually
def test_result_on_an_os_thread():
    answers = queue.SimpleQueue()
    gate = queue.SimpleQueue()
    with gs.scope() as scope:
        task = scope.spawn(gate.get)
        threading.Thread(target=lambda: answers.put(task.result())).start()
        settle()
        gate.put(11)

    assert 11 == answers.get()


@virtually
def test_current_is_the_task():
    with gs.scope() as scope:
        task = scope.spawn(gs.current)

    assert task is task.result()
    assert gs.current() is None


@virtually
def test_task_has_a_copy_of_its_spawners_context():
    variable = contextvars.ContextVar("variable")
    variable.set("spawner's")

    def look():
        seen = variable.get()
        variable.set("task's")
        return seen

    with gs.scope() as scope:
        task = scope.spawn(look)

    assert "spawner's" == task.result()
    assert "spawner's" == variable.get()


@virtually
def test_repr_names_what_a_task_runs():
    with gs.scope() as scope:
        task = scope.spawn(wait_for_repr, gate := queue.SimpleQueue())
        assert "ready wait_for_repr" in repr(task)
        settle()
        assert "running wait_for_repr" in repr(task)
        gate.put(None)

    assert "done" in repr(task)


def wait_for_repr(gate):
    gate.get()


@virtually
def test_await_in_a_task_of_a_loop_of_the_same_os_thread():
    async def wait_for(task):
        return await task

    async def main():
        waiters = [asyncio.ensure_future(wait_for(_core.spawn(function))) for function in (lambda: 1, raise_key_error)]
        while not all(waiter.done() for waiter in waiters):
            gs.checkpoint()
            await asyncio.sleep(0)
        with pytest.raises(KeyError):
            await waiters[1]
        return await waiters[0]

    assert 1 == asyncio.run(main())


def raise_key_error():
    raise KeyError


@virtually
def test_await_of_a_task_that_has_ended():
    with gs.scope() as scope:
        task = scope.spawn(lambda: 1)

    async def main():
        return await task

    assert 1 == asyncio.run(main())


def test_await_in_a_loop_of_another_os_thread():
    tasks = queue.SimpleQueue()
    gate = queue.SimpleQueue()
    results = queue.SimpleQueue()

    async def wait():
        task = tasks.get()
        gate.put("go on")
        return await task

    thread = threading.Thread(target=lambda: results.put(asyncio.run(wait())))
    thread.start()

    def main():
        with gs.scope() as scope:
            tasks.put(scope.spawn(gate.get))

    gs.run(main)
    thread.join()

    assert "go on" == results.get()


def test_cancelling_who_awaits_a_task_cancels_the_task():
    tasks = queue.SimpleQueue()

    async def wait():
        waiter = asyncio.ensure_future(asyncio.wait_for(tasks.get(), 1000))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter

    thread = threading.Thread(target=lambda: asyncio.run(wait()))
    thread.start()

    def main():
        with gs.scope() as scope:
            task = scope.spawn(gs.sleep, 1000)
            tasks.put(task)
        assert task.cancelled()

    gs.run(main)
    thread.join()


def test_failure_that_nobody_takes_goes_to_the_excepthook(monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_value))

    def main():
        _core.spawn(fail, KeyError("lost"))
        settle()
        gc.collect()

    gs.run(main)

    assert ["'lost'"] == [str(error) for error in seen]


def test_telling_of_a_lost_failure_leaves_no_thread_object_behind(monkeypatch):
    """The task dies at the end of its own virtual thread, after the thread's locals: an object made then would stay."""
    monkeypatch.setattr(threading, "excepthook", lambda _args: None)

    def main():
        _core.spawn(fail, KeyError())
        settle()
        return list(threading._active)

    assert [threading.get_ident()] == gs.run(main)


@virtually
def test_finished_task_keeps_nothing_of_its_call():
    class Thing:
        pass

    thing = Thing()
    count = sys.getrefcount(thing)

    with gs.scope() as scope:
        task = scope.spawn(id, thing)

    assert count == sys.getrefcount(thing)
    assert task.done()


def test_run_returns_the_result_and_raises_the_bare_exception():
    assert 3 == gs.run(lambda value: value, 3)
    with pytest.raises(KeyError):
        gs.run(fail, KeyError())


def test_run_takes_a_coroutine_function():
    async def main(value):
        await asyncio.sleep(0)
        return value

    assert 4 == gs.run(main, 4)


def test_nested_run_is_an_error():
    with pytest.raises(RuntimeError, match="nested"):
        gs.run(gs.run, int)

    assert 0 == gs.run(int)


def test_run_in_several_os_threads_at_once():
    barrier = threading.Barrier(3)
    results = queue.SimpleQueue()

    def main(number):
        with gs.scope() as scope:
            tasks = [scope.spawn(lambda value=value: (gs.checkpoint(), value)[1]) for value in range(10)]
            barrier.wait()
        return number, sum(task.result() for task in tasks)

    threads = [threading.Thread(target=lambda number=n: results.put(gs.run(main, number))) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [(0, 45), (1, 45), (2, 45)] == sorted(results.get() for _ in range(3))


@pytest.mark.parametrize("arguments", [{"blocking": "spin"}, {"blocking": None}, {"carriers": 2}, {"carriers": 0}])
def test_run_refuses_what_does_not_work_yet_before_it_enters(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        gs.run(int, **arguments)


def test_run_cancels_what_no_scope_owns():
    seen = []

    def leftover():
        try:
            gs.sleep(1000)
        except asyncio.CancelledError:
            with gs.shield():
                gs.checkpoint()
            seen.append("cleaned up")
            raise

    def main():
        _core.spawn(leftover)
        settle()

    gs.run(main)

    assert ["cleaned up"] == seen
