# SPDX-License-Identifier: Apache-2.0
"""What interposition adds to a lock that an ordinary OS thread uses: smallest of 21 turns of each, in one process."""

from measure import Bench, Figures, Result


def measure(bench: Bench) -> list[Result]:
    """One result."""
    result = Result("lock", "acquire and release of a Lock on an OS thread, installed minus not", "ns", 6)
    return [bench.pair(result, {"ours": bench.ours("lock.py")}, _added)]


def _added(figures: dict[str, Figures]) -> float:
    return figures["ours"]["installed_ns"] - figures["ours"]["uninstalled_ns"]
