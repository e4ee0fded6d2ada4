# SPDX-License-Identifier: Apache-2.0
"""The exceptions of Gossamer's own, and the way of an error that nobody took."""

from __future__ import annotations

from gossamer import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class DeadlockError(RuntimeError):
    """Every virtual thread waits and nothing can wake one. The message has the line where each one waits."""


def make_deadlock_error(main_waits_for: str) -> DeadlockError:
    """Describe every wait; called by the hub, in the main virtual thread."""
    from gossamer._dump import describe_waits

    return DeadlockError("every virtual thread waits, and nothing can wake one:\n" + describe_waits(main_waits_for))


def report_lost(exception: BaseException) -> None:
    """Hand an exception that no joiner and no scope took to `threading.excepthook`."""
    import threading

    # Not current_thread(): this runs in finalisers, also at the end of a virtual thread whose locals have gone, and an
    # object made there would stay in threading._active.
    thread = threading._active.get(threading.get_ident())  # type: ignore[attr-defined]
    threading.excepthook(threading.ExceptHookArgs((type(exception), exception, exception.__traceback__, thread)))


def watch_coroutines() -> None:
    """Count a coroutine that is never awaited as a lost error, in this OS thread's virtual threads; tell its origin.

    What the program's warning filters ignore, what it records, and what its own `warnings.showwarning` shows is not
    lost: somebody decided about it.
    """
    import warnings

    _core.track_coroutine_origins(1)
    # The place that prints; before 3.14 catch_warnings(record=True) puts another function there.
    show = warnings._showwarnmsg_impl  # type: ignore[attr-defined]

    def show_and_count(message: Any) -> None:
        if message.category is RuntimeWarning and "was never awaited" in str(message.message):
            context = warnings._get_context() if hasattr(warnings, "_get_context") else None
            if getattr(context, "log", None) is None:  # 3.14's way to record
                _core.note_lost_error()
        show(message)

    warnings._showwarnmsg_impl = show_and_count  # type: ignore[attr-defined]
    # A warning that is turned into an error is printed by the interpreter, which then goes on. Written in C: a Python
    # frame more would change the line that the warning is about.
    warn = warnings._warn_unawaited_coroutine  # type: ignore[attr-defined]
    warnings._warn_unawaited_coroutine = _core.noting_errors_of(warn)  # type: ignore[attr-defined]


def watch_event_loops() -> None:
    """Count what asyncio's loops only tell of as lost errors, from the first loop that runs on."""
    from gossamer import _running_loops

    _running_loops.watch(_watch_errors_of_loops)


def _watch_errors_of_loops(loop: object) -> None:
    from gossamer import _loop_errors

    _loop_errors.install()
    if loop is not None:
        _loop_errors.watch(loop)
