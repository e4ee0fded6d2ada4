# SPDX-License-Identifier: Apache-2.0
"""10,000 parked virtual threads, seen from another process for 5 s, from 1 s after the last park."""

import time
from pathlib import Path

from measure import Bench, Figures, Result

PAUSE_SECONDS = 1
WATCHED_SECONDS = 5


def measure(bench: Bench) -> list[Result]:
    """Three results: OS threads, wake-ups, CPU time."""
    threads = Result("idle", "10,000 parked: OS threads", "", 12)
    wake_ups = Result("idle", "10,000 parked: wake-ups in 5 s", "", 0)
    cpu = Result("idle", "10,000 parked: CPU in 5 s", "ms", 0)
    for _ in range(bench.rounds):
        figures = _watch(bench)
        for result, name in ((threads, "threads"), (wake_ups, "wake_ups"), (cpu, "cpu_ms")):
            result.figures.append({"ours": figures})
            result.rounds.append(figures[name])
    return [threads, wake_ups, cpu]


def _watch(bench: Bench) -> Figures:
    with bench.start(bench.ours("idle.py", under_run=True)) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(PAUSE_SECONDS)
            before = _read(process.pid)
            time.sleep(WATCHED_SECONDS)
            after = _read(process.pid)
        finally:
            process.kill()
    return {
        "threads": max(before["threads"], after["threads"]),
        "wake_ups": after["switches"] - before["switches"],
        "cpu_ms": after["cpu_ms"] - before["cpu_ms"],
    }


def _read(pid: int) -> Figures:
    switches = run_ns = 0
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    for task in tasks:
        status = (task / "status").read_text(encoding="ascii").splitlines()
        switches += sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)
        run_ns += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return {"threads": len(tasks), "switches": switches, "cpu_ms": run_ns / 1e6}
