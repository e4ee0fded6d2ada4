# SPDX-License-Identifier: Apache-2.0
"""100 tasks spawned and joined in a scope, against `asyncio.TaskGroup`."""

from measure import Bench, Result, cpu_per_operation


def measure(bench: Bench) -> list[Result]:
    """One result; asyncio's tasks became faster in 3.14."""
    limit = 0.12 if bench.version < (3, 14) else 0.20
    result = Result("spawn_join", "100 tasks in a scope / in asyncio.TaskGroup", "ratio", limit)
    sides = {"ours": bench.ours("spawn_join.py"), "asyncio": bench.peer("task_group.py")}
    return [
        bench.pair(
            result, sides, lambda figures: cpu_per_operation(figures["ours"]) / cpu_per_operation(figures["asyncio"])
        )
    ]
