# SPDX-License-Identifier: Apache-2.0
"""What a blocking call inside an asyncio task does: parks the task, blocks the loop as ever, or is an error."""

from __future__ import annotations

import sys
import threading
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
    if not _core.is_virtual():
        if mode == "block":
            yield
            return
        _run.enter(virtual_threads=False)
        _ours.is_entered = True
    _ours.users += 1
    before = _core.block_in_tasks(_run.BLOCKING.index(mode))
    try:
        yield
    finally:
        _ours.users -= 1
        _core.block_in_tasks(before)
        if _ours.is_entered and _ours.users == 0:
            _core.block_in_tasks(_run.BLOCKING.index("block"))
            _leave()


class _Ours(threading.local):
    """Of this thread: whether it is a carrier because of us, and how many blocks it is inside of."""

    is_entered = False
    users = 0


_ours = _Ours()


def _leave() -> None:
    """Leave at once, or soon after the last step of a task on a stack of its own: that stack belongs to the hub."""
    if _ours.users > 0 or not _ours.is_entered:
        return  # another block has begun meanwhile, and will see to it
    if _core.has_steps():
        _core.call_when_no_step_is_left(_leave_soon)
    else:
        _ours.is_entered = False
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
