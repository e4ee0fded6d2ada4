# SPDX-License-Identifier: Apache-2.0
"""Virtual environments under build/, one an interpreter, with Gossamer built and installed into them by pip.

An environment is made anew when its interpreter or the packages wanted in it change; a stamp, written last, says what it
was made for. The build folder of the extension is kept, so that only what changed is compiled again.
"""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

from candidates import Interpreter
from deb import ATTEMPTS
from steps import Steps

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
INSTALL_SECONDS = 600.0
COMPILE_SECONDS = 1200.0


def packages_of(*groups: str) -> list[str]:
    """Returns the packages that pyproject.toml lists for the dependency groups named."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    return sorted({package for group in groups for package in listed[group]})


@dataclass(frozen=True)
class Environment:
    """A virtual environment of ``interpreter``, called ``name``."""

    interpreter: Interpreter
    name: str

    @property
    def path(self) -> Path:
        """Its folder."""
        return BUILD / f"env-{self.name}"

    @property
    def python(self) -> str:
        """Its interpreter, as a path that is the same inside a Debian folder."""
        return str(self.path / "bin" / "python")

    def command(self, *words: str) -> list[str]:
        """Returns the command line that runs its interpreter with ``words``."""
        return self.interpreter.command([self.python, *words])

    def create(self, steps: Steps, packages: list[str]) -> None:
        """Makes the environment with ``packages`` in it, unless it is there.

        Raises:
            StepFailed: The environment cannot be made, or pip cannot get a package.
        """
        stamp = self.path / "gossamer-stamp"
        wanted = "\n".join([self.interpreter.python, self.interpreter.version, *packages])
        if stamp.exists() and stamp.read_text() == wanted:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        make = self.interpreter.command([self.interpreter.python, "-m", "venv", str(self.path)])
        steps.must(self.name, "environment", make, seconds=INSTALL_SECONDS)
        if packages:
            install = self.command("-m", "pip", "install", "--quiet", *packages)
            steps.must(self.name, "packages", install, seconds=INSTALL_SECONDS, attempts=ATTEMPTS)
        stamp.write_text(wanted)

    def install_gossamer(self, steps: Steps) -> None:
        """Builds Gossamer's wheel and installs it. The group `build` of packages must be there.

        Raises:
            StepFailed: It does not build.
        """
        options = ("--no-build-isolation", "--no-deps", "--force-reinstall", "--no-cache-dir")
        folder = f"--config-settings=build-dir={BUILD / f'wheel-{self.name}'}"
        install = self.command("-m", "pip", "install", "--verbose", *options, folder, str(ROOT))
        steps.must(self.name, "build", install, seconds=COMPILE_SECONDS)
