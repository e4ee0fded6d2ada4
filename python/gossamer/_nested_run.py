# SPDX-License-Identifier: Apache-2.0
"""`asyncio.run` inside of a running loop, as Jupyter, tests and libraries call it: it runs apart, and the caller waits.

The function's code is replaced, so that names bound early follow: with the first task that runs on a stack of its own,
or with the bridge. Where no loop runs it does what it always did.
"""

from __future__ import annotations

import asyncio.runners
from types import CodeType, FunctionType

_original: FunctionType | None = None


def _run(main, *, debug=None, loop_factory=None):  # type: ignore[no-untyped-def]
    from gossamer import _nested_run

    if events._get_running_loop() is not None:  # type: ignore[name-defined]  # noqa: F821
        from gossamer import _bridge

        return _bridge.run_nested(_nested_run.original(), main, debug, loop_factory)
    return _nested_run.original()(main, debug=debug, loop_factory=loop_factory)


def original() -> FunctionType:
    """Return the function as it was."""
    assert _original is not None
    return _original


def install() -> None:
    """Replace the function's code, once."""
    global _original
    run = asyncio.runners.run
    if _original is None and isinstance(run, FunctionType):
        _original = FunctionType(run.__code__, run.__globals__, run.__name__, run.__defaults__, run.__closure__)
        _original.__kwdefaults__ = run.__kwdefaults__
        run.__code__ = _run.__code__


def uninstall() -> None:
    """Put the code back."""
    global _original
    if _original is not None:
        code: CodeType = _original.__code__
        asyncio.runners.run.__code__ = code
        _original = None
