# SPDX-License-Identifier: Apache-2.0
"""What `gossamer run -c pass` takes longer than `python -c pass`, by turns: wall time, and CPU time for a busy
machine.
"""

import resource
import time

from measure import Bench, Figures, Result

ROUNDS = 21


def measure(bench: Bench) -> list[Result]:
    """Two results, of 21 rounds; the wall time is judged."""
    wall = Result("startup", "start-up, gossamer run -c pass minus python -c pass", "ms", 40)
    cpu = Result("startup", "the same in CPU time", "ms", None)
    sides = {
        "ours": [bench.python, "-m", "gossamer", "run", "-c", "pass"],
        "python": [bench.python, "-c", "pass"],
    }
    for command in sides.values():
        bench.run(command)  # compiles and caches
    for number in range(max(ROUNDS, bench.rounds)):
        names = list(sides) if number % 2 == 0 else list(reversed(sides))
        figures = {name: _timed(bench, sides[name]) for name in names}
        for result, name in ((wall, "wall_ns"), (cpu, "cpu_ns")):
            result.figures.append(figures)
            result.rounds.append((figures["ours"][name] - figures["python"][name]) / 1e6)
    return [wall, cpu]


def _timed(bench: Bench, command: list[str]) -> Figures:
    start, cpu_start = time.perf_counter_ns(), _cpu_of_children()
    bench.run(command)
    return {"wall_ns": time.perf_counter_ns() - start, "cpu_ns": _cpu_of_children() - cpu_start}


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (usage.ru_utime + usage.ru_stime) * 1e9
