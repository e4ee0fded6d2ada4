# SPDX-License-Identifier: Apache-2.0
"""What a measured program uses: it times its own work and prints the figures as one line of JSON."""

import json
import resource
import time
from collections.abc import Callable


class Meter:
    """Wall and CPU time of the work in a `with` block, printed on leaving."""

    def __init__(self, operations: int) -> None:
        self._operations = operations

    def __enter__(self) -> None:
        self._wall = time.perf_counter_ns()
        self._cpu = time.process_time_ns()

    def __exit__(self, *_error: object) -> None:
        cpu = time.process_time_ns() - self._cpu
        wall = time.perf_counter_ns() - self._wall
        report(operations=self._operations, wall_ns=wall, cpu_ns=cpu)


def report(**figures: float) -> None:
    """Print figures, with the peak memory of this process in KiB."""
    print(json.dumps({**figures, "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}), flush=True)


def resident_bytes() -> int:
    """Return what this process has in memory now."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Rss:"))


def page_table_bytes() -> int:
    """Return what the page tables of this process take."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmPTE:"))


def cpu_of(work: Callable[[], object]) -> int:
    """Run ``work`` and return its CPU time in nanoseconds."""
    start = time.process_time_ns()
    work()
    return time.process_time_ns() - start
