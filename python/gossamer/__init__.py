# SPDX-License-Identifier: Apache-2.0
"""Virtual threads for CPython: plain blocking code runs concurrently by the hundred thousand.

Under Gossamer nothing blocks: code that waits suspends its own virtual thread and nothing else. Enter with `run`, or
start a whole program with ``gossamer run script.py``.

- Enter: `run`, `new_event_loop`, `EventLoopPolicy`.
- Start, and wait for the end: `scope` and `Scope.spawn`, which returns a `Task`; `map`, `wait`, `as_completed`, `race`;
  `VirtualThreadPoolExecutor`.
- Time limits and cancellation: `timeout`, `shield`, `sleep`, `checkpoint`.
- Plain and async code call each other: `await_`, `asyncify`, `syncify`; `blocking_in_tasks`.
- See what happens: `current`, `dump`, `snapshot`, `DeadlockError`; `no_switch` keeps the others out.

Locks, queues, sockets and files are the standard library's. `gossamer.testing` is for tests.
"""

from __future__ import annotations

from gossamer._core import Task
from gossamer._errors import DeadlockError
from gossamer._run import run
from gossamer._scope import Scope, Timeout, checkpoint, current, no_switch, scope, shield, sleep, timeout

TYPE_CHECKING = False  # of typing, which takes 15 ms to import; type checkers know the name
if TYPE_CHECKING:
    from gossamer._blocking import blocking_in_tasks
    from gossamer._bridge import asyncify, await_, syncify
    from gossamer._dump import ThreadSnapshot, dump, snapshot
    from gossamer._event_loop import new_event_loop
    from gossamer._event_loop_policy import EventLoopPolicy
    from gossamer._several import DoneAndNotDone, as_completed, map, race, wait
    from gossamer.executors import VirtualThreadPoolExecutor

__all__ = [
    "DeadlockError",
    "DoneAndNotDone",
    "EventLoopPolicy",
    "Scope",
    "Task",
    "ThreadSnapshot",
    "Timeout",
    "VirtualThreadPoolExecutor",
    "as_completed",
    "asyncify",
    "await_",
    "blocking_in_tasks",
    "checkpoint",
    "current",
    "dump",
    "map",
    "new_event_loop",
    "no_switch",
    "race",
    "run",
    "scope",
    "shield",
    "sleep",
    "snapshot",
    "syncify",
    "timeout",
    "wait",
]


# Imported when first asked for: what they stand on takes longer to import than all the rest.
_MODULES = {
    "DoneAndNotDone": "gossamer._several",
    "EventLoopPolicy": "gossamer._event_loop_policy",
    "ThreadSnapshot": "gossamer._dump",
    "VirtualThreadPoolExecutor": "gossamer.executors",
    "as_completed": "gossamer._several",
    "asyncify": "gossamer._bridge",
    "await_": "gossamer._bridge",
    "blocking_in_tasks": "gossamer._blocking",
    "dump": "gossamer._dump",
    "map": "gossamer._several",
    "new_event_loop": "gossamer._event_loop",
    "race": "gossamer._several",
    "snapshot": "gossamer._dump",
    "syncify": "gossamer._bridge",
    "wait": "gossamer._several",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
