# SPDX-License-Identifier: Apache-2.0
"""An echo server in plain `socket` code under `gossamer run`, against a C epoll server: CPU time a message.

Each round starts both servers anew, on the same CPU; one load generator on another CPU drives them by turns.
"""

import json
import subprocess
from contextlib import ExitStack

from measure import Bench, Figures, Result, cpu_per_operation

CONNECTIONS = 200
BYTES = 64
SLICES = 30
SLICE_MILLISECONDS = 50


def measure(bench: Bench) -> list[Result]:
    """One result."""
    limit = 1.12 if bench.version < (3, 14) else 1.08
    result = Result("echo", "echo, 64 B, 200 connections, CPU a message / C epoll server", "ratio", limit)
    sides = {"c": bench.compiled("echo_epoll"), "ours": bench.ours("echo.py", under_run=True)}
    for _ in range(bench.rounds):
        figures = _one_round(bench, sides)
        result.figures.append(figures)
        result.rounds.append(cpu_per_operation(figures["ours"]) / cpu_per_operation(figures["c"]))
    return [result]


def _one_round(bench: Bench, sides: dict[str, list[str]]) -> dict[str, Figures]:
    with ExitStack() as stack:
        servers = []
        for command in sides.values():
            server = stack.enter_context(bench.start(command))
            stack.callback(server.kill)
            servers.append(f"{_first_line(server)}:{server.pid}")
        numbers = map(str, (CONNECTIONS, BYTES, SLICES, SLICE_MILLISECONDS))
        output = bench.run(bench.compiled("echo_load", *numbers, *servers), cpu=0)
        return dict(zip(sides, json.loads(output), strict=True))


def _first_line(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    return server.stdout.readline().strip()
