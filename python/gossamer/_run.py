# SPDX-License-Identifier: Apache-2.0
"""Entering Gossamer from an ordinary thread, and leaving it again."""

from __future__ import annotations

import _thread
import sys
from types import CoroutineType

from gossamer import _core, _greenlet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any, overload
else:

    def overload(function: object) -> object:
        """Leave a signature that only type checkers read."""
        return function


#: What a blocking call in an asyncio task can do.
BLOCKING = ("park", "block", "error")  # the extension knows them by their places

_is_fork_hook_registered = False


def enter(*, virtual_threads: bool) -> None:
    """Make this OS thread a carrier and the caller its main virtual thread."""
    global _is_fork_hook_registered
    if not _is_fork_hook_registered:
        _core.register_fork_hooks()
        _is_fork_hook_registered = True
    _greenlet.install()
    _core.enter(virtual_threads)


def uninstall() -> None:
    """Put back every function that entering has replaced; RuntimeError while virtual threads run."""
    _core.uninstall()
    _greenlet.uninstall()
    for name in ("gossamer._thread_objects", "gossamer._nested_run", "gossamer._loop_errors"):
        if name in sys.modules:
            sys.modules[name].uninstall()


def leave(grace: float) -> None:
    """Wait for non-daemon threads, cancel what is left, give it ``grace`` seconds, and name what does not end."""
    try:
        executors = sys.modules.get("gossamer.executors")
        if executors is not None:
            executors.shut_down_on_this_hub()
        _core.join_non_daemons()
    finally:
        if _core.statistics()["live"] == 1:
            _core.leave()
        else:
            _leave_the_rest(grace)


def _leave_the_rest(grace: float) -> None:
    """Leave with other virtual threads alive: cancel them, and name those that do not end in time."""
    import gc

    # A finaliser of cyclic garbage that waits for one of them would wait here for ever; afterwards its wait fails.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        _cancel_the_rest(grace)
        left = _core.statistics()["live"] - 1
        report = ""
        if left:
            from gossamer._dump import describe_threads

            threads = describe_threads(carrier=_thread.get_ident())  # this is the main virtual thread
            report = f"gossamer: {left} virtual threads did not end in {grace} s and are abandoned:\n{threads}"
        _core.leave()
        if report:
            print(report, file=sys.stderr)
    finally:
        if was_enabled:
            gc.enable()


def _cancel_the_rest(grace: float) -> None:
    import time

    _core.cancel_all()
    deadline = time.monotonic() + grace
    pause = 0.0
    while _core.statistics()["live"] > 1 and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(0.05, pause + 0.001)


@overload
def run[*Ts, T](
    main: Callable[[*Ts], Coroutine[Any, Any, T]],
    /,
    *args: *Ts,
    blocking: str = "park",
    carriers: int = 1,
    grace: float = 5.0,
) -> T: ...
@overload
def run[*Ts, T](
    main: Callable[[*Ts], T], /, *args: *Ts, blocking: str = "park", carriers: int = 1, grace: float = 5.0
) -> T: ...
def run[*Ts](
    main: Callable[[*Ts], Any], /, *args: *Ts, blocking: str = "park", carriers: int = 1, grace: float = 5.0
) -> Any:
    """Enter Gossamer: run ``main(*args)`` as the main virtual thread of this OS thread, and return its result.

    ``main`` runs on this OS thread's own stack. Several OS threads may be in a `run` of their own at once.

    Args:
        main: A function, or a coroutine function.
        *args: What it is called with.
        blocking: What a blocking call in an asyncio task does, see `blocking_in_tasks`: "park", "block" or "error".
        carriers: OS threads to run virtual threads on; 1 is the only choice yet.
        grace: Seconds that virtual threads which no scope owns get to clean up after ``main`` has ended.

    Raises:
        RuntimeError: This OS thread runs virtual threads already.
        DeadlockError: Every virtual thread waits and nothing can wake one.
        ValueError: An argument is none of its choices.
    """
    if blocking not in BLOCKING:
        raise ValueError(f"blocking={blocking!r} is none of {', '.join(map(repr, BLOCKING))}")
    if carriers != 1:
        raise ValueError(f"carriers={carriers!r} is not supported: 1 is")
    if not callable(main):
        raise TypeError(f"run() needs a callable, not {type(main).__name__}")
    blocking_module = sys.modules.get("gossamer._blocking")
    if blocking_module is not None and blocking_module.is_carrier_for_a_loop():
        return _core.spawn(_run_main, main, args, blocking).result()
    enter(virtual_threads=False)
    try:
        return _run_main(main, args, blocking)
    finally:
        leave(grace)


def _run_main(main: Callable[..., Any], args: tuple[Any, ...], blocking: str) -> Any:
    _core.block_in_all_tasks(BLOCKING.index(blocking))
    result = main(*args)
    if isinstance(result, CoroutineType):
        from gossamer._coroutines import run_coroutine

        result = run_coroutine(result)
    return result
