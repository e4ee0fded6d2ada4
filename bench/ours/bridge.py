# SPDX-License-Identifier: Apache-2.0
"""What bridge_work.py has, on Gossamer: `awaits` in a task; `crossings` in a task, a virtual thread or an ordinary one."""

import sys

import bridge_work
import gossamer as gs
from gossamer import asyncify, await_, syncify


async def awaits() -> None:
    """In a task of our loop."""
    await bridge_work.awaits(await_)


async def in_task() -> None:
    """In a task of our loop."""
    bridge_work.crossings(asyncify, syncify)


def in_thread() -> None:
    """In a virtual thread, or on an ordinary one."""
    bridge_work.crossings(asyncify, syncify)


match sys.argv[1:]:
    case ["awaits"]:
        gs.run(awaits)
    case ["crossings", "task"]:
        gs.run(in_task)
    case ["crossings", "virtual"]:
        gs.run(in_thread)
    case ["crossings", "ordinary"]:
        in_thread()
