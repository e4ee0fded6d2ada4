# SPDX-License-Identifier: Apache-2.0
"""What has to be there before anything is measured: the extension as a release has it, the compiled peers, the
packages.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from measure import HERE, ROOT, log

PACKAGES = {
    "asgiref_crossings": "asgiref",
    "greenback_await": "greenback",
    "greenlet_switch": "greenlet",
    "runloom_yield": "runloom",
    "uvloop_loop": "uvloop",
}


def build_extension(python: str, tag: str) -> None:
    """Build with link-time optimisation and put the extension where `PYTHONPATH=python` finds it."""
    folder = ROOT / "build" / f"bench-{tag}"
    options = [f"-DPython_EXECUTABLE={shutil.which(python)}", "-DGOSSAMER_LTO=ON", "-DCMAKE_BUILD_TYPE=Release"]
    _run(["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(folder), *options])
    _run(["ninja", "-C", str(folder), "--quiet"])
    for extension in folder.glob("_core*.so"):
        shutil.copy(extension, ROOT / "python" / "gossamer")


def build_peers(folder: Path) -> None:
    """Compile the peers that are C++."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in (HERE / "peers").glob("*.cpp"):
        program = folder / source.stem
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            _run(["g++", "-std=c++20", "-O2", "-Wall", "-Wextra", str(source), "-o", str(program)])


def install_packages(python: str, folder: Path) -> None:
    """Install each peer's package into a folder of its own; one that does not install is missing from its row."""
    for program, package in PACKAGES.items():
        target = folder / program
        if target.exists():
            continue
        command = [python, "-m", "pip", "install", "--quiet", "--target", str(target), package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            log(f"  {package} does not install for this Python")
            target.mkdir(parents=True, exist_ok=True)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
