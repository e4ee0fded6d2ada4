# SPDX-License-Identifier: Apache-2.0
"""Several at once: `map`, `wait`, `as_completed`, `race`.

What is started here is ended here: on the way out, whatever the way, the rest is cancelled and waited for. A failure
that comes from the rest then is added as a note to the exception that is raised, or goes to `threading.excepthook` when
none is.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Generator, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, overload

from gossamer import _core
from gossamer._core import Task

# The values of concurrent.futures, which takes 17 ms to import.
ALL_COMPLETED = "ALL_COMPLETED"
FIRST_COMPLETED = "FIRST_COMPLETED"
FIRST_EXCEPTION = "FIRST_EXCEPTION"


@overload
def map[T, R](
    function: Callable[[T], Coroutine[Any, Any, R]],
    iterable: Iterable[T],
    /,
    *,
    limit: int = 100,
    as_completed: bool = False,
) -> Iterator[R]: ...
@overload
def map[T, R](
    function: Callable[[T], R], iterable: Iterable[T], /, *, limit: int = 100, as_completed: bool = False
) -> Iterator[R]: ...
def map[T](
    function: Callable[[T], Any], iterable: Iterable[T], /, *, limit: int = 100, as_completed: bool = False
) -> Iterator[Any]:
    """Call ``function`` with each item, each call in a virtual thread, and yield the results.

    The input is pulled as results are taken, at most ``limit`` items ahead; nothing is called before the first result
    is asked for. Leaving the loop early cancels the calls that run and waits for their end.

    Args:
        function: What to call; of a coroutine function, the coroutine is run.
        iterable: The items.
        limit: Most calls at a time, 1 or more.
        as_completed: Yield results as they arrive; else in the order of the input.

    Raises:
        Exception: What the first call that failed raised, bare; the other calls are cancelled.
        ValueError: ``limit`` is less than 1.
        RuntimeError: Outside of Gossamer, when the first result is asked for.
    """
    if not callable(function):
        raise TypeError(f"map() needs a callable, not {type(function).__name__}")
    if limit < 1:
        raise ValueError("limit is 1 or more")
    items = iter(iterable)
    return _by_arrival(function, items, limit) if as_completed else _in_order(function, items, limit)


def _in_order[T, R](function: Callable[[T], R], items: Iterator[T], limit: int) -> Iterator[R]:
    tasks: deque[Task[R]] = deque()
    try:
        for item in items:
            tasks.append(_core.spawn(function, item))
            while tasks and (len(tasks) >= limit or tasks[0].done()):
                yield _result_of_first(tasks)
        while tasks:
            yield _result_of_first(tasks)
    finally:
        end_tasks(tasks)


def _result_of_first[R](tasks: deque[Task[R]]) -> R:
    tasks[0]._wait(None)
    return tasks.popleft().result()


def _by_arrival[T, R](function: Callable[[T], R], items: Iterator[T], limit: int) -> Iterator[R]:
    running: set[Task[R]] = set()
    ended: SimpleQueue[Task[R]] = SimpleQueue()

    def take() -> R:
        task = ended.get()
        running.discard(task)
        return task.result()

    try:
        for item in items:
            task = _core.spawn(function, item)
            running.add(task)
            task._on_end(ended.put)
            while running and (len(running) >= limit or not ended.empty()):
                yield take()
        while running:
            yield take()
    finally:
        end_tasks(running)


def end_tasks(tasks: Collection[Task[Any]]) -> None:
    """Cancel ``tasks``, wait for their end under a shield, and see to it that no failure of theirs is lost."""
    if not tasks:
        return
    raised = sys.exception()
    interruption: BaseException | None = None
    for task in tasks:
        task.cancel()
    _core.shield(+1)
    try:
        for task in tasks:
            while not task.done():
                try:
                    task._wait(None)
                except BaseException as raised_here:  # a signal handler raised, or all are parked for ever
                    if interruption is not None:
                        raise
                    interruption = raised_here
                    for other in tasks:
                        other.cancel()
    finally:
        _core.shield(-1)
    told = interruption or raised
    if told is not None and not isinstance(told, GeneratorExit):
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                told.add_note(f"another call failed too: {error!r}")
    if interruption is not None:
        raise interruption


class DoneAndNotDone[R](NamedTuple):
    """What `wait` returns: the tasks that have ended, and those that have not."""

    done: set[Task[R]]
    not_done: set[Task[R]]


def wait[R](
    tasks: Iterable[Task[R]], timeout: float | None = None, return_when: str = ALL_COMPLETED
) -> DoneAndNotDone[R]:
    """Wait for tasks to end, as `concurrent.futures.wait` does for futures.

    Args:
        tasks: What `Scope.spawn` returned.
        timeout: Seconds; None: no limit. No exception is raised when it is over.
        return_when: ``FIRST_COMPLETED``, ``FIRST_EXCEPTION`` or ``ALL_COMPLETED`` of `concurrent.futures`.

    Returns:
        The tasks that have ended and those that have not, as two sets.

    Raises:
        ValueError: ``return_when`` is none of the three.
    """
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION):
        raise ValueError(f"Invalid return condition: {return_when!r}")
    waiting = set(tasks)
    done = {task for task in waiting if task.done()}
    waiting -= done
    arrivals = _arrivals(waiting, timeout)
    while waiting and not _is_over(done, return_when):
        task = next(arrivals, None)
        if task is None:
            break
        waiting.discard(task)
        done.add(task)
    arrivals.close()
    late = {task for task in waiting if task.done()}
    return DoneAndNotDone(done | late, waiting - late)


def _is_over(done: set[Task[Any]], return_when: str) -> bool:
    if return_when == FIRST_COMPLETED:
        return bool(done)
    return return_when == FIRST_EXCEPTION and any(not task.cancelled() and task._has_failed for task in done)


def _arrivals[R](tasks: Iterable[Task[R]], timeout: float | None) -> Generator[Task[R]]:
    """Yield tasks as they end; stop when the time is up."""
    deadline = None if timeout is None else time.monotonic() + timeout
    ended: SimpleQueue[Task[R]] = SimpleQueue()
    put = ended.put  # one object: _forget looks for it
    left = set(tasks)
    try:
        for task in left:
            task._on_end(put)
        while left:
            try:
                task = ended.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except Empty:
                return
            left.discard(task)
            yield task
    finally:
        for task in left:
            task._forget(put)


def as_completed[R](tasks: Iterable[Task[R]], timeout: float | None = None) -> Iterator[Task[R]]:
    """Yield ``tasks`` as they end, as `concurrent.futures.as_completed` does for futures.

    Args:
        tasks: What `Scope.spawn` returned.
        timeout: Seconds from the first `next`; None: no limit.

    Raises:
        TimeoutError: Not all have ended in time.
    """
    left = set(tasks)
    count = len(left)
    for task in _arrivals(left, timeout):
        left.discard(task)
        yield task
    if left:
        raise TimeoutError(f"{len(left)} (of {count}) tasks unfinished")


@overload
def race[R](*functions: Callable[[], Coroutine[Any, Any, R]]) -> R: ...
@overload
def race[R](*functions: Callable[[], R]) -> R: ...
def race(*functions: Callable[[], Any]) -> Any:
    """Call ``functions``, each in a virtual thread; return what the first to end returned.

    The others are cancelled and waited for.

    Args:
        *functions: Functions or coroutine functions without arguments, one or more.

    Raises:
        Exception: What the first to end raised, bare.
        TypeError: No function is given.
        RuntimeError: Outside of Gossamer.
    """
    if not functions:
        raise TypeError("race() needs at least one callable")
    running: set[Task[Any]] = set()
    ended: SimpleQueue[Task[Any]] = SimpleQueue()
    try:
        for function in functions:
            task = _core.spawn(function)
            running.add(task)
            task._on_end(ended.put)
        first = ended.get()
        running.discard(first)
        return first.result()
    finally:
        end_tasks(running)
