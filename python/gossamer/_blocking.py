# SPDX-License-Identifier: Apache-2.0
"""What a blocking call inside an asyncio task does: parks the task, blocks the loop as ever, or is an error."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from gossamer import _core, _run, _running_loops

GRACE = 5.0  # seconds that virtual threads started on an ordinary thread that is a carrier get at the end of that


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
    if not _core.is_virtual() and mode == "block":
        yield
        return
    with _carrier, _modes.chosen(_run.BLOCKING.index(mode)):
        yield


@contextmanager
def carrier_for_our_loop(mode: str | None, /) -> Iterator[None]:
    """Make an ordinary thread a carrier while our loop runs in it, and until tasks that are parked then have gone on.

    Args:
        mode: What a blocking call in a task of the loop does; None: what it does in this virtual thread, which on an
            ordinary thread is "park".
    """
    if mode is None and not _carrier.has_mode():
        mode = "park"
    with _carrier, nullcontext() if mode is None else _modes.chosen(_run.BLOCKING.index(mode)):
        yield


def leave_carrier_of_closed_loop() -> None:
    """Leave, if this thread is a carrier only because tasks were parked when their loop stopped, and none is to go on.

    Tasks of the closed loop that something else keeps are closed where they are parked.
    """
    _carrier._leave()


class _Modes(threading.local):
    """What was chosen in this virtual thread, for as long as it holds: the last counts.

    Tasks that choose interleave, so that the first to choose may well be the first to end it.
    """

    def __init__(self) -> None:
        self._chosen: list[list[int]] = []  # lists, for each is another
        self._before = 0

    @contextmanager
    def chosen(self, mode: int) -> Iterator[None]:
        before = _core.block_in_tasks(mode)
        if not self._chosen:
            self._before = before
        mine = [mode]
        self._chosen.append(mine)
        try:
            yield
        finally:
            self._chosen = [other for other in self._chosen if other is not mine]
            _core.block_in_tasks(self._chosen[-1][0] if self._chosen else self._before)


class _Carrier(threading.local):
    """Makes this ordinary thread a carrier while it has users, where blocking calls in tasks block as ever.

    Each virtual thread has one of its own, which does nothing.
    """

    _is_ours = False  # this thread is a carrier because of us
    _users = 0
    _loop_uses_it = False
    _will_leave = False

    def has_mode(self) -> bool:
        """Whether somebody chose what a blocking call in a task does here: `run`, or who else is in this carrier."""
        return _core.is_virtual() and (self._users > 0 or not self._is_ours)

    def __enter__(self) -> None:
        if not _core.is_virtual():
            _run.enter(virtual_threads=False)
            _core.block_in_tasks(_run.BLOCKING.index("block"))
            self._is_ours = True
        self._users += 1

    def __exit__(self, *_error: object) -> None:
        self._users -= 1
        self._leave()

    def use_while_loop_runs(self, loop: object) -> None:
        """Enter with the loop that begins to run, or runs already, and exit with its end."""
        if loop is None and self._loop_uses_it:
            self._loop_uses_it = False
            self.__exit__()
        elif loop is not None and not self._loop_uses_it and (self._is_ours or not _core.is_virtual()):
            self.__enter__()
            self._loop_uses_it = True

    def _leave(self) -> None:
        """Leave at once, or soon after the last step of a task on a stack of its own: that stack belongs to the hub."""
        if self._users > 0 or not self._is_ours:
            return
        if not _core.has_steps():
            self._is_ours = False
            _run.leave(GRACE)
        elif not self._will_leave:
            self._will_leave = True
            _core.call_when_no_step_is_left(self._leave_soon)

    def _leave_soon(self) -> None:
        """Leave between two callbacks of the running loop; without one the thread stays a carrier."""
        self._will_leave = False
        if sys.is_finalizing():
            return
        import asyncio

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        loop.call_soon(self._leave)


_carrier = _Carrier()
_modes = _Modes()


def let_plain_functions_await() -> None:
    """From now on plain functions in tasks can await, on every loop: their steps run on stacks of their own.

    Ordinary threads are carriers while they run a loop, from its beginning on; one that runs a loop already becomes a
    carrier with the next call of `use_carrier_for`.
    """
    _core.let_plain_functions_await(True)
    _running_loops.watch(_carrier.use_while_loop_runs)


def use_carrier_for(running: object) -> None:
    """The loop ``running`` runs in this thread; from its next step on plain functions in its tasks can await."""
    _carrier.use_while_loop_runs(running)


def is_carrier_for_a_loop() -> bool:
    """Whether this thread is a carrier only because it runs a loop, or waits for one's parked tasks."""
    return _carrier._is_ours


def make_error(what: str) -> RuntimeError:
    """Make the error of a blocking call in a task; called by the extension, inside of that call."""
    from gossamer._dump import line_of_program, stack_of

    call = line_of_program(stack_of(sys._getframe(1)))
    where = f" at {call.filename}:{call.lineno} in {call.name}" if call else ""
    where += f": {call.line}" if call and call.line else ""
    return RuntimeError(f"{what} would block the event loop{where}")
