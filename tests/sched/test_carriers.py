# SPDX-License-Identifier: Apache-2.0
"""Several OS threads in a `run` of their own at once: each sees, cancels and traces the virtual threads of the others.

The other carrier has a virtual thread that is parked; it stays so until the test lets it go.
"""

from __future__ import annotations

import contextlib
import ctypes
import dis
import io
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import gossamer as gs
import pytest


class OtherCarrier:
    """An OS thread with a virtual thread that is parked in `parked`."""

    def __init__(self, in_task: Callable[[], Any] = lambda: None) -> None:
        self.gate = threading.Event()
        self.task: gs.Task[Any]
        self.scope: gs.Scope
        self._in_task = in_task
        self._is_up = threading.Event()
        self.thread = threading.Thread(target=gs.run, args=(self._main,), name="other")

    def _main(self) -> None:
        with contextlib.suppress(BaseExceptionGroup), gs.scope() as self.scope:
            self.task = self.scope.spawn(self.parked)
            gs.checkpoint()
            self._is_up.set()
            self.gate.wait()

    def parked(self) -> Any:
        """Handle an exception, and wait meanwhile."""
        try:
            raise KeyError("handled")
        except KeyError:
            self.gate.wait()
        return self._in_task()

    def __enter__(self) -> OtherCarrier:
        self.thread.start()
        self._is_up.wait()
        return self

    def __exit__(self, *_error: object) -> None:
        self.gate.set()
        self.thread.join()


@pytest.fixture(params=["ordinary", "virtual"])
def from_thread(request: pytest.FixtureRequest) -> Callable[[Callable[[], Any]], Any]:
    """Calls a function on this thread, as an ordinary one or as the main virtual thread of a carrier."""
    return gs.run if request.param == "virtual" else lambda function: function()


def names_of(frame: Any) -> list[str]:
    names = []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


def test_snapshot_has_the_virtual_threads_of_every_carrier(from_thread):
    with OtherCarrier() as other:
        threads = {thread.ident: thread for thread in from_thread(gs.snapshot)}

        task = threads[other.task.ident]
        main = threads[other.thread.ident]
    assert ("parked", "Lock.acquire", other.thread.ident) == (task.state, task.waits_for, task.carrier)
    assert "parked" == [call.name for call in task.stack if call.filename == __file__][-1]
    assert ("main of other", True) == (main.name, main.is_main)


def test_dump_tells_of_every_carrier(from_thread):
    file = io.StringIO()
    with OtherCarrier(), OtherCarrier():
        from_thread(lambda: gs.dump(file=file))

    assert "virtual threads on " in file.getvalue().splitlines()[0]
    assert 2 == file.getvalue().count("OtherCarrier.parked): parked in Lock.acquire")


def test_a_running_virtual_thread_of_another_carrier_is_seen():
    """It has no time to park: it computes until it was seen."""
    seen: list[bool] = []
    is_up = threading.Event()

    def compute() -> None:
        is_up.set()
        while not seen:  # without a call: the frame of one may have ended before it is looked at
            pass

    thread = threading.Thread(target=gs.run, args=(compute,))
    thread.start()
    is_up.wait()
    running = [each for each in gs.snapshot() if each.ident == thread.ident]
    frames = names_of(sys._current_frames()[thread.ident])
    seen.append(True)
    thread.join()

    assert ["running"] == [each.state for each in running]
    assert "compute" in [call.name for call in running[0].stack]
    assert "compute" in frames


def test_current_frames_and_exceptions_have_those_of_other_carriers(from_thread):
    with OtherCarrier() as other:
        ident = other.task.ident
        frames = from_thread(lambda: names_of(sys._current_frames()[ident]))
        exceptions = from_thread(sys._current_exceptions)

    assert "parked" in frames
    assert "'handled'" == str(exceptions[ident])


def test_a_task_is_cancelled_from_another_os_thread(from_thread):
    with OtherCarrier() as other:
        assert from_thread(other.task.cancel)
        assert other.task._wait(None)

    assert other.task.cancelled()
    assert not other.task.cancel()


def test_a_scope_is_cancelled_from_another_os_thread(from_thread):
    with OtherCarrier() as other:
        from_thread(other.scope.cancel)
        assert other.task._wait(None)

    assert other.task.cancelled()
    assert other.scope.cancelled


def test_settrace_all_threads_reaches_the_parked_threads_of_other_carriers(from_thread):
    def trace(*_):
        return None

    def set_it(function) -> None:
        threading.settrace_all_threads(function)
        threading.settrace(None)

    with OtherCarrier(sys.gettrace) as other:
        from_thread(lambda: set_it(trace))
        other.gate.set()
        seen = other.task.result()
        from_thread(lambda: set_it(None))

    assert seen is trace
    assert sys.gettrace() is None


def test_setprofile_all_threads_can_be_taken_back_from_other_carriers(from_thread):
    with OtherCarrier(sys.getprofile) as other:
        from_thread(lambda: threading.setprofile_all_threads(lambda *_: None))
        from_thread(lambda: threading.setprofile_all_threads(None))
        other.gate.set()

        assert other.task.result() is None


def test_a_profile_function_that_was_taken_back_everywhere_leaves_nothing_instrumented(from_thread):
    """Else calls of Python by Python take C stack from then on, and time."""
    from_thread(lambda: threading.setprofile_all_threads(lambda *_: None))
    from_thread(lambda: threading.setprofile_all_threads(None))
    from_thread(lambda: threading.settrace_all_threads(lambda *_: None))
    from_thread(lambda: threading.settrace_all_threads(None))

    def callee() -> None:
        pass

    def caller() -> None:
        callee()

    caller()
    sys.monitoring.restart_events()
    caller()
    names = {instruction.opname for instruction in dis.get_instructions(caller, adaptive=True)}
    assert not {name for name in names if name.startswith("INSTRUMENTED")}


def test_an_asynchronous_exception_reaches_a_parked_thread_of_another_carrier(from_thread):
    with OtherCarrier() as other:
        set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
        ident = ctypes.c_ulong(other.task.ident)
        count = from_thread(lambda: set_exception(ident, ctypes.py_object(ZeroDivisionError)))
        other.gate.set()

        assert 1 == count
        assert isinstance(other.task.exception(), ZeroDivisionError)


def test_identities_of_other_carriers_stand_for_them_in_the_kernel(from_thread):
    with OtherCarrier() as other:
        clock = from_thread(lambda: time.pthread_getcpuclockid(other.task.ident))

        assert time.pthread_getcpuclockid(other.thread.ident) == clock
        from_thread(lambda: signal.pthread_kill(other.task.ident, 0))
