# SPDX-License-Identifier: Apache-2.0
"""Virtual threads for CPython: plain blocking code runs concurrently by the hundred thousand.

Under Gossamer nothing blocks: code that waits suspends its own virtual thread and nothing else. Enter with `run`, or
start a whole program with ``gossamer run script.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gossamer._core import Task
from gossamer._errors import DeadlockError
from gossamer._dump import ThreadSnapshot, dump, snapshot
from gossamer._run import run
from gossamer._scope import Scope, Timeout, checkpoint, current, no_switch, scope, shield, sleep, timeout
from gossamer._several import DoneAndNotDone, as_completed, map, race, wait

if TYPE_CHECKING:
    from gossamer.executors import VirtualThreadPoolExecutor

__all__ = [
    "DeadlockError",
    "DoneAndNotDone",
    "Scope",
    "Task",
    "ThreadSnapshot",
    "Timeout",
    "VirtualThreadPoolExecutor",
    "as_completed",
    "checkpoint",
    "current",
    "dump",
    "map",
    "no_switch",
    "race",
    "run",
    "scope",
    "shield",
    "sleep",
    "snapshot",
    "timeout",
    "wait",
]


def __getattr__(name: str) -> object:
    if name == "VirtualThreadPoolExecutor":  # concurrent.futures takes 17 ms to import
        from gossamer.executors import VirtualThreadPoolExecutor

        globals()[name] = VirtualThreadPoolExecutor
        return VirtualThreadPoolExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
