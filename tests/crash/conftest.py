# SPDX-License-Identifier: Apache-2.0
"""Programs that run in a child process, because they crash, fork or end."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

RunProgram = Callable[..., subprocess.CompletedProcess[str]]


def _run(source: str, *arguments: str, options: tuple[str, ...] = (), plain: bool = False):
    runner = ["-c"] if plain else ["-m", "gossamer", "run", *options, "-c"]
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", *runner, textwrap.dedent(source), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONWARNINGS": "ignore::DeprecationWarning"},
    )


@pytest.fixture
def run_program() -> RunProgram:
    """Run a program's source under ``gossamer run``, or with plain Python."""
    return _run


@pytest.fixture
def run_both() -> Callable[..., tuple[tuple[int, str, str], tuple[int, str, str]]]:
    """Run a program plain and under ``gossamer run``: (exit code, output, errors) of each."""

    def both(source: str, *arguments: str):
        results = [_run(source, *arguments, plain=plain) for plain in (True, False)]
        return tuple((result.returncode, result.stdout, result.stderr) for result in results)

    return both
