# SPDX-License-Identifier: Apache-2.0
"""Virtual environments under build/, one an interpreter, with Gossamer built and installed into them by pip.

An environment is made anew when its interpreter or the packages wanted in it change; a stamp, written last, says what
it was made for. The build folder of the extension is kept, so that only what changed is compiled again.
"""

from __future__ import annotations

import shutil
import threading
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from candidates import ALWAYS_NEEDED, TAGS, Interpreter, Tag
from deb import ATTEMPTS, ToolError
from interpreters import find, get
from steps import Steps

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
INSTALL_SECONDS = 600.0
COMPILE_SECONDS = 1200.0


def packages_of(*groups: str) -> tuple[str, ...]:
    """Returns the packages that pyproject.toml lists for the dependency groups named."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    return tuple(sorted({package for group in groups for package in listed[group]}))


@dataclass
class Environment:
    """A virtual environment of ``interpreter``, called ``name``, with ``packages`` in it."""

    interpreter: Interpreter
    name: str
    packages: tuple[str, ...]
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _has_gossamer: bool = False  # under _lock: of this source, built by this run

    @property
    def path(self) -> Path:
        """Its folder."""
        return BUILD / f"env-{self.name}"

    @property
    def python(self) -> str:
        """Its interpreter, as a path that is the same inside a Debian folder."""
        return self.program("python")

    def program(self, name: str) -> str:
        """Returns the path of a program that a package has."""
        return str(self.path / "bin" / name)

    def command(self, *words: str) -> list[str]:
        """Returns the command line that runs its interpreter with ``words``."""
        return self.interpreter.command([self.python, *words])

    def create(self, steps: Steps) -> None:
        """Makes the environment unless it is there.

        Raises:
            StepFailed: It cannot be made, or pip cannot get a package.
        """
        with self._lock:
            self._create(steps)

    def install_gossamer(self, steps: Steps) -> None:
        """Makes the environment, builds Gossamer's wheel and installs it, once in this run.

        Raises:
            StepFailed: The environment cannot be made, or the wheel does not build.
        """
        with self._lock:
            self._create(steps)
            if self._has_gossamer:
                return
            options = ("--verbose", "--no-build-isolation", "--no-deps", "--force-reinstall", "--no-cache-dir")
            folder = f"--config-settings=build-dir={BUILD / f'wheel-{self.name}'}"
            install = self.command("-m", "pip", "install", *options, folder, str(ROOT))
            steps.must(self.name, "build", install, seconds=COMPILE_SECONDS)
            self._has_gossamer = True

    def take_gossamer(self, other: Environment, steps: Steps) -> None:
        """Makes the environment, and has it use the Gossamer of ``other``, which is of the same interpreter.

        Raises:
            StepFailed: One of the two cannot be made.
        """
        other.install_gossamer(steps)
        with self._lock:
            self._create(steps)
            (source,) = other.path.glob("lib/python*/site-packages/gossamer")
            taken = self.path / source.relative_to(other.path)
            taken.unlink(missing_ok=True)
            taken.symlink_to(source)

    def _create(self, steps: Steps) -> None:
        stamp = self.path / "gossamer-stamp"
        wanted = "\n".join([self.interpreter.python, self.interpreter.version, *self.packages])
        if stamp.exists() and stamp.read_text() == wanted:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        make = self.interpreter.command([self.interpreter.python, "-m", "venv", str(self.path)])
        steps.must(self.name, "environment", make, seconds=INSTALL_SECONDS)
        install = self.command("-m", "pip", "install", "--quiet", *self.packages)
        steps.must(self.name, "packages", install, seconds=INSTALL_SECONDS, attempts=ATTEMPTS)
        stamp.write_text(wanted)


class Environments:
    """The environments for development: one for each interpreter that Gossamer works on. Thread: any."""

    def __init__(self, *, may_download: bool) -> None:
        self._look_for = get if may_download else find
        self._lock = threading.Lock()
        self._made: dict[str, Environment | None] = {}  # under _lock

    def of(self, tag: Tag) -> Environment | None:
        """Returns the environment for ``tag``, yet to be made; None if the interpreter is not there.

        Raises:
            ToolError: It was to be downloaded, and cannot be had.
        """
        with self._lock:
            if tag.name not in self._made:
                groups = ["build", "test"]
                if not tag.free_threaded:
                    groups.append("test-with-gil")  # packages with C parts that no free-threaded 3.13 has
                if tag is _for_tools():
                    groups += ["lint", "typing"]
                interpreter = self._look_for(tag)
                self._made[tag.name] = interpreter and Environment(interpreter, tag.name, packages_of(*groups))
            return self._made[tag.name]

    def for_tools(self) -> Environment:
        """Returns the one that also has the tools for development: formatters, type checkers.

        Raises:
            ToolError: Its interpreter is not there.
        """
        environment = self.of(_for_tools())
        if environment is None:
            raise ToolError(f"CPython {_for_tools().name} is not there: tools/interpreters.py get {_for_tools().name}")
        return environment


def _for_tools() -> Tag:
    """Returns the newest interpreter that every machine for development has itself, outside of a folder."""
    return TAGS[ALWAYS_NEEDED[-1]]
