#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks of the source that no compiler or test makes; run by an interpreter that has Gossamer installed.

Each header compiles alone, and includes only what its layer may; the layers below Python name nothing of CPython's;
each public name has a docstring.
"""

from __future__ import annotations

import concurrent.futures
import inspect
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
LAYERS = {  # a layer: those that it may include
    "core": ("core",),
    "cpython": ("core", "cpython"),
    "sched": ("core", "cpython", "sched"),
    "interpose": ("core", "cpython", "sched", "interpose"),
    "loop": ("core", "cpython", "sched", "loop"),
}
OURS = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
OF_CPYTHON = re.compile(r"\b_?Py(?:_\w+|[A-Z]\w*)|\bPython\.h\b")
COMPILER = ("g++", "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Wno-invalid-offsetof", "-x", "c++", "-")


def wrong_includes(file: Path) -> Iterator[str]:
    """Yields the includes of a file that its layer may not have."""
    layer = file.relative_to(SOURCE).parts[0]
    for name in OURS.findall(file.read_text()):
        if name.split("/")[0] not in LAYERS.get(layer, (*LAYERS,)):
            yield f"{file.relative_to(ROOT)}: {layer} may not include {name}"


def names_of_cpython(file: Path) -> Iterator[str]:
    """Yields the lines of a file that name something of CPython's."""
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if match := OF_CPYTHON.search(line):
            yield f"{file.relative_to(ROOT)}:{number}: core may not name {match[0]}"


def compile_alone(header: Path) -> str | None:
    """Returns what the compiler says of a file that includes nothing but ``header``; None if it is content."""
    include = f'#include "{header.relative_to(SOURCE)}"\n'
    folders = ("-I", str(SOURCE), "-isystem", sysconfig.get_path("include"))
    result = subprocess.run([*COMPILER, *folders], input=include, capture_output=True, text=True, check=False)
    return result.stderr if result.returncode else None


def is_for_this_version(header: Path) -> bool:
    """Says whether a header is not one of another CPython's: `fiber_state_312.hpp` is for 3.12."""
    version = re.search(r"_(3\d+)$", header.stem)
    return version is None or version[1] == f"{sys.version_info[0]}{sys.version_info[1]}"


def names_without_docstring() -> Iterator[str]:
    """Yields the public names, and public methods of public classes, that say nothing of themselves."""
    import gossamer

    for name in gossamer.__all__:
        value = getattr(gossamer, name)
        if not (inspect.isclass(value) or callable(value)):
            continue
        if not inspect.getdoc(value):
            yield f"gossamer.{name} has no docstring"
        ours = [base for base in inspect.getmro(value) if is_ours(base)] if inspect.isclass(value) else []
        for member in {member for base in ours for member in vars(base) if not member.startswith("_")}:
            if not inspect.getdoc(getattr(value, member)):
                yield f"gossamer.{name}.{member} has no docstring"


def is_ours(base: type) -> bool:
    """Says whether a class is defined by Gossamer."""
    return base.__module__.split(".")[0] == "gossamer"


def main() -> int:
    """Runs every check, prints what is wrong and the counts; returns the exit code."""
    files = sorted([*SOURCE.rglob("*.hpp"), *SOURCE.rglob("*.cpp")])
    headers = [file for file in files if file.suffix == ".hpp" and is_for_this_version(file)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        alone = list(pool.map(compile_alone, headers))
    checks: list[list[str]] = [[message] if message else [] for message in alone]
    checks += [list(wrong_includes(file)) for file in files]
    checks += [list(names_of_cpython(file)) for file in files if file.is_relative_to(SOURCE / "core")]
    checks.append(list(names_without_docstring()))
    for found in checks:
        print(*found, sep="\n", end="\n" if found else "")
    failed = sum(bool(found) for found in checks)
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
