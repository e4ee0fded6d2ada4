# SPDX-License-Identifier: Apache-2.0
"""The `threading.Thread` object of a spawned task.

`threading.current_thread()` makes an object for a thread that it does not know, of the class `threading._DummyThread`.
Ours takes that class's place. For a task it has a name that tells what runs, it knows when the task has ended, it
can be joined, and it leaves `threading._active` with the task: the identity is used again. Any other thread that
`threading` did
not start has what this version of Python gives it.
"""

from __future__ import annotations

import itertools
import sys
import threading
from types import FrameType

from gossamer import _core

_numbers = itertools.count(1)
_of_this_thread = threading.local()


class _Forget:
    """Dies with the locals of its thread, and takes the thread's object out of `threading._active`."""

    def __init__(self, thread: threading.Thread) -> None:
        self._thread = thread
        self._ident = thread.ident

    def __del__(self) -> None:
        with threading._active_limbo_lock:  # type: ignore[attr-defined]
            if threading._active.get(self._ident) is self._thread:  # type: ignore[attr-defined]
                del threading._active[self._ident]  # type: ignore[attr-defined]


class _DummyThread(threading._DummyThread):
    """A thread that `threading` did not start."""

    def __init__(self) -> None:
        super().__init__()
        self._task = _core.current()
        if self._task is not None:
            self._name = f"Task-{next(_numbers)} ({_outermost_function(sys._getframe(1))})"
            _of_this_thread.forget = _Forget(self)

    def is_alive(self) -> bool:
        """Return whether the thread runs."""
        return super().is_alive() if self._task is None else not self._task.done()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the task has ended; a thread without one cannot be joined."""
        if self._task is None:
            super().join(timeout)
        elif self._task is _core.current():
            raise RuntimeError("cannot join current thread")
        else:
            self._task._wait(timeout)


def _outermost_function(frame: FrameType) -> str:
    while frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_qualname


_original_class = threading._DummyThread


def install() -> None:
    """Make `threading.current_thread` use our class."""
    threading._DummyThread = _DummyThread  # type: ignore[misc]


def uninstall() -> None:
    """Put the original class back; objects made meanwhile stay what they are."""
    threading._DummyThread = _original_class  # type: ignore[misc]


__all__ = ["install", "uninstall"]
