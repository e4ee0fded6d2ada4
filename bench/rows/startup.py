# SPDX-License-Identifier: Apache-2.0
"""What `gossamer run -c pass` takes longer than `python -c pass`: wall time, by turns."""

import time

from measure import Bench, Figures, Result

ROUNDS = 21


def measure(bench: Bench) -> list[Result]:
    """One result, of 21 rounds."""
    result = Result("startup", "start-up, gossamer run -c pass minus python -c pass", "ms", 40)
    sides = {
        "ours": [bench.python, "-m", "gossamer", "run", "-c", "pass"],
        "python": [bench.python, "-c", "pass"],
    }
    for command in sides.values():
        bench.run(command)  # compiles and caches
    for number in range(max(ROUNDS, bench.rounds)):
        names = list(sides) if number % 2 == 0 else list(reversed(sides))
        figures = {name: _timed(bench, sides[name]) for name in names}
        result.figures.append(figures)
        result.rounds.append((figures["ours"]["wall_ns"] - figures["python"]["wall_ns"]) / 1e6)
    return [result]


def _timed(bench: Bench, command: list[str]) -> Figures:
    start = time.perf_counter_ns()
    bench.run(command)
    return {"wall_ns": time.perf_counter_ns() - start}
