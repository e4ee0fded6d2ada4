# SPDX-License-Identifier: Apache-2.0
"""What a stack of its own adds to a step of an asyncio task that does not block, in one process and on one loop."""

from measure import Bench, Figures, Result


def measure(bench: Bench) -> list[Result]:
    """One result."""
    result = Result("step", "a task's step that does not block, on a stack of its own minus off it", "ns", 40)
    return [bench.pair(result, {"ours": bench.ours("step.py")}, _added)]


def _added(figures: dict[str, Figures]) -> float:
    return figures["ours"]["added_ns"]
