# SPDX-License-Identifier: Apache-2.0
"""Steps of asyncio tasks on stacks of their own and off them, by turns on one loop; nanoseconds of CPU time a step."""

import asyncio
import statistics
import time

import gossamer as gs
from gossamer import _core
from meter import report

ROUNDS = 60
TASKS = 200
STEPS = 50
PARK, BLOCK = 0, 1  # of _core.block_in_tasks


async def steps() -> None:
    """Give way again and again."""
    sleep = asyncio.sleep
    for _ in range(STEPS):
        await sleep(0)


async def nanoseconds(mode: int) -> float:
    """Return the time of one step of many tasks."""
    _core.block_in_tasks(mode)
    start = time.thread_time_ns()
    await asyncio.gather(*(steps() for _ in range(TASKS)))
    return (time.thread_time_ns() - start) / TASKS / STEPS


async def measure() -> None:
    """Report the median of the differences of neighbours, in changing order."""
    added, off = [], []
    for number in range(ROUNDS):
        figures = {mode: await nanoseconds(mode) for mode in ((PARK, BLOCK) if number % 2 else (BLOCK, PARK))}
        added.append(figures[PARK] - figures[BLOCK])
        off.append(figures[BLOCK])
    report(added_ns=statistics.median(added), off_ns=min(off), operations=ROUNDS * TASKS * STEPS)


gs.run(measure)
