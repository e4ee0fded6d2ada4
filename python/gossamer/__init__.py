# SPDX-License-Identifier: Apache-2.0
"""Virtual threads for CPython: plain blocking code runs concurrently by the hundred thousand.

Under Gossamer nothing blocks: code that waits suspends its own virtual thread and nothing else. Enter with `run`, or
start a whole program with ``gossamer run script.py``.
"""

from __future__ import annotations

from gossamer._core import Task
from gossamer._errors import DeadlockError
from gossamer._run import run
from gossamer._scope import Scope, checkpoint, current, no_switch, scope, shield, sleep, timeout

__all__ = [
    "DeadlockError",
    "Scope",
    "Task",
    "checkpoint",
    "current",
    "no_switch",
    "run",
    "scope",
    "shield",
    "sleep",
    "timeout",
]
