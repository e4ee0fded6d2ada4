# SPDX-License-Identifier: Apache-2.0
"""Makes the modules in tools/ importable, and gives tests a machine of their own: PATH, pyenv and cache are empty."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "tools")]

from fake_machine import ANSWER, MakeProgram  # noqa: E402 - found only now


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only one on PATH besides the system's shell; nothing is under pyenv or in the cache."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "env", "cat"):
        (programs / name).symlink_to(Path("/bin") / name if name != "env" else "/usr/bin/env")
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return programs


@pytest.fixture
def make_program(machine: Path) -> MakeProgram:
    """Makes a program from a shell script, on PATH unless another folder is named."""

    def make(name: str, script: str, folder: Path | None = None) -> Path:
        program = (folder or machine) / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return program

    return make


@pytest.fixture
def make_python(make_program: MakeProgram) -> MakeProgram:
    """Makes a program that answers as a CPython would, with the given differences from 3.12.1."""

    def make(name: str, folder: Path | None = None, **differences: Any) -> Path:
        answer = json.dumps({**ANSWER, **differences})
        return make_program(name, f"echo '{answer}'", folder)

    return make
