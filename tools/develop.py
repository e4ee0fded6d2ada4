#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What `make lint`, `fmt`, `check`, `docs` and `bench` run, in the environment for tools.

develop.py lint | fmt | check | docs | bench [ARGS of bench/run.py]
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

from deb import ToolError
from environment import BUILD, ROOT, Environment, Environments
from steps import StepFailed, Steps, stop_on_sigterm


def sources() -> list[str]:
    """Returns the C++ files that git knows."""
    patterns = [f"{folder}/*.{ending}" for folder in ("src", "tests", "bench") for ending in ("hpp", "cpp")]
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.split()


def lint(tools: Environment, arguments: Sequence[str]) -> list[list[str]]:
    """Finds what is not as it should look, and what is known to be a mistake."""
    ruff, clang_format = tools.program("ruff"), tools.program("clang-format")
    return [
        [ruff, "check", "--quiet"],
        [ruff, "format", "--check", "--quiet"],
        [clang_format, "--dry-run", "-Werror", *sources()],
    ]


def fmt(tools: Environment, arguments: Sequence[str]) -> list[list[str]]:
    """Formats everything."""
    ruff, clang_format = tools.program("ruff"), tools.program("clang-format")
    return [[ruff, "check", "--quiet", "--fix-only"], [ruff, "format", "--quiet"], [clang_format, "-i", *sources()]]


def check(tools: Environment, arguments: Sequence[str]) -> list[list[str]]:
    """Checks the source (`checks.py`) and the types."""
    return [tools.command("tools/checks.py"), tools.command("-m", "pytest", "-q", "tests/typing")]


def docs(tools: Environment, arguments: Sequence[str]) -> list[list[str]]:
    """Runs the examples of the documentation."""
    return [tools.command("-m", "pytest", "-q", "tests/docs")]


def bench(tools: Environment, arguments: Sequence[str]) -> list[list[str]]:
    """Measures; builds Gossamer itself, for speed."""
    return [tools.command("bench/run.py", *arguments)]


COMMANDS: dict[str, Callable[[Environment, Sequence[str]], list[list[str]]]] = {
    function.__name__: function for function in (lint, fmt, check, docs, bench)
}
WITHOUT_GOSSAMER = ("lint", "fmt", "bench")


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    if not arguments or arguments[0] not in COMMANDS:
        print(__doc__.splitlines()[-1].strip(), file=sys.stderr)
        return 2
    stop_on_sigterm()
    os.chdir(ROOT)
    steps = Steps(BUILD / "logs", ROOT)
    try:
        tools = Environments(may_download=False).for_tools()
        make_ready = tools.create if arguments[0] in WITHOUT_GOSSAMER else tools.install_gossamer
        make_ready(steps)
    except (ToolError, StepFailed) as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 1
    finally:
        steps.stop()
    paths = {**os.environ, "PATH": f"{tools.path / 'bin'}:{os.environ['PATH']}"}  # cmake and ninja are there
    commands = COMMANDS[arguments[0]](tools, arguments[1:])
    codes = [subprocess.run(command, env=paths).returncode for command in commands]
    return int(any(codes))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
