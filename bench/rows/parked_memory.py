# SPDX-License-Identifier: Apache-2.0
"""Resident bytes of a virtual thread that is parked in `time.sleep`."""

from measure import Bench, Figures, Result

THREADS = 20_000


def measure(bench: Bench) -> list[Result]:
    """A task of a scope, and a `threading.Thread`."""
    return [
        _parked(bench, "spawn", "resident bytes, parked in time.sleep: a task", 4_800),
        _parked(bench, "thread", "resident bytes, parked in time.sleep: a threading.Thread", 7_500),
    ]


def _parked(bench: Bench, kind: str, what: str, limit: float) -> Result:
    command = bench.ours("parked_memory.py", kind, str(THREADS), under_run=True)
    return bench.pair(Result("parked_memory", what, "bytes", limit), {"ours": command}, _resident)


def _resident(figures: dict[str, Figures]) -> float:
    return figures["ours"]["resident_bytes"] / figures["ours"]["operations"]
