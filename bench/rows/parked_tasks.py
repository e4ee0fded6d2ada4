# SPDX-License-Identifier: Apache-2.0
"""Resident bytes of an asyncio task that is parked in `time.sleep`."""

from measure import Bench, Figures, Result

TASKS = 10_000


def measure(bench: Bench) -> list[Result]:
    """One result: the task, its coroutine, its context and its stack."""
    result = Result("parked_tasks", "resident bytes, parked in time.sleep: an asyncio task", "bytes", 9_000)
    return [bench.pair(result, {"ours": bench.ours("parked_tasks.py", str(TASKS))}, _resident)]


def _resident(figures: dict[str, Figures]) -> float:
    return figures["ours"]["resident_bytes"] / figures["ours"]["operations"]
