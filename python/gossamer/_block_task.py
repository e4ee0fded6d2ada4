# SPDX-License-Identifier: Apache-2.0
"""One asyncio task for all that is awaited in a `with syncify(manager)` block outside of a task.

`asyncio.timeout`, `TaskGroup` and the cancel scopes of libraries belong to the task that enters them: it must leave
them too, and it is what they cancel. Where the block is in a task, that task awaits everything anyway. Elsewhere each
await is a task of its own, but for the time of a block: its `BlockTask` awaits what the caller's thread of control
awaits.

A cancellation of that task by whoever was entered reaches the caller where it waits:

    the task awaits for the caller   ->  what it awaits is cancelled, as in any task
    the caller parks elsewhere       ->  that park is cancelled, if the caller is a virtual thread
    the caller computes              ->  its next park or await is cancelled

The task is cancelled once and counts one request (`Task.cancelling`), however the cancellation is delivered.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from gossamer import _core


class _Call:
    """Something to await in a context, and the future that gets its outcome."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context) -> None:
        self._coroutine = coroutine
        self._context = context
        self.ended = asyncio.get_running_loop().create_future()

    def __await__(self) -> Generator[Any, Any, Any]:
        """Drive the coroutine in its own context: a task has one context for all of its steps."""
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                if error is None:
                    awaited = self._context.run(self._coroutine.send, value)
                else:
                    awaited = self._context.run(self._coroutine.throw, error)
            except StopIteration as end:
                return end.value
            try:
                value, error = (yield awaited), None
            except BaseException as thrown:
                error = thrown


