# SPDX-License-Identifier: Apache-2.0
"""The bridge between `def` and `async def`: `await_`, `asyncify`, `syncify`, and `asyncio.run` wherever it is called.

Where a plain function awaits decides who runs the awaitable:

- in an asyncio task on a stack of its own: the task itself, as if its coroutine had awaited it;
- in a virtual thread without a loop: a loop that this hub keeps for them, in a virtual thread of its own;
- on an ordinary thread: a loop that the thread keeps for itself;
- in a callback of a loop, which cannot be left: a loop of its own, beside the callback's, which stands still.

Outside of a task each call is a task of its own, but in a block of `syncify`'s (`_block_task`).

From the import of this module on the tasks of every loop are on stacks of their own (`let_plain_functions_await`). A
step that runs at that moment is not: the call runs the loop itself until the awaitable has ended, if it is asyncio's.
"""

from __future__ import annotations

import _thread
import asyncio
import contextvars
import functools
import inspect
import threading
import weakref
from asyncio.base_events import BaseEventLoop
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
)
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, suppress
from types import CoroutineType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol, overload

from gossamer import _block_task, _blocking, _core, _hub_loops, _nested_run
from gossamer._contexts import lent_context
from gossamer._event_loop import EventLoop, new_event_loop
from gossamer._scope import shield

__all__ = ["asyncify", "await_", "syncify"]

_not_in_a_task = object()
_loop_of_hub: dict[int, EventLoop] = {}  # by hub_ident()


def await_[T](awaitable: Awaitable[T], /) -> T:
    """Wait for ``awaitable`` in a plain function, and return its result.

    In an asyncio task of any loop the task awaits it, and its loop runs on meanwhile. Elsewhere a loop is found for it:
    this virtual thread's hub has one, an ordinary thread has one. In a callback of a loop it runs on a loop of its own,
    and the callback's stands still. So it does in the task that uses the first of `await_`, `asyncify` and `syncify` in
    the process, until that task next awaits, if its loop is written in C (uvloop); import them before the loop runs.

    Raises:
        TypeError: It cannot be awaited.
        RuntimeError: It belongs to the loop that stands still for as long as it waits.
        BaseException: What the awaitable raised; asyncio.CancelledError when the caller was cancelled.
    """
    result: T = _core.await_in_task(awaitable, _not_in_a_task)
    if result is _not_in_a_task:
        result = _await_outside(awaitable)
    return result


def _await_outside(awaitable: Any) -> Any:
    if not inspect.isawaitable(awaitable):
        raise TypeError(f"object {type(awaitable).__name__} can't be used in 'await' expression")
    running = asyncio._get_running_loop()
    if running is not None:
        _blocking.use_carrier_for(running)
    block_task = _block_task.current()
    if asyncio.isfuture(awaitable):
        loop = awaitable.get_loop()
        if loop is running and not _is_step_on_the_stack_of(running):
            message = f"this {type(awaitable).__name__} belongs to the running loop, which cannot run while this waits"
            is_first_use = asyncio.current_task(running) is not None and not _core.is_in_step()
            raise RuntimeError(f"{message}: import await_ before the loop runs" if is_first_use else message)
        if loop is not running and (block_task is None or loop is not block_task.loop):
            return _wait_for_future(awaitable, loop)
    coroutine = awaitable if inspect.iscoroutine(awaitable) else _as_coroutine(awaitable)
    with lent_context() as context:
        if block_task is not None:
            return block_task.run(coroutine, context)
        return _run_outside(running, coroutine, context)


def _run_outside(
    running: asyncio.AbstractEventLoop | None, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context
) -> Any:
    """Run ``coroutine`` as a task of whichever loop the caller has, and wait for its end."""
    if running is None and _core.is_virtual():
        return _wait_for_task(coroutine, context, _loop_for_hub())
    if running is None:
        return _thread_loop.runner.run(coroutine, context=context)
    if _is_step_on_the_stack_of(running):
        return _run_loop_until_ended(running, coroutine, context)
    return _beside(running, functools.partial(_run, context), coroutine)


