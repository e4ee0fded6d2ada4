# SPDX-License-Identifier: Apache-2.0
"""Scopes: blocks that own the virtual threads spawned in them."""

from __future__ import annotations

import time
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gossamer import _core

if TYPE_CHECKING:
    from collections.abc import Iterator


class Scope(_core.ScopeBase):
    """A block that owns the virtual threads spawned in it; made by `scope`."""

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = timeout

    def __enter__(self) -> Scope:
        self._open(self._timeout)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        was_own = error is not None and _is_cancellation(error) and self._was_own_cancellation()
        if error is not None:
            self.cancel()
        interruption: BaseException | None = None
        try:
            self._join()
        except BaseException as raised:
            interruption = raised
        failures, timed_out = self._close(was_own)
        self._raise(None if was_own else error, interruption, failures, timed_out)
        return was_own

    def _raise(
        self,
        error: BaseException | None,
        interruption: BaseException | None,
        failures: list[BaseException] | None,
        timed_out: bool,
    ) -> None:
        for candidate in (interruption, error):
            if candidate is not None and not isinstance(candidate, Exception) and not _is_cancellation(candidate):
                if candidate is error:
                    return  # __exit__ lets it pass
                raise candidate
        errors = list(failures or [])
        if error is not None and not _is_cancellation(error):
            errors.insert(0, error)
        if timed_out and not errors:
            raise TimeoutError("the scope's time is up")
        if timed_out:
            errors.append(TimeoutError("the scope's time is up"))
        if errors:
            raise BaseExceptionGroup("errors in a scope", errors)
        if interruption is not None:
            raise interruption

    async def __aenter__(self) -> Scope:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return self.__exit__(kind, error, trace)


def _is_cancellation(error: BaseException) -> bool:
    return type(error).__name__ == "CancelledError" and type(error).__module__ == "asyncio.exceptions"


def scope(timeout: float | None = None) -> Scope:
    """Open a block that owns the virtual threads spawned in it.

    Leaving the block waits for all of them; the first failure cancels the rest.

    Args:
        timeout: Seconds after which everything in the scope is cancelled; None: no limit.

    Raises:
        ExceptionGroup: On leaving, when the body or a task failed.
        TimeoutError: On leaving, when the time was up.
    """
    return Scope(timeout)


class _Timeout(Scope):
    def _raise(
        self,
        error: BaseException | None,
        interruption: BaseException | None,
        failures: list[BaseException] | None,
        timed_out: bool,
    ) -> None:
        if timed_out and error is None:
            raise TimeoutError("the time is up")
        if interruption is not None:
            raise interruption


def timeout(seconds: float | None) -> Scope:
    """Cancel the body after ``seconds``, and raise the builtin TimeoutError on leaving.

    Args:
        seconds: Duration, 0 or more; None: no limit.
    """
    return _Timeout(seconds)


@contextmanager
def shield() -> Iterator[None]:
    """Hold back cancellation in the body: clean-up code in it may wait."""
    _core.shield(+1)
    try:
        yield
    finally:
        _core.shield(-1)


@contextmanager
def no_switch() -> Iterator[None]:
    """Let nothing else of this hub run in the body. A wait in it raises RuntimeError."""
    _core.no_switch(+1)
    try:
        yield
    finally:
        _core.no_switch(-1)


def sleep(seconds: float, /) -> None:
    """Park the current virtual thread for at least ``seconds``.

    Other virtual threads run meanwhile. On an ordinary thread this is `time.sleep`.

    Args:
        seconds: Duration in seconds, 0 or more; 0 yields once.

    Raises:
        ValueError: ``seconds`` is negative or NaN; raised before anything waits.
        asyncio.CancelledError: The virtual thread was cancelled while it slept.
    """
    time.sleep(seconds)


def checkpoint() -> None:
    """Raise a pending cancellation; otherwise let every ready virtual thread of the hub run once."""
    _core.checkpoint()


def current() -> _core.Task[Any] | None:
    """Return the Task of the running virtual thread; None for the main one, a `threading.Thread` or an OS thread."""
    return _core.current()
