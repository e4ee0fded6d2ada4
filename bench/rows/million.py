# SPDX-License-Identifier: Apache-2.0
"""One million virtual threads parked: all memory of the process and its page tables. Once: it takes a minute."""

from measure import Bench, Result

THREADS = 1_000_000


def measure(bench: Bench) -> list[Result]:
    """One result of one round."""
    result = Result("million", "one million parked: resident plus page tables", "GiB", 6)
    figures = bench.figures(bench.ours("parked_memory.py", "spawn", str(THREADS), under_run=True), timeout=1800)
    result.figures.append({"ours": figures})
    result.rounds.append(figures["whole_bytes"] / 2**30)
    return [result]