def _make_block_task() -> _block_task.BlockTask:
    running = asyncio._get_running_loop()
    if running is not None:
        _blocking.use_carrier_for(running)
    if running is None and _core.is_virtual():
        ident, loop = _core.hub_ident(), _loop_for_hub()
        return _block_task.BlockTask(
            lambda coroutine: _wait_for_task(coroutine, contextvars.Context(), loop),
            is_loop_ending=lambda: _loop_of_hub.get(ident) is not loop,
        )
    if running is None or _is_step_on_the_stack_of(running):
        return _block_task.BlockTask(lambda coroutine: _run_outside(running, coroutine, contextvars.Context()))
    runner = asyncio.Runner(loop_factory=new_event_loop)
    return _block_task.BlockTask(
        lambda coroutine: _beside(running, functools.partial(runner.run, context=contextvars.Context()), coroutine),
        close=lambda: _beside(running, lambda _nothing: runner.close(), None),
    )


async def _as_coroutine[T](awaitable: Awaitable[T]) -> T:
    return await awaitable


def _run[T](context: contextvars.Context, coroutine: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(coroutine, context=context)


def _is_step_on_the_stack_of(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this is a step of a task that began on the stack of ``loop``, a loop of asyncio's."""
    return (
        getattr(type(loop), "_run_once", None) is BaseEventLoop._run_once  # type: ignore[attr-defined]
        and not _core.is_in_step()
        and asyncio.current_task(loop) is not None
    )


def _run_loop_until_ended(loop: Any, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context) -> Any:
    """Run ``loop`` from within the step of one of its tasks, which cannot be left, until ``coroutine`` has ended.

    No other step comes to lie on top of this one: they begin on stacks of their own by now. A cancellation of the task,
    or the end of the loop's run, cancels the coroutine.
    """
    outer: Any = asyncio.tasks._swap_current_task(loop, None)  # type: ignore[attr-defined]
    left_to_run = len(loop._ready)  # at most: for the turn of the loop that this step belongs to
    try:
        inner = loop.create_task(coroutine, context=context)
        is_cancelled = False
        try:
            while not inner.done():
                if (loop._stopping or outer._must_cancel) and not is_cancelled:
                    is_cancelled = inner.cancel(outer._cancel_message)
                loop._run_once()
        finally:
            inner.cancel()
    finally:
        asyncio.tasks._swap_current_task(loop, outer)  # type: ignore[attr-defined]
        nothing = asyncio.Handle(int, (), loop)
        nothing.cancel()
        loop._ready.extend([nothing] * (left_to_run - len(loop._ready)))
    return inner.result()


def _wait_for_future[T](future: asyncio.Future[T], loop: asyncio.AbstractEventLoop) -> T:
    """Wait for a future of a loop that runs elsewhere; a cancellation of the caller cancels it."""
    ended = threading.Event()
    loop.call_soon_threadsafe(future.add_done_callback, lambda _future: ended.set())
    try:
        ended.wait()
    except asyncio.CancelledError:
        loop.call_soon_threadsafe(future.cancel)
        raise
    return future.result()


def _wait_for_task[T](
    coroutine: Coroutine[Any, Any, T], context: contextvars.Context, loop: asyncio.AbstractEventLoop
) -> T:
    """Run ``coroutine`` as a task of a loop that runs elsewhere on this hub, and wait for its end."""
    task: asyncio.Task[T | None]
    ending: BaseException | None = None
    until_ended = _lock_that_is_held()

    async def run() -> T | None:
        # What ends a program ends the caller, not the loop that others use too.
        nonlocal ending
        try:
            return await coroutine
        except (SystemExit, KeyboardInterrupt) as error:
            ending = error
            return None

    def end(_task: object) -> None:
        until_ended.release()

    def start() -> None:
        # Its first step runs at once, so that a cancellation finds it begun, as it would in an `await`.
        nonlocal task
        task = asyncio.Task(_named_as(coroutine, run()), loop=loop, context=context, eager_start=True)
        if task.done():
            until_ended.release()
        else:
            task.add_done_callback(end)  # not in the caller's context, which must be free when the caller goes on

    loop.call_soon_threadsafe(start)
    interruption = _wait_in_any_case(until_ended, lambda: loop.call_soon_threadsafe(lambda: task.cancel()))
    with _reporting(interruption):
        result = task.result()
        if ending is not None:
            raise ending
        return result  # type: ignore[return-value]


def _named_as(coroutine: Any, other: Any) -> Any:
    """Give the coroutine ``other`` the name of ``coroutine``, and return it."""
    other.__name__, other.__qualname__ = coroutine.__name__, coroutine.__qualname__
    return other


def _lock_that_is_held() -> _thread.LockType:
    lock = _thread.allocate_lock()
    lock.acquire()
    return lock


def _wait_in_any_case(until_ended: _thread.LockType, cancel: Callable[[], object]) -> BaseException | None:
    """Wait for the release of ``until_ended``; what interrupts the wait cancels what is waited for, and is returned."""
    interruption: BaseException | None = None
    while True:
        try:
            until_ended.acquire()
        except BaseException as error:
            interruption = error
            cancel()
        else:
            return interruption


@contextmanager
def _reporting(interruption: BaseException | None) -> Iterator[None]:
    """The block takes the result, which decides about a cancellation; any other interruption is raised after it."""
    if interruption is None or isinstance(interruption, asyncio.CancelledError):
        yield
        return
    with suppress(asyncio.CancelledError):
        yield
    raise interruption


class _Lifetime:
    """Dies with the locals of its thread."""


class _ThreadLoop(threading.local):
    """The loop of an ordinary thread; closed when the thread's locals die with it, or at the end of the program."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner(loop_factory=new_event_loop)
        self._lifetime = _Lifetime()
        weakref.finalize(self._lifetime, self.runner.close)


_thread_loop = _ThreadLoop()


def _loop_for_hub() -> asyncio.AbstractEventLoop:
    ident = _core.hub_ident()
    if ident in _hub_loops.lenders:
        return _hub_loops.lenders[ident]()
    loop = _loop_of_hub.get(ident)
    if loop is None:
        loop = _loop_of_hub[ident] = new_event_loop()
        _core.spawn(_keep_running, ident, loop)
    return loop


def _keep_running(ident: int, loop: EventLoop) -> None:
    """Run the hub's loop until the hub is left, which cancels this virtual thread."""
    runner = asyncio.Runner(loop_factory=lambda: loop)
    runner.get_loop()
    try:
        loop.run_forever()
    finally:
        del _loop_of_hub[ident]
        with shield():
            runner.close()


def _beside(running: asyncio.AbstractEventLoop, run: Callable[[Any], Any], main: Any) -> Any:
    """Call ``run(main)``, which runs the coroutine ``main`` on a loop of its own, where ``running`` runs.

    In a virtual thread of its own if there are any: the other tasks of ``running`` go on if the caller can be parked.
    """
    if not _core.is_virtual():
        outer = asyncio.tasks._swap_current_task(running, None)  # type: ignore[attr-defined]
        asyncio._set_running_loop(None)
        try:
            return run(main)
        finally:
            asyncio._set_running_loop(running)
            asyncio.tasks._swap_current_task(running, outer)  # type: ignore[attr-defined]
    cancellable = _Cancellable(main)
    task: _core.Task[Any] = _core.spawn(lambda: run(cancellable.coroutine()))
    until_ended = _lock_that_is_held()
    task._on_end(lambda _task: until_ended.release())
    interruption = _wait_in_any_case(until_ended, cancellable.cancel)
    with _reporting(interruption):
        return task.result()


class _Cancellable:
    """The main coroutine of a loop that runs elsewhere on this hub.

    Its task is cancelled, never the run of its loop, which has to clean up.
    """

    def __init__(self, main: Any) -> None:
        self._main = main
        self._task: asyncio.Task[Any] | None = None
        self._is_cancelled = False

    def coroutine(self) -> Any:
        """Return what to run."""
        if not inspect.iscoroutine(self._main):
            return self._main
        return _named_as(self._main, self._run())

    async def _run(self) -> Any:
        self._task = asyncio.current_task()
        if self._is_cancelled:
            self.cancel()
        return await self._main

    def cancel(self) -> None:
        """Cancel it, where it waits first if it has not begun."""
        self._is_cancelled = True
        if self._task is not None and not self._task.done():
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)


def run_nested(
    run: Callable[..., Any], main: Coroutine[Any, Any, Any], debug: bool | None, loop_factory: Callable[[], Any] | None
) -> Any:
    """`asyncio.run` where a loop runs already: apart from it."""
    run = functools.partial(run, debug=debug, loop_factory=loop_factory)
    return _beside(asyncio.get_running_loop(), run, main)


_nested_run.install()
_blocking.let_plain_functions_await()
if (_running := asyncio._get_running_loop()) is not None:
    _blocking.use_carrier_for(_running)


# --- The other colour ---


if TYPE_CHECKING:  # not every version takes these bases at run time

    class _Managed[M, T](AbstractContextManager[M, bool | None], Iterator[T], Protocol):
        """A context manager and iterator, as files, cursors and responses are."""

    class _AsyncManaged[M, T](AbstractAsyncContextManager[M, bool | None], AsyncIterator[T], Protocol):
        """The same, asynchronous."""


@overload
def asyncify[M, T](managed: _Managed[M, T], /) -> _AsyncManaged[M, T]: ...
@overload
def asyncify[T](manager: AbstractContextManager[T, bool | None], /) -> AbstractAsyncContextManager[T]: ...
@overload
def asyncify[T](iterator: Iterator[T], /) -> AsyncIterator[T]: ...
@overload
def asyncify[**P, T](function: Callable[P, T], /) -> Callable[P, Coroutine[Any, Any, T]]: ...
@overload
def asyncify[T](iterable: Iterable[T], /) -> AsyncIterator[T]: ...
def asyncify(x: Any, /) -> Any:
    """Give the asynchronous form of a plain function, bound method, context manager or iterator; or of what is both.

    What it calls runs in the task that awaits it, and what waits in there suspends that task alone.

    Raises:
        TypeError: It is none of these.
    """
    if hasattr(x, "__enter__") and hasattr(x, "__exit__") and not isinstance(x, type):
        return _AsyncManagedIterator(x) if isinstance(x, Iterator) else _AsyncManager(x)
    if isinstance(x, Iterator):
        return _async_iterator(x)
    if callable(x):
        return _async_function(x)
    if isinstance(x, Iterable):
        return _async_iterator(iter(x))
    raise TypeError(f"asyncify() needs a function, a context manager or an iterator, not {type(x).__name__}")


@overload
def syncify[M, T](managed: _AsyncManaged[M, T], /) -> _Managed[M, T]: ...
@overload
def syncify[T](manager: AbstractAsyncContextManager[T, bool | None], /) -> AbstractContextManager[T]: ...
@overload
def syncify[T](iterator: AsyncIterator[T], /) -> Iterator[T]: ...
@overload
def syncify[**P, T](function: Callable[P, Awaitable[T]], /) -> Callable[P, T]: ...
@overload
def syncify[**P, T](
    function: Callable[P, AbstractAsyncContextManager[T, bool | None]], /
) -> Callable[P, AbstractContextManager[T]]: ...
@overload
def syncify[**P, T](function: Callable[P, AsyncGenerator[T, Any]], /) -> Callable[P, Generator[T]]: ...
@overload
def syncify[**P, T](function: Callable[P, AsyncIterator[T]], /) -> Callable[P, Iterator[T]]: ...
@overload
def syncify[T](iterable: AsyncIterable[T], /) -> Iterator[T]: ...
def syncify(x: Any, /) -> Any:
    """Give the plain form of a coroutine function, bound method, async context manager or async iterator, or of both.

    That of a function which returns one of the latter two returns its plain form.

    What it awaits is awaited as by `await_`. In a ``with`` block or a loop over it, one task awaits all that the caller
    awaits, also where the caller is in no task: time-outs and task groups that were entered hold for the block.

    Raises:
        TypeError: It is none of these.
    """
    if _is_async_manager(x):
        return _sync_manager(x)
    if isinstance(x, AsyncIterator):
        return _sync_iterator(x)
    if callable(x):
        return _sync_function(x)
    if isinstance(x, AsyncIterable):
        return _sync_iterator(aiter(x))
    raise TypeError(
        f"syncify() needs a coroutine function, an async context manager or an async iterator, not {type(x).__name__}"
    )


class _Parking(threading.local):
    """Has blocking calls in this thread's tasks park while one of them asks for it; they come and go in any order."""

    def __init__(self) -> None:
        self._users = 0
        self._mode: AbstractContextManager[None] | None = None

    def __enter__(self) -> None:
        if self._users == 0:
            self._mode = _blocking.blocking_in_tasks("park")
            self._mode.__enter__()
        self._users += 1

    def __exit__(self, *_error: object) -> None:
        self._users -= 1
        if self._users == 0 and self._mode is not None:
            self._mode.__exit__(None, None, None)


_parking = _Parking()


def _async_function(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        if _core.can_park_in_task():
            return function(*args, **kwargs)
        with _parking:
            if not _core.can_await_in_task():
                await asyncio.sleep(0)  # the next step runs on a stack of its own
            return function(*args, **kwargs)

    try:
        return functools.wraps(function)(call)
    except AttributeError:
        return call


class _AsyncManager[T]:
    def __init__(self, manager: AbstractContextManager[T]) -> None:
        self._manager = manager

    async def __aenter__(self) -> T:
        entered: T = await _async_function(self._manager.__enter__)()
        return entered

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        is_taken: bool | None = await _async_function(self._manager.__exit__)(kind, error, trace)
        return is_taken


class _SyncManager[T]:
    def __init__(self, manager: AbstractAsyncContextManager[T]) -> None:
        self._manager = manager
        self._blocks: list[_block_task.BlockTask | None] = []  # one for each time that it is entered

    def __enter__(self) -> T:
        block = _enter_block()
        try:
            entered = await_(self._manager.__aenter__())
        except BaseException:
            _leave_block(block)
            raise
        self._blocks.append(block)
        return entered

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        block = self._blocks.pop()
        try:
            if block is not None:
                block.sign(error)
            return await_(self._manager.__aexit__(kind, error, trace))
        finally:
            _leave_block(block)


def _enter_block() -> _block_task.BlockTask | None:
    """From now on one task awaits what the caller awaits; None: the task that the caller runs in does."""
    return None if _core.can_await_in_task() else _block_task.enter(_make_block_task)


def _leave_block(block: _block_task.BlockTask | None) -> None:
    if block is not None:
        block.leave()


class _AsyncManagedIterator[T](_AsyncManager[T]):
    def __init__(self, manager: Any) -> None:
        super().__init__(manager)
        self._iterator = _async_iterator(manager)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return await anext(self._iterator)


class _SyncManagedIterator[T](_SyncManager[T]):
    def __init__(self, manager: Any) -> None:
        super().__init__(manager)
        self._iterator = _sync_iterator(aiter(manager))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._iterator)


def _sync_manager(x: Any) -> _SyncManager[Any]:
    return _SyncManagedIterator(x) if isinstance(x, AsyncIterable) else _SyncManager(x)


def _is_async_manager(x: object) -> bool:
    return hasattr(x, "__aenter__") and hasattr(x, "__aexit__") and not isinstance(x, type)


def _sync_function(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if type(result) is CoroutineType or inspect.isawaitable(result):
            return await_(result)
        if _is_async_manager(result):
            return _sync_manager(result)
        return _sync_iterator(aiter(result)) if isinstance(result, AsyncIterable) else await_(result)

    return call


_end = object()


async def _async_iterator[T](iterator: Iterator[T]) -> AsyncIterator[T]:
    advance = _async_function(next)
    try:
        while (item := await advance(iterator, _end)) is not _end:
            yield item
    finally:
        if isinstance(iterator, Generator):
            await _async_function(iterator.close)()


def _sync_iterator[T](iterator: AsyncIterator[T]) -> Iterator[T]:
    block = _enter_block()
    try:
        while True:
            try:
                item = await_(anext(iterator))
            except StopAsyncIteration:
                return
            yield item
    finally:
        try:
            if isinstance(iterator, AsyncGenerator):
                await_(iterator.aclose())
        finally:
            _leave_block(block)
