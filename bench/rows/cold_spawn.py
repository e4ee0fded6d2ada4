# SPDX-License-Identifier: Apache-2.0
"""What a new stack adds to a spawn, against a C loop that guards a page and touches one."""

from measure import Bench, Result, cpu_per_operation


def measure(bench: Bench) -> list[Result]:
    """One result."""
    result = Result("cold_spawn", "cold minus warm spawn / guard and touch a page in C", "ratio", 1.3)
    sides = {"ours": bench.ours("cold_spawn.py"), "c": bench.compiled("guard_touch")}
    return [
        bench.pair(result, sides, lambda figures: cpu_per_operation(figures["ours"]) / cpu_per_operation(figures["c"]))
    ]
