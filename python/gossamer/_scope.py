# SPDX-License-Identifier: Apache-2.0
"""Scopes: blocks that own the virtual threads spawned in them."""

from __future__ import annotations

import sys
from time import sleep as _sleep
from types import TracebackType

from gossamer import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from typing import Any, Self

_PASSING = (SystemExit, KeyboardInterrupt)  # never in a group, as with asyncio.TaskGroup


class _TaskOwner:
    """The asyncio task that entered a scope: cancelled as `asyncio.TaskGroup` cancels its parent."""

    __slots__ = ("_has_cancelled", "_is_over", "_loop", "_requests_at_entry", "_task")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task
        self._loop = task.get_loop()
        self._requests_at_entry = task.cancelling()
        self._has_cancelled = self._is_over = False

    def cancel_from_anywhere(self) -> None:
        """Cancel the task soon, unless it has left the scope by then, or its loop is closed: it never runs again."""
        try:
            self._loop.call_soon_threadsafe(self._cancel)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _cancel(self) -> None:
        if not self._is_over and not self._task.done():
            self._has_cancelled = True
            self._task.cancel()

    def leave(self, error: BaseException | None) -> bool:
        """The task leaves the scope: take our cancellation back; return whether ``error`` is it."""
        self._is_over = True
        if not self._has_cancelled:
            return False
        from asyncio import CancelledError  # a task runs, so it is imported

        left = self._task.uncancel()
        return isinstance(error, CancelledError) and left <= self._requests_at_entry


def _owner() -> _TaskOwner | None:
    """The asyncio task that runs, if one does."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or getattr(asyncio, "_get_running_loop", _no_loop)() is None:
        return None
    task = asyncio.current_task()
    return None if task is None else _TaskOwner(task)


def _no_loop() -> None:
    """Stand for a function of asyncio that is being imported."""


class Scope(_core.ScopeBase):
    """A block that owns the virtual threads spawned in it; made by `scope`."""

    __slots__ = ("_owner", "_timeout")

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = _checked(timeout)

    def __enter__(self) -> Self:
        owner = self._owner = _owner()
        self._open(self._timeout, None if owner is None else owner.cancel_from_anywhere)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        owner = self._owner
        outcome = self._leave(error, owner is not None and owner.leave(error))
        return False if outcome is None else _raise_outcome(error, *outcome)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return self.__exit__(kind, error, trace)


def _raise_outcome(
    error: BaseException | None,
    failures: list[BaseException] | None,
    interruption: BaseException | None,
    is_own_cancellation: bool,
    was_cut_short: bool,
) -> bool:
    """Decide what leaving a scope raises; returns whether ``error`` ends here."""
    failures = failures or []
    for candidate in (interruption, error, *failures):
        if isinstance(candidate, _PASSING):
            if candidate is error:
                return False
            raise candidate
    if len(failures) == 1 and failures[0] is error and isinstance(error, GeneratorExit):
        return False
    if was_cut_short:
        time_up = TimeoutError("the scope's time is up")
        if not failures:
            raise time_up from (error if is_own_cancellation else None)
        failures.append(time_up)
    is_foreign = error is not None and not is_own_cancellation and all(error is not failure for failure in failures)
    if failures:
        if is_foreign or interruption is not None:
            _core.raise_cancellation_again()  # the group takes the place of the exception that told of it
        raise BaseExceptionGroup("errors in a scope", failures) from None
    if interruption is not None:
        raise interruption
    return is_own_cancellation


def _checked(seconds: float | None) -> float | None:
    if seconds is None:
        return None
    if not seconds >= 0:
        raise ValueError("a timeout is 0 seconds or more")
    return None if seconds == float("inf") else seconds


def scope(timeout: float | None = None) -> Scope:
    """Open a block that owns the virtual threads spawned in it.

    Leaving the block waits for all of them. The first failure, of the body or of a task, cancels the rest; a task that
    ends by cancellation is no failure.

    Args:
        timeout: Seconds, 0 or more, after which everything in the scope is cancelled; None: no limit.

    Raises:
        ExceptionGroup: On leaving, when the body or a task failed. SystemExit and KeyboardInterrupt come bare.
        TimeoutError: On leaving, when the time was up and something was cancelled for it.
        ValueError: ``timeout`` is negative or NaN.
        RuntimeError: On entering, outside of Gossamer.
    """
    return Scope(timeout)


class Timeout:
    """A block with a time limit; made by `timeout`."""

    __slots__ = ("_owner", "_scope", "_seconds")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = _checked(seconds)
        self._scope = _core.ScopeBase()

    def __enter__(self) -> Self:
        owner = self._owner = _owner()
        self._scope._open(self._seconds, None if owner is None else owner.cancel_from_anywhere)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        owner = self._owner
        outcome = self._scope._leave(error, owner is not None and owner.leave(error))
        if outcome is not None:
            _failures, _interruption, is_own_cancellation, was_cut_short = outcome
            if was_cut_short and is_own_cancellation:
                raise TimeoutError("the time is up") from error

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


def timeout(seconds: float | None, /) -> Timeout:
    """Cancel the body's wait after ``seconds``, and raise the builtin TimeoutError on leaving.

    A body that ends without being interrupted has succeeded, however long it took.

    Args:
        seconds: Duration, 0 or more; 0 interrupts the first wait; None: no limit.

    Raises:
        TimeoutError: On leaving, when a wait of the body was interrupted.
        ValueError: ``seconds`` is negative or NaN.
        RuntimeError: On entering, outside of Gossamer.
    """
    return Timeout(seconds)


class _Shield:
    __slots__ = ()

    def __enter__(self) -> None:
        _core.shield(+1)

    def __exit__(self, *_error: object) -> None:
        _core.shield(-1)


class _NoSwitch:
    __slots__ = ()

    def __enter__(self) -> None:
        _core.no_switch(+1)

    def __exit__(self, *_error: object) -> None:
        _core.no_switch(-1)


def shield() -> _Shield:
    """Hold back cancellation in the body: clean-up code in it may wait.

    A cancellation that came meanwhile is raised at the first wait after the body. On an ordinary thread this does
    nothing.
    """
    return _Shield()


def no_switch() -> _NoSwitch:
    """Let nothing else of this hub run in the body: it is not preempted, and a wait in it raises RuntimeError.

    On an ordinary thread it does nothing.
    """
    return _NoSwitch()


def sleep(seconds: float, /) -> None:
    """Park the current virtual thread for at least ``seconds``.

    Other virtual threads run meanwhile. On an ordinary thread this is `time.sleep`.

    Args:
        seconds: Duration in seconds, 0 or more; 0 is `checkpoint`.

    Raises:
        ValueError: ``seconds`` is negative or NaN; raised before anything waits.
        asyncio.CancelledError: The virtual thread was cancelled while it slept.
    """
    _sleep(seconds)


def checkpoint() -> None:
    """Raise a pending cancellation; otherwise let every ready virtual thread of the hub run before it returns.

    On an ordinary thread it does nothing.

    Raises:
        asyncio.CancelledError: The virtual thread was cancelled.
    """
    _core.checkpoint()


def current() -> _core.Task[Any] | None:
    """Return the Task of the running virtual thread; None for the main one, a `threading.Thread` or an OS thread."""
    return _core.current()