class BlockTask:
    """The task of a block, and of those inside of it; used by the thread of control that has entered them."""

    def __init__(
        self,
        run: Callable[[Coroutine[Any, Any, Any]], Any],
        *,
        is_loop_ending: Callable[[], bool] | None = None,
        close: Callable[[], object] | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            run: Runs a coroutine as another task of the loop, cancels that with the caller, and returns its result.
            is_loop_ending: Whether who cancels the idle task wants it to end; None: the loop runs only during `run`,
                and at its own end.
            close: What to call at the end.
        """
        self.loop: asyncio.AbstractEventLoop | None = None  # known from the first call on
        self.blocks = 0
        self._running_loop = asyncio._get_running_loop()  # of the caller, which cannot be left, if there is one
        self._thread = threading.get_ident()
        self._run = run
        self._calls = 0  # of `run` that have not ended
        self._is_loop_ending = is_loop_ending or (lambda: self._calls == 0)
        self._close = close
        self._task: asyncio.Task[None] | None = None
        self._wake_up: asyncio.Future[None] | None = None  # while the task is idle
        self._call: _Call | None = None  # to be begun
        self._is_over = False
        self._message: tuple[Any, ...] = ()  # of its last cancellation between two calls
        self._owes_cancellation = False
        self._interrupts: _core.ScopeBase | None = None
        self._requests_at_interrupt = 0  # what the task counted when it cancelled the caller's park; 0: it has not

    def is_usable(self) -> bool:
        """Whether it can await what the caller awaits now."""
        return self._running_loop is asyncio._get_running_loop() and not self._has_ended()

    def _has_ended(self) -> bool:
        return self._is_over or (self._task is not None and self._task.done())

    def run(self, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context) -> Any:
        """Have the task await ``coroutine`` in ``context``; return its result."""
        self._calls += 1
        try:
            return self._run(self._await(coroutine, context))
        finally:
            self._calls -= 1
            requests = 0 if self._task is None else self._task.cancelling()
            if requests < self._requests_at_interrupt:
                self._take_interrupt_back()

    # --- In the caller's thread of control ---

    def enter(self) -> None:
        """Another block is entered."""
        self.blocks += 1
        if self._interrupts is None and self._running_loop is None and _core.is_virtual():
            self._interrupts = _core.ScopeBase()
            self._interrupts._open(None, None)

    def sign(self, error: BaseException | None) -> None:
        """Give a cancellation that was raised at a park of the block the message that the task was cancelled with."""
        if isinstance(error, asyncio.CancelledError) and self._requests_at_interrupt > 0 and not error.args:
            error.args = self._message

    def leave(self) -> None:
        """A block is left; the task ends with the last of them."""
        self.blocks -= 1
        if self.blocks > 0:
            return
        has_ended, self._is_over = self._has_ended(), True
        if self._thread != threading.get_ident():  # a generator was passed on
            if self.loop is not None and not self.loop.is_closed():
                self.loop.call_soon_threadsafe(self._wake)
            return
        if self._interrupts is not None:
            self._interrupts._leave(None, False)
            self._interrupts = None
        if not has_ended:
            self._run(self._end())
        if self._close is not None:
            self._close()

    def _take_interrupt_back(self) -> None:
        """Whoever cancelled the task has taken that back: if the caller has not noticed, it never does."""
        self._requests_at_interrupt = 0
        if self._interrupts is not None:
            self._interrupts._leave(None, False)
            self._interrupts = _core.ScopeBase()
            self._interrupts._open(None, None)

    # --- On the loop ---

    async def _await(self, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context) -> Any:
        if self._task is None:
            self.loop = asyncio.get_running_loop()
            self._task = self.loop.create_task(self._serve(), context=contextvars.Context())
        call = self._call = _Call(coroutine, context)
        self._wake()
        while not (call.ended.done() or self._task.done()):
            try:
                await asyncio.wait([call.ended, self._task], return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError as error:
                self._cancel(error.args)
        return call.ended.result() if call.ended.done() else await call

    async def _end(self) -> None:
        self._wake()
        if self._task is not None:
            await asyncio.wait([self._task])

    def _wake(self) -> None:
        if self._wake_up is not None and not self._wake_up.done():
            self._wake_up.set_result(None)

    def _cancel(self, message: tuple[Any, ...]) -> None:
        """The caller was cancelled where it waits for the task: by the task itself, or by somebody else."""
        assert self._task is not None
        if self._requests_at_interrupt > 0:
            self._requests_at_interrupt = 0
            self._task.cancel(*self._message)
            self._task.uncancel()  # it has counted this one
        else:
            self._task.cancel(*message)

    async def _serve(self) -> None:
        while not self._is_over:
            call, self._call = self._call, None
            if call is None:
                await self._idle()
                continue
            if self._owes_cancellation:
                self._raise_again()
            try:
                result = await call
            except BaseException as error:
                call.ended.set_exception(error)
            else:
                call.ended.set_result(result)
            del call

    async def _idle(self) -> None:
        self._wake_up = asyncio.get_running_loop().create_future()
        try:
            await self._wake_up
        except asyncio.CancelledError as error:
            if self._is_loop_ending():
                self._is_over = True
            else:
                self._message = error.args
                self._note_cancellation()
        finally:
            self._wake_up = None

    def _note_cancellation(self) -> None:
        """The task was cancelled between two calls."""
        assert self._task is not None
        if self._task.cancelling() == 0:
            return  # and that was taken back
        if self._call is None and self._interrupts is not None:
            self._requests_at_interrupt = self._task.cancelling()
            self._interrupts.cancel()
        else:
            self._owes_cancellation = True

    def _raise_again(self) -> None:
        """Have the next await of the running task raise what it has counted already."""
        assert self._task is not None
        self._owes_cancellation = False
        if self._task.cancelling() > 0:
            self._task.cancel(*self._message)
            self._task.uncancel()


class _Current(threading.local):
    """The task of the innermost block that this thread of control is in."""

    block_task: BlockTask | None = None


_current = _Current()


def current() -> BlockTask | None:
    """Return the task that awaits what the caller awaits, if it is in a block."""
    found = _current.block_task
    return found if found is not None and found.blocks > 0 and found.is_usable() else None


def enter(make: Callable[[], BlockTask]) -> BlockTask:
    """A block is entered: in the task of the one around it, or in one that ``make`` makes."""
    found = current()
    if found is None:
        found = _current.block_task = make()
    found.enter()
    return found
