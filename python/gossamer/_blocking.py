# SPDX-License-Identifier: Apache-2.0
"""What a blocking call inside an asyncio task does: parks the task, blocks the loop as ever, or is an error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gossamer import _core, _run


@contextmanager
def blocking_in_tasks(mode: str, /) -> Iterator[None]:
    """Choose what a blocking call in an asyncio task does, for loops that this thread runs meanwhile.

    It may be around ``asyncio.run()`` of any loop, or inside a task of a running one. It makes an ordinary thread a
    carrier for that while, and until tasks that are parked when it is left have gone on.

    Args:
        mode: "park" suspends the task alone; "block" blocks the loop, as on plain asyncio; "error" raises RuntimeError,
            with the call and its line.

    Raises:
        ValueError: ``mode`` is none of these.
    """
    if mode not in _run.BLOCKING:
        raise ValueError(f"{mode!r} is none of {', '.join(map(repr, _run.BLOCKING))}")
    enters = not _core.is_virtual() and mode != "block"
    if enters:
        _run.enter(virtual_threads=False)
    before = _core.block_in_tasks(_run.BLOCKING.index(mode)) if _core.is_virtual() else None
    try:
        yield
    finally:
        if enters:
            _leave()
        elif before is not None:
            _core.block_in_tasks(before)


def _leave() -> None:
    """Leave at once, or soon after the last step of a task on a stack of its own: that stack belongs to the hub."""
    _core.block_in_tasks(_run.BLOCKING.index("block"))
    if _core.has_steps():
        _core.call_when_no_step_is_left(_leave_soon)
    else:
        _run.leave(grace=0)


def _leave_soon() -> None:
    """Leave between two callbacks of the running loop; without one the thread stays a carrier."""
    import asyncio

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    loop.call_soon(_leave)


def make_error(what: str) -> RuntimeError:
    """Make the error of a blocking call in a task; called by the extension, inside of that call."""
    from gossamer._dump import line_of_program, stack_of

    call = line_of_program(stack_of(sys._getframe(1)))
    where = f" at {call.filename}:{call.lineno} in {call.name}" if call else ""
    where += f": {call.line}" if call and call.line else ""
    return RuntimeError(f"{what} would block the event loop{where}")
