# SPDX-License-Identifier: Apache-2.0
"""Runs a test module in a pytest of its own, with the plugin and nothing else."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Run:
    """How a run of pytest ended: "1 failed, 2 passed" as numbers, and what it printed."""

    outcomes: dict[str, int]
    output: str


@pytest.fixture
def run_tests(tmp_path: Path) -> Callable[..., Run]:
    """A function that runs ``source`` as a test module with the arguments for pytest that follow."""

    def run(source: str, *arguments: str) -> Run:
        (tmp_path / "test_it.py").write_text("import gossamer, pytest\n" + source)
        (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "gossamer.pytest_plugin", *arguments]
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "200"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        output = done.stdout + done.stderr
        summary = re.findall(r"(\d+) (passed|failed|errors?|skipped|warnings?|deselected)", output.splitlines()[-1])
        if not summary:
            raise AssertionError(f"pytest did not finish:\n{output}")
        return Run(
            {word.removesuffix("s") if word != "passed" else word: int(count) for count, word in summary}, output
        )

    return run
