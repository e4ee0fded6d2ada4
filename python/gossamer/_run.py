# SPDX-License-Identifier: Apache-2.0
"""Entering Gossamer from an ordinary thread, and leaving it again."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Coroutine
from typing import Any, overload

from gossamer import _core, _thread_objects

_is_fork_hook_registered = False


def enter(*, virtual_threads: bool) -> None:
    """Make this OS thread a carrier and the caller its main virtual thread."""
    global _is_fork_hook_registered
    if not _is_fork_hook_registered:
        _core.register_fork_hooks()
        _is_fork_hook_registered = True
    _thread_objects.install()
    _core.enter(virtual_threads)


def leave(grace: float) -> None:
    """Wait for non-daemon threads, cancel what is left, give it ``grace`` seconds, and name what does not end."""
    _core.join_non_daemons()
    _end_the_rest(grace)
    _core.leave()


def _end_the_rest(grace: float) -> None:
    import time

    if _core.statistics()["live"] == 1:
        return
    _core.cancel_all()
    deadline = time.monotonic() + grace
    pause = 0.0
    while _core.statistics()["live"] > 1 and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(0.05, pause + 0.001)
    left = _core.statistics()["live"] - 1
    if left:
        from gossamer._dump import describe_threads

        print(
            f"gossamer: {left} virtual threads did not end in {grace} s and are abandoned:\n{describe_threads()}",
            file=sys.stderr,
        )


@overload
def run[*Ts, T](main: Callable[[*Ts], Coroutine[Any, Any, T]], /, *args: *Ts, grace: float = 5.0) -> T: ...
@overload
def run[*Ts, T](main: Callable[[*Ts], T], /, *args: *Ts, grace: float = 5.0) -> T: ...
def run[*Ts](main: Callable[[*Ts], Any], /, *args: *Ts, grace: float = 5.0) -> Any:
    """Enter Gossamer: run ``main(*args)`` as the main virtual thread of this OS thread, and return its result.

    Args:
        main: A function, or a coroutine function.
        *args: What it is called with.
        grace: Seconds that virtual threads which no scope owns get to clean up after ``main`` has ended.

    Raises:
        RuntimeError: This OS thread runs virtual threads already.
        DeadlockError: Every virtual thread waits and nothing can wake one.
    """
    enter(virtual_threads=False)
    try:
        result = main(*args)
        if inspect.iscoroutine(result):
            import asyncio

            result = asyncio.run(result)
        return result
    finally:
        leave(grace)
