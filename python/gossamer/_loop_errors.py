# SPDX-License-Identifier: Apache-2.0
"""Errors that nobody takes from asyncio, and that it only tells of, count as lost: those of tasks and futures that
nobody asked, of callbacks, protocols and servers.

All of them reach the default exception handler of their loop; a handler of the program's own takes the responsibility
unless it calls that one. The code of asyncio's, which is ours too, is replaced, so that whoever has it calls ours. One
that is written in C, as of loops that are not built on asyncio's, has a method of ours put before it, in the class that
its loop's Python part has for that.
"""

from __future__ import annotations

import asyncio
import weakref
from asyncio.base_events import BaseEventLoop
from types import FunctionType
from typing import Any

from gossamer import _core

_NAME = "default_exception_handler"
_original: FunctionType | None = None
_seen: weakref.WeakSet[type] = weakref.WeakSet()
_extended: weakref.WeakSet[type] = weakref.WeakSet()  # of them: those with a method of ours


def _default_exception_handler(self, context):  # type: ignore[no-untyped-def]
    from gossamer import _loop_errors

    return _loop_errors.handle(self, context)


def handle(loop: BaseEventLoop, context: dict[str, Any]) -> None:
    """Tell of an error as asyncio does, after it was counted."""
    _count(context)
    assert _original is not None
    _original(loop, context)


def _count(context: dict[str, Any]) -> None:
    error = context.get("exception")
    # The others end the program by themselves, or were asked for.
    if isinstance(error, BaseException) and not isinstance(
        error, asyncio.CancelledError | SystemExit | KeyboardInterrupt
    ):
        _core.note_lost_error()


def install() -> None:
    """Replace the handler's code, once."""
    global _original
    handler = BaseEventLoop.default_exception_handler
    if _original is None and isinstance(handler, FunctionType):
        _original = FunctionType(handler.__code__, handler.__globals__, handler.__name__, handler.__defaults__)
        handler.__code__ = _default_exception_handler.__code__


def watch(loop: object) -> None:
    """See to the errors of a loop that begins to run."""
    kind = type(loop)
    if kind in _seen:
        return
    _seen.add(kind)
    extensible: type | None = None
    for each in kind.__mro__:
        handler = each.__dict__.get(_NAME)
        if handler is None:
            extensible = each
        elif not isinstance(handler, FunctionType):
            if extensible is not None:
                _extend(extensible)
            return


def _extend(kind: type) -> None:
    """Give a class that inherits a handler written in C a method before it, if it takes one."""

    def default_exception_handler(self: Any, context: dict[str, Any]) -> None:
        _count(context)
        getattr(super(kind, self), _NAME)(context)

    try:
        setattr(kind, _NAME, default_exception_handler)
    except TypeError:
        return  # written in C too
    _extended.add(kind)


def uninstall() -> None:
    """Put the code back."""
    global _original
    for kind in _extended:
        delattr(kind, _NAME)
    _extended.clear()
    _seen.clear()
    if _original is not None:
        BaseEventLoop.default_exception_handler.__code__ = _original.__code__
        _original = None
