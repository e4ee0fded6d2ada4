# SPDX-License-Identifier: Apache-2.0
"""`VirtualThreadPoolExecutor`: a `concurrent.futures.Executor` that runs each call in a virtual thread of its own.

An executor belongs to a hub: that of the virtual thread that made it, or, made on an ordinary OS thread, one on an OS
thread of its own. Calls submitted on that hub are spawned at once; from elsewhere they go through an inbox that a
dispatcher, a virtual thread of the hub, empties.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures.thread import BrokenThreadPool
from queue import SimpleQueue
from typing import Any

from gossamer import _core, _run
from gossamer._core import Task


class _Call:
    __slots__ = ("args", "function", "future", "kwargs")

    def __init__(
        self, future: Future[Any], function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.future = future
        self.function = function
        self.args = args
        self.kwargs = kwargs


class VirtualThreadPoolExecutor(Executor):
    """Runs each call in a virtual thread of its own.

    Args:
        max_workers: Most calls at a time, 1 or more; None: no limit.
        thread_name_prefix: Given, each call's `threading.current_thread` is named with it and a number.
        initializer: Called with ``initargs`` in each virtual thread before its call. If it raises, the call and all
            that come after it raise `concurrent.futures.thread.BrokenThreadPool`.
        initargs: Arguments of ``initializer``.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._max_workers = max_workers
        self._prefix = thread_name_prefix
        self._numbers = itertools.count()
        self._initializer = initializer
        self._initargs = initargs
        self._state = threading.Condition(threading.Lock())
        # Under _state:
        self._waiting: deque[_Call] = deque()
        self._running = 0
        self._is_shut_down = False
        self._is_broken = False
        self._carrier: threading.Thread | None = None
        self._inbox: SimpleQueue[VirtualThreadPoolExecutor | None] = SimpleQueue()  # self: calls wait; None: the end
        self._dispatcher: Task[None] | None = None
        self._hub_ident = _core.hub_ident()
        if self._hub_ident != 0:
            self._dispatcher = _core.spawn(_dispatch, weakref.ref(self), self._inbox)
        _live.add(self)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `concurrent.futures.Executor.submit`. Thread: any."""
        call = _Call(Future(), function, args, kwargs)
        with self._state:
            if self._is_broken:
                raise BrokenThreadPool("the initializer failed, the executor is not usable any more")
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._waiting.append(call)
            if self._hub_ident == 0 and self._carrier is None:
                self._start_carrier()
        if self._hub_ident != 0 and _core.hub_ident() == self._hub_ident:
            self._spawn_waiting()
        else:
            self._inbox.put(self)
        return call.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `concurrent.futures.Executor.shutdown`. Waiting parks. Thread: any."""
        with self._state:
            self._is_shut_down = True
            cancelled = list(self._waiting) if cancel_futures else []
            if cancel_futures:
                self._waiting.clear()
            self._end_if_idle()
        for call in cancelled:
            call.future.cancel()
            call.future.set_running_or_notify_cancel()
        if wait:
            with self._state:
                while self._waiting or self._running:
                    self._state.wait()
            if self._dispatcher is not None:
                self._dispatcher._wait(None)
            if self._carrier is not None:
                self._carrier.join()

    def _start_carrier(self) -> None:
        """Make an OS thread with a hub for the calls. Under _state."""
        inbox = self._inbox
        self_reference = weakref.ref(self)
        self._carrier = threading.Thread(
            target=_run.run, args=(_dispatch, self_reference, inbox), name=self._prefix or "gossamer executor"
        )
        self._carrier.start()

    def _spawn_waiting(self) -> None:
        """Spawn what waits, up to the limit. Thread: the hub's."""
        while True:
            with self._state:
                is_full = self._max_workers is not None and self._running >= self._max_workers
                if is_full or not self._waiting:
                    return
                call = self._waiting.popleft()
                self._running += 1
            try:
                _core.spawn(self._run, call)
            except BaseException as error:  # no memory for a stack
                self._finish_one()
                if call.future.set_running_or_notify_cancel():
                    call.future.set_exception(error)

    def _run(self, call: _Call) -> None:
        try:
            if call.future.set_running_or_notify_cancel():
                self._call(call)
        finally:
            self._finish_one()
            self._spawn_waiting()

    def _call(self, call: _Call) -> None:
        future = call.future
        try:
            if self._prefix:
                threading.current_thread().name = f"{self._prefix}_{next(self._numbers)}"
            if self._initializer is not None and not self._initialize(future):
                return
            result = call.function(*call.args, **call.kwargs)
        except BaseException as error:
            future.set_exception(error)
            del call, future  # the exception's traceback refers to this frame
        else:
            future.set_result(result)

    def _initialize(self, future: Future[Any]) -> bool:
        try:
            self._initializer(*self._initargs)  # type: ignore[misc]
        except BaseException as error:
            with self._state:
                self._is_broken = True
                lost = list(self._waiting)
                self._waiting.clear()
            for broken in (future, *(call.future for call in lost)):
                if broken.running() or broken.set_running_or_notify_cancel():
                    exception = BrokenThreadPool("the initializer failed")
                    exception.__cause__ = error
                    broken.set_exception(exception)
            return False
        return True

    def _finish_one(self) -> None:
        with self._state:
            self._running -= 1
            self._end_if_idle()
            self._state.notify_all()

    def _end_if_idle(self) -> None:
        """Tell the dispatcher to end once nothing can come any more. Under _state."""
        if self._is_shut_down and not self._waiting and not self._running:
            self._inbox.put(None)
            self._state.notify_all()

    def __del__(self) -> None:
        # Not shut down and forgotten: the dispatcher ends, the calls that run end by themselves.
        inbox = getattr(self, "_inbox", None)
        if inbox is not None:
            inbox.put(None)


def _dispatch(
    reference: weakref.ref[VirtualThreadPoolExecutor], inbox: SimpleQueue[VirtualThreadPoolExecutor | None]
) -> None:
    executor = reference()
    if executor is not None and executor._hub_ident == 0:
        executor._hub_ident = _core.hub_ident()
    del executor
    try:
        while (executor := inbox.get()) is not None:
            executor._spawn_waiting()
            del executor  # or it could not be forgotten while this waits
    finally:
        executor = reference()
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)


_live: weakref.WeakSet[VirtualThreadPoolExecutor] = weakref.WeakSet()


def shut_down_on_this_hub() -> None:
    """Let the calls of this hub's executors end, as concurrent.futures does at the end of a program."""
    ident = _core.hub_ident()
    for executor in list(_live):
        if executor._hub_ident == ident and executor._carrier is None:
            executor.shutdown()


def _forget_calls() -> None:
    """In a forked child: the virtual threads and the OS threads of the parent's executors do not exist."""
    for executor in list(_live):
        executor._state = threading.Condition(threading.Lock())
        executor._waiting.clear()
        executor._running = 0
        executor._is_shut_down = True
        executor._carrier = executor._dispatcher = None


def _shut_down_all() -> None:
    for executor in list(_live):
        executor.shutdown()


os.register_at_fork(after_in_child=_forget_calls)
threading._register_atexit(_shut_down_all)  # type: ignore[attr-defined]
