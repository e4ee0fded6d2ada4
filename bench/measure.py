# SPDX-License-Identifier: Apache-2.0
"""Running measured programs and putting their figures together.

A row runs ours and its peer by turns, each in a process of its own on the same CPU, and compares the two of a round
with
each other: whatever else the machine does at the time hits both. Peers run in processes that cannot import Gossamer.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

Figures = dict[str, float]


@dataclass
class Result:
    """One figure of the table: a value for each round, its limit, and what it was computed from."""

    row: str
    what: str
    unit: str
    limit: float | None
    rounds: list[float] = field(default_factory=list)
    figures: list[dict[str, Figures]] = field(default_factory=list)
    note: str = ""

    @property
    def median(self) -> float | None:
        """The middle round; None: nothing was measured."""
        return statistics.median(self.rounds) if self.rounds else None

    @property
    def verdict(self) -> str:
        """Whether the median is within the limit."""
        if self.median is None:
            return "not run"
        return "" if self.limit is None else "yes" if self.median <= self.limit else "no"


class ProgramFailed(Exception):
    """A measured program ended with an error; the message has the end of what it said."""


@dataclass
class Bench:
    """What rows run with: the interpreter, where things lie, how often."""

    python: str
    version: tuple[int, int]
    binaries: Path
    packages: Path
    rounds: int

    def ours(self, program: str, *args: str, under_run: bool = False) -> list[str]:
        """Return the command of a program in `ours/`."""
        start = [self.python, "-m", "gossamer", "run"] if under_run else [self.python]
        return [*start, str(HERE / "ours" / program), *args]

    def peer(self, program: str, *args: str) -> list[str]:
        """Return the command of a Python program in `peers/`."""
        return [self.python, str(HERE / "peers" / program), *args]

    def compiled(self, name: str, *args: str) -> list[str]:
        """Return the command of a compiled program of `peers/`."""
        return [str(self.binaries / name), *args]

    def environment(self, command: Sequence[str]) -> dict[str, str]:
        """Return the environment of a command: only ours find Gossamer, only peers find the peers' packages."""
        is_peer = any(str(HERE / "peers") in part for part in command)
        path = [HERE, self.packages / Path(command[1]).stem] if is_peer else [HERE, ROOT / "python"]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": ""}

    def start(self, command: Sequence[str], *, cpu: int = -1) -> subprocess.Popen[str]:
        """Start a command on one CPU (-1: the last)."""
        cpus = sorted(os.sched_getaffinity(0))
        chosen = {cpus[cpu]}
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment(command),
            preexec_fn=lambda: os.sched_setaffinity(0, chosen),
        )

    def run(self, command: Sequence[str], *, cpu: int = -1, timeout: float = 300) -> str:
        """Run a command to its end on one CPU and return what it printed."""
        with self.start(command, cpu=cpu) as process:
            try:
                output, _ = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            raise ProgramFailed(f"{' '.join(command)} ended with {process.returncode}")
        return output

    def figures(self, command: Sequence[str], *, timeout: float = 300) -> Figures:
        """Run a program that prints its figures."""
        return json.loads(self.run(command, timeout=timeout))

    def pair(
        self, result: Result, sides: dict[str, Sequence[str]], value: Callable[[dict[str, Figures]], float]
    ) -> Result:
        """Fill ``result`` with rounds: in each, every side once, the order turned round with each round."""
        for number in range(self.rounds):
            names = list(sides) if number % 2 == 0 else list(reversed(sides))
            figures = {name: self.figures(sides[name]) for name in names}
            result.figures.append(figures)
            result.rounds.append(value(figures))
        return result

    def can_import(self, program: str, module: str) -> bool:
        """Return whether the peer ``program`` finds ``module``."""
        command = [self.python, "-c", f"import {module}"]
        environment = self.environment(self.peer(program))
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0


def cpu_per_operation(figures: Figures) -> float:
    """CPU nanoseconds an operation."""
    return figures["cpu_ns"] / figures["operations"]


def log(message: str) -> None:
    """Tell who watches."""
    print(message, file=sys.stderr, flush=True)
