# SPDX-License-Identifier: Apache-2.0
"""What is measured of bridges between `def` and `async def`, the same for every bridge."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from meter import Meter, report

ROUNDS = 41
AWAITS = 2_000
CROSSINGS = 2_000


async def at_once() -> int:
    """End without giving way."""
    return 1


async def after_a_turn() -> int:
    """Give way to the loop once."""
    await asyncio.sleep(0)
    return 1


async def awaits(await_: Callable[[Awaitable[int]], int]) -> None:
    """Report the CPU time of an `await_` of both coroutines, and what it adds to an `await`; call it in a task.

    `await` and `await_` are measured by turns; a figure is the median of the rounds.
    """
    figures: dict[str, float] = {}
    for make in (at_once, after_a_turn):
        whole, added = [], []
        for number in range(ROUNDS):
            took = {}
            for is_bridged in (True, False) if number % 2 else (False, True):
                start = time.thread_time_ns()
                if is_bridged:
                    for _ in range(AWAITS):
                        await_(make())
                else:
                    for _ in range(AWAITS):
                        await make()
                took[is_bridged] = (time.thread_time_ns() - start) / AWAITS
            whole.append(took[True])
            added.append(took[True] - took[False])
        figures[f"{make.__name__}_ns"] = statistics.median(whole)
        figures[f"{make.__name__}_added_ns"] = statistics.median(added)
    report(operations=ROUNDS * AWAITS, **figures)


def crossings(
    asyncify: Callable[[Callable[[], int]], Callable[[], Coroutine[Any, Any, int]]],
    syncify: Callable[[Callable[[], Coroutine[Any, Any, int]]], Callable[[], int]],
) -> None:
    """Report the CPU time of rounds from a plain function into a coroutine, a plain function and a coroutine."""
    third = syncify(at_once)
    second = asyncify(lambda: third())

    async def call_second() -> int:
        return await second()

    first = syncify(call_second)
    for _ in range(100):
        first()
    with Meter(CROSSINGS):
        for _ in range(CROSSINGS):
            first()
