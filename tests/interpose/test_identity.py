# SPDX-License-Identifier: Apache-2.0
"""A virtual thread is a thread: its identity, its Thread object, and the functions that see or change all threads."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import decimal
import gc
import signal
import sys
import threading
import time

import gossamer as gs
import pytest


def parked(event: threading.Event) -> None:
    """Wait while an exception is handled."""
    try:
        raise KeyError("handled")
    except KeyError:
        event.wait()


def with_parked(look) -> None:
    """Run ``look(task)`` while a virtual thread is parked in `parked`."""

    def main() -> None:
        event = threading.Event()
        with gs.scope() as scope:
            task = scope.spawn(parked, event)
            gs.checkpoint()
            try:
                look(task)
            finally:
                event.set()

    gs.run(main)


def test_main_keeps_the_identity_of_its_os_thread():
    before = threading.get_ident()

    assert before == gs.run(threading.get_ident)


def test_each_virtual_thread_has_an_identity_of_its_own():
    def main() -> list[int]:
        with gs.scope() as scope:
            tasks = [scope.spawn(threading.get_ident) for _ in range(3)]
        return [task.result() for task in tasks] + [threading.get_ident()]

    assert 4 == len(set(gs.run(main)))


def test_a_task_has_a_thread_object_named_for_its_function():
    def fetch() -> str:
        return threading.current_thread().name

    with_name = gs.run(lambda: _result_of(fetch))

    assert with_name.startswith("Task-")
    assert "fetch" in with_name


def _result_of(function):
    with gs.scope() as scope:
        task = scope.spawn(function)
    return task.result()


def test_a_tasks_thread_object_knows_that_it_has_ended():
    def look() -> tuple[threading.Thread, bool, bool]:
        thread = threading.current_thread()
        return thread, thread.is_alive(), thread in threading.enumerate()

    def main() -> tuple[bool, bool, bool, bool]:
        thread, was_alive, was_listed = _result_of(look)
        thread.join()
        return was_alive, was_listed, thread.is_alive(), thread in threading.enumerate()

    assert (True, True, False, False) == gs.run(main)


def test_thread_objects_of_ended_tasks_are_not_kept():
    def main() -> int:
        for _ in range(20):
            with gs.scope() as scope:
                for _ in range(100):
                    scope.spawn(threading.current_thread)
        return len(threading._active)

    assert 1 == gs.run(main)


def test_thread_local_data_dies_with_its_virtual_thread():
    local = threading.local()
    ended = []

    class Tracked:
        def __del__(self) -> None:
            time.sleep(0)  # a finaliser may wait
            ended.append(threading.get_ident())

    def use() -> int:
        local.value = Tracked()
        gs.checkpoint()
        return threading.get_ident()

    def main() -> list[int]:
        with gs.scope() as scope:
            tasks = [scope.spawn(use) for _ in range(3)]
        assert not hasattr(local, "value")
        return [task.result() for task in tasks]

    assert sorted(gs.run(main)) == sorted(ended)


def test_current_frames_shows_a_parked_virtual_thread_under_its_identity():
    def look(task: gs.Task) -> None:
        frames = sys._current_frames()

        names = set()
        frame = frames[task.ident]
        while frame is not None:
            names.add(frame.f_code.co_name)
            frame = frame.f_back
        assert "parked" in names
        assert frames[threading.get_ident()] is sys._getframe()

    with_parked(look)


def test_current_frames_of_main_seen_from_a_virtual_thread():
    def look() -> list[str]:
        frame = sys._current_frames()[threading.main_thread().ident]
        names = []
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        return names

    def waiting_main() -> list[str]:
        return _result_of(look)

    assert "waiting_main" in gs.run(waiting_main)


def test_current_exceptions_shows_what_a_parked_virtual_thread_handles():
    def look(task: gs.Task) -> None:
        exceptions = sys._current_exceptions()

        assert "'handled'" == str(exceptions[task.ident])
        assert exceptions[threading.get_ident()] is None

    with_parked(look)


def test_an_asynchronous_exception_is_raised_in_the_virtual_thread_it_is_for():
    raised_in = []

    def victim(is_up: threading.Event) -> None:
        is_up.set()
        try:
            while True:
                gs.checkpoint()
        except ZeroDivisionError:
            raised_in.append(threading.get_ident())

    def main() -> int:
        is_up = threading.Event()
        with gs.scope() as scope:
            task = scope.spawn(victim, is_up)
            is_up.wait()
            ident = task.ident
            count = ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(ident), ctypes.py_object(ZeroDivisionError)
            )
            assert 1 == count
        return ident

    assert [gs.run(main)] == raised_in


def test_an_asynchronous_exception_for_nobody_reaches_nobody():
    set_async = ctypes.pythonapi.PyThreadState_SetAsyncExc

    assert 0 == gs.run(lambda: set_async(ctypes.c_ulong(1), ctypes.py_object(ZeroDivisionError)))


def test_pthread_kill_of_a_virtual_thread_signals_its_carrier():
    got = []
    previous = signal.signal(signal.SIGUSR1, lambda *_: got.append(threading.get_ident()))

    def look(task: gs.Task) -> None:
        signal.pthread_kill(task.ident, signal.SIGUSR1)
        gs.checkpoint()

    try:
        with_parked(look)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert [threading.main_thread().ident] == got


def test_the_cpu_clock_of_a_virtual_thread_is_its_carriers():
    def look(task: gs.Task) -> None:
        clock = time.pthread_getcpuclockid(task.ident)

        assert time.pthread_getcpuclockid(threading.get_ident()) == clock

    with_parked(look)


def test_settrace_all_threads_reaches_parked_virtual_threads():
    def trace(*_):
        return None

    def task_body(is_up: threading.Event, event: threading.Event):
        is_up.set()
        event.wait()
        return sys.gettrace()

    def main():
        is_up, event = threading.Event(), threading.Event()
        with gs.scope() as scope:
            task = scope.spawn(task_body, is_up, event)
            is_up.wait()
            threading.settrace_all_threads(trace)
            event.set()
            seen = task.result()
            threading.settrace_all_threads(None)
        return seen

    assert gs.run(main) is trace


def test_threading_settrace_is_for_spawned_tasks_too():
    calls = []

    def trace(frame, event, argument):
        calls.append(frame.f_code.co_name)

    def traced_body() -> None:
        return None

    def main() -> None:
        threading.settrace(trace)
        try:
            _result_of(traced_body)
        finally:
            threading.settrace(None)

    gs.run(main)

    assert "traced_body" in calls


def test_sys_settrace_is_per_virtual_thread():
    def trace(*_):
        return None

    def setter() -> None:
        sys.settrace(trace)
        gs.checkpoint()
        assert sys.gettrace() is trace

    def other():
        return sys.gettrace()

    def main():
        with gs.scope() as scope:
            scope.spawn(setter)
            task = scope.spawn(other)
        return task.result()

    before = sys.gettrace()
    assert gs.run(main) is None
    assert sys.gettrace() is before


def test_ten_asyncio_runs_at_once_each_see_their_own_loop_and_task():
    async def body() -> bool:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        for _ in range(5):
            await asyncio.sleep(0)
            gs.checkpoint()
            if asyncio.get_running_loop() is not loop or asyncio.current_task() is not task:
                return False
        return True

    def main() -> list[bool]:
        with gs.scope() as scope:
            tasks = [scope.spawn(lambda: asyncio.run(body())) for _ in range(10)]
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
        return [task.result() for task in tasks]

    assert [True] * 10 == gs.run(main)


def test_a_virtual_thread_beside_a_running_loop_has_no_loop():
    async def body() -> None:
        gs.checkpoint()

    def beside() -> object:
        return asyncio._get_running_loop()

    def main() -> object:
        with gs.scope() as scope:
            scope.spawn(lambda: asyncio.run(body()))
            return scope.spawn(beside).result()

    assert gs.run(main) is None


def test_context_variables_and_decimal_contexts_are_per_virtual_thread():
    variable = contextvars.ContextVar("variable", default=0)

    def body(number: int) -> tuple[int, int]:
        variable.set(number)
        with decimal.localcontext(prec=number):
            gs.checkpoint()
            return variable.get(), decimal.getcontext().prec

    def main() -> list[tuple[int, int]]:
        with gs.scope() as scope:
            tasks = [scope.spawn(body, number) for number in range(1, 6)]
        return [task.result() for task in tasks]

    assert [(number, number) for number in range(1, 6)] == gs.run(main)


def test_a_generator_parked_in_except_keeps_its_exception():
    def generator():
        try:
            raise KeyError("inner")
        except KeyError:
            gs.checkpoint()
            yield str(sys.exception())

    def body(number: int) -> tuple[str, str]:
        try:
            raise ValueError(number)
        except ValueError:
            inner = next(generator())
            gs.checkpoint()
            return inner, str(sys.exception())

    def main() -> list[tuple[str, str]]:
        with gs.scope() as scope:
            tasks = [scope.spawn(body, number) for number in range(3)]
        return [task.result() for task in tasks]

    assert [("'inner'", str(number)) for number in range(3)] == gs.run(main)


def test_recursion_ends_in_recursion_error_on_main_and_on_a_virtual_thread():
    def python_depth(level: int = 0) -> int:
        try:
            return python_depth(level + 1)
        except RecursionError:
            return level

    def c_recursion() -> str:
        nested: list = []
        for _ in range(100_000):
            nested = [nested]
        try:
            repr(nested)
        except RecursionError:
            return "RecursionError"
        finally:
            while nested:
                nested = nested[0]
        return "none"

    def both() -> tuple[bool, str]:
        return python_depth() > sys.getrecursionlimit() * 3 // 4, c_recursion()

    def main() -> list[tuple[bool, str]]:
        return [both(), _result_of(both), both()]

    assert [(True, "RecursionError")] * 5 == [both(), *gs.run(main), both()]


def test_cprofile_in_a_virtual_thread_sees_its_calls_only():
    import cProfile
    import pstats

    def profiled_call() -> None:
        gs.checkpoint()

    def other_call() -> None:
        gs.checkpoint()

    def body() -> set[str]:
        profile = cProfile.Profile()
        profile.runcall(profiled_call)
        return {name for _, _, name in pstats.Stats(profile).stats}

    def main() -> set[str]:
        with gs.scope() as scope:
            task = scope.spawn(body)
            scope.spawn(other_call)
        return task.result()

    names = gs.run(main)
    assert "profiled_call" in names
    assert "other_call" not in names


def test_thread_objects_of_ended_tasks_are_freed():
    def main() -> int:
        with gs.scope() as scope:
            for _ in range(100):
                scope.spawn(threading.current_thread)
        gc.collect()
        return sum(isinstance(thing, threading.Thread) for thing in gc.get_objects())

    before = sum(isinstance(thing, threading.Thread) for thing in gc.get_objects())
    assert gs.run(main) <= before + 1
