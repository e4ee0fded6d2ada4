# SPDX-License-Identifier: Apache-2.0
"""The CPythons that the project supports, and which programs of this machine count as one of them.

A candidate counts once it has run and told its version, and has the headers (also the internal ones) and, unless only a
user's build is wanted, CPython's own tests. Being there is not enough: pyenv has shims for versions that are not
selected, which only fail, and a file's name does not tell 3.14.0 from later ones.
"""

from __future__ import annotations

import glob
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from debian_folder import DebianFolder

# Those that Gossamer works on today: what `make demo` may take and `make test` runs on. A new one is added here.
WORKING = ("3.12", "3.13", "3.14", "3.15", "3.13t")
ALWAYS_NEEDED = ("3.12", "3.13")  # without these `make test` fails on any machine, not only in CI
MINIMUM_VERSIONS = {"3.14": (3, 14, 1)}  # 3.14.0 cannot be told the bounds of a C stack
PROBE_SECONDS = 30

PROBE = """
import importlib.util, json, os, sys, sysconfig
include = sysconfig.get_path("include")
headers = ("Python.h", "internal/pycore_frame.h")
print(json.dumps({
    "implementation": sys.implementation.name,
    "version": list(sys.version_info[:3]),
    "release_level": sys.version_info.releaselevel,
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "python": getattr(sys, "_base_executable", sys.executable),
    "has_headers": all(os.path.exists(os.path.join(include, header)) for header in headers),
    "has_tests": importlib.util.find_spec("test") is not None and importlib.util.find_spec("test.support") is not None,
}))
"""


@dataclass(frozen=True)
class Tag:
    """A CPython that the project supports."""

    version: str
    free_threaded: bool = False

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        return self.version + "t" * self.free_threaded

    @property
    def program(self) -> str:
        """The file name of its interpreter."""
        return f"python{self.name}"

    @property
    def minimum(self) -> tuple[int, ...]:
        """The first version that counts."""
        major, minor = self.version.split(".")
        return MINIMUM_VERSIONS.get(self.version, (int(major), int(minor), 0))

    @property
    def packages(self) -> tuple[str, ...]:
        """The Debian packages with it, its headers and its tests."""
        program = f"python{self.version}"
        return (f"{program}-dev", f"{program}-venv", f"lib{program}-testsuite")

    @property
    def prefix(self) -> Path:
        """Where a build from source is installed in the Debian folder."""
        return Path("/usr/lib/gossamer") / self.program


TAGS = {tag.name: tag for tag in (Tag("3.12"), Tag("3.13"), Tag("3.14"), Tag("3.15"), Tag("3.13", free_threaded=True))}


@dataclass(frozen=True)
class Answer:
    """What a candidate said about itself."""

    implementation: str
    version: tuple[int, ...]
    release_level: str
    free_threaded: bool
    python: str
    has_headers: bool
    has_tests: bool

    def refusal(self, tag: Tag, *, need_tests: bool = True) -> str | None:
        """Returns why it does not count as ``tag``, None when it does."""
        version = ".".join(map(str, self.version))
        if self.implementation != "cpython":
            return f"is {self.implementation}"
        if self.version[:2] != tag.minimum[:2] or self.release_level != "final":
            return f"is {version} {self.release_level}"
        if self.free_threaded != tag.free_threaded:
            return "is free-threaded" if self.free_threaded else "is not free-threaded"
        if self.version < tag.minimum:
            return f"is {version}, too old: {'.'.join(map(str, tag.minimum))} is the first that counts"
        if not self.has_headers:
            return "has no headers (Python.h and internal/)"
        return "has no tests (the module test)" if need_tests and not self.has_tests else None


@dataclass(frozen=True)
class Interpreter:
    """A CPython that counts."""

    tag: Tag
    version: str
    python: str
    source: str
    folder: DebianFolder | None = None

    def command(self, words: Sequence[str]) -> list[str]:
        """Returns the command line, for exec, that runs ``words`` where the interpreter lives."""
        words = [word.replace("{python}", self.python) for word in words]
        return self.folder.command(words, first_on_path=Path(self.python).parent) if self.folder else words


def ask(command: Sequence[str]) -> Answer | None:
    """Runs a candidate and returns its answer, None if it does not run or says something else."""
    words = [*command, "-I", "-c", PROBE]
    quiet = subprocess.DEVNULL
    try:
        told = subprocess.run(
            words, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet, text=True, timeout=PROBE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_answer(told.stdout) if told.returncode == 0 else None


def parse_answer(text: str) -> Answer | None:
    """Returns the answer in what a candidate printed, None if it is not one."""
    try:
        fields = json.loads(text)
        return Answer(**{**fields, "version": tuple(fields["version"])})
    except (ValueError, TypeError, KeyError):
        return None


def host_candidates(tag: Tag) -> Iterator[tuple[Path, str]]:
    """Yields the programs on this machine that may be ``tag``, with where they are from."""
    programs = dict.fromkeys((tag.program, f"python{tag.version}"))
    for entry in os.environ.get("PATH", "").split(os.pathsep):
        yield from ((Path(entry) / program, "PATH") for program in programs)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    # Not Path.glob, which raises where it may not look.
    folders = map(Path, glob.glob(f"{glob.escape(str(pyenv))}/versions/{tag.version}*"))
    for folder in sorted(folders, key=_numbers, reverse=True):
        yield from ((folder / "bin" / program, "pyenv") for program in programs)


def _numbers(folder: Path) -> list[int]:
    return [int("".join(filter(str.isdigit, part)) or 0) for part in folder.name.split(".")]


def find_on_host(tag: Tag, refusals: list[str], *, need_tests: bool = True) -> Interpreter | None:
    """Returns the first of this machine's candidates that counts; notes in ``refusals`` why others do not."""
    for path, source in host_candidates(tag):
        answer = ask([str(path)]) if os.access(path, os.X_OK) else None
        if answer is None:
            continue
        refusal = answer.refusal(tag, need_tests=need_tests)
        if refusal is None:
            return Interpreter(tag, ".".join(map(str, answer.version)), answer.python, source)
        refusals.append(f"{path} {refusal}")
    return None
