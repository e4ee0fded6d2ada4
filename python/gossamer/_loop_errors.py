# SPDX-License-Identifier: Apache-2.0
"""Errors that nobody takes from asyncio, and that it only tells of, count as lost: those of tasks and futures that
nobody asked, of callbacks, protocols and servers.

All of them reach the default exception handler of asyncio's loops, ours among them; a handler of the program's own
takes the responsibility unless it calls that one. Its code is replaced, so that whoever has it calls ours.
"""

from __future__ import annotations

import asyncio
from asyncio.base_events import BaseEventLoop
from types import FunctionType
from typing import Any

from gossamer import _core

_original: FunctionType | None = None


def _default_exception_handler(self, context):  # type: ignore[no-untyped-def]
    from gossamer import _loop_errors

    return _loop_errors.handle(self, context)


def handle(loop: BaseEventLoop, context: dict[str, Any]) -> None:
    """Tell of an error as asyncio does, after it was counted."""
    error = context.get("exception")
    # The others end the program by themselves, or were asked for.
    if isinstance(error, BaseException) and not isinstance(
        error, asyncio.CancelledError | SystemExit | KeyboardInterrupt
    ):
        _core.note_lost_error()
    assert _original is not None
    _original(loop, context)


def install() -> None:
    """Replace the handler's code, once."""
    global _original
    handler = BaseEventLoop.default_exception_handler
    if _original is None and isinstance(handler, FunctionType):
        _original = FunctionType(handler.__code__, handler.__globals__, handler.__name__, handler.__defaults__)
        handler.__code__ = _default_exception_handler.__code__


def uninstall() -> None:
    """Put the code back."""
    global _original
    if _original is not None:
        BaseEventLoop.default_exception_handler.__code__ = _original.__code__
        _original = None
