# SPDX-License-Identifier: Apache-2.0
"""Type checkers in strict mode take the public names as the stubs and annotations promise.

They run where they are installed: in the environment of the newest interpreter of this machine itself.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PUBLIC_NAMES = str(HERE / "public_names.py")


def output_of(*words: str) -> str:
    """Returns what a module of this interpreter prints, with its exit code if that is not 0."""
    if importlib.util.find_spec(words[0].split(".")[0]) is None:
        pytest.skip(f"{words[0]} is not installed in this environment")
    command = [sys.executable, "-m", *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    output = f"{result.stdout}{result.stderr}".strip()
    return output if result.returncode == 0 else f"{output}\nexit code {result.returncode}"


def test_mypy_takes_the_public_names():
    """No error, and no `type: ignore` that hides none: calls with wrong arguments are found."""
    assert output_of("mypy", "--strict", "--no-incremental", PUBLIC_NAMES).startswith("Success")


def test_mypy_takes_the_package():
    """The annotations inside agree with the stub of the extension."""
    assert output_of("mypy", "--strict", "--no-incremental", "python/gossamer").startswith("Success")


def test_the_stub_agrees_with_the_extension():
    """Each name and signature of `_core.pyi` is there at run time, and nothing else is."""
    assert output_of("mypy.stubtest", "gossamer._core", "--mypy-config-file=pyproject.toml").startswith("Success")


def test_pyright_takes_the_public_names():
    """As mypy, by another reading of the same rules."""
    assert output_of("basedpyright", "--pythonpath", sys.executable, PUBLIC_NAMES).startswith("0 errors, 0 warnings")
