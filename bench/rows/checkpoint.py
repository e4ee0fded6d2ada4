# SPDX-License-Identifier: Apache-2.0
"""One `checkpoint` between two virtual threads, against greenlet's switch there and back, and against runloom's
yield.
"""

from measure import Bench, Result, cpu_per_operation


def measure(bench: Bench) -> list[Result]:
    """Two results, or a note where the peer cannot be had for this Python."""
    return [
        _against(bench, "greenlet_switch.py", "greenlet", "one checkpoint / a greenlet switch there and back", 0.30),
        _against(bench, "runloom_yield.py", "runloom", "one checkpoint / one yield of runloom", 0.8),
    ]


def _against(bench: Bench, program: str, module: str, what: str, limit: float) -> Result:
    result = Result("checkpoint", what, "ratio", limit)
    if not bench.can_import(program, module):
        result.limit = None
        result.note = f"{module} cannot be installed for this Python"
        return result
    sides = {"ours": bench.ours("checkpoint.py"), module: bench.peer(program)}
    return bench.pair(
        result, sides, lambda figures: cpu_per_operation(figures["ours"]) / cpu_per_operation(figures[module])
    )
