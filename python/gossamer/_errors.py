# SPDX-License-Identifier: Apache-2.0
"""The exceptions of Gossamer's own, and the way of an error that nobody took."""

from __future__ import annotations

import threading


class DeadlockError(RuntimeError):
    """Every virtual thread waits and nothing can wake one. The message has the line where each one waits."""


def make_deadlock_error() -> DeadlockError:
    """Describe every wait; called by the hub, in the main virtual thread."""
    from gossamer._dump import describe_threads

    return DeadlockError("every virtual thread waits, and nothing can wake one:\n" + describe_threads())


def report_lost(exception: BaseException) -> None:
    """Hand an exception that no joiner and no scope took to `threading.excepthook`."""
    thread = threading.current_thread()
    threading.excepthook(threading.ExceptHookArgs((type(exception), exception, exception.__traceback__, thread)))


__all__ = ["DeadlockError", "make_deadlock_error", "report_lost"]
