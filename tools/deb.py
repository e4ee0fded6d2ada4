#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Unpacks Debian packages into a folder, without root and without installing them.

`deb.py unpack DIR PACKAGE...` downloads each package from the archive that this machine's apt uses and unpacks it
under DIR. Dependencies are not followed: name what is needed. `A|B` takes the first name that the archive has, because
library packages change their names between releases. Downloads are kept in the cache folder, a stamp in DIR says what
is there already, and then nothing is downloaded or printed.

apt runs on its own lists and state in the cache folder, so neither root nor an `apt-get update` beforehand is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

STAMPS = ".unpacked"
ATTEMPTS = 3
PAUSE_SECONDS = 5.0
LISTS_AGE_SECONDS = 24 * 3600.0


class ToolError(Exception):
    """Something outside went wrong; the message says what the user can do about it."""


def cache_folder() -> Path:
    """Returns the folder that outlives a clone: `$XDG_CACHE_HOME/gossamer`, by default under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gossamer"


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds the lock ``name`` of the cache folder, so that two builds do not write to one place at once."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with open(cache_folder() / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run_with_retries(
    command: Sequence[str | Path],
    *,
    attempts: int = ATTEMPTS,
    pause: float = PAUSE_SECONDS,
    cwd: Path | None = None,
    log: Path | None = None,
) -> None:
    """Runs ``command`` until it succeeds.

    Args:
        command: The program and its arguments.
        attempts: How often it may be tried.
        pause: Seconds before the second attempt; doubled before each later one.
        cwd: The folder it runs in.
        log: The file that its output is added to; None for stderr.

    Raises:
        ToolError: The last attempt failed, or the program does not exist.
    """
    with contextlib.nullcontext(sys.stderr) if log is None else open(log, "a") as output:
        for attempt in range(1, attempts + 1):
            try:
                result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd)
            except FileNotFoundError as error:
                raise ToolError(f"cannot run {command[0]}: {error}") from error
            if result.returncode == 0:
                return
            if attempt < attempts:
                time.sleep(pause * 2 ** (attempt - 1))
    details = f"; its output is in {log}" if log else ""
    words = textwrap.shorten(" ".join(str(word) for word in command), 120)
    raise ToolError(f"failed {attempts} times, at last with exit code {result.returncode}{details}: {words}")


def release_name(os_release: Path = Path("/etc/os-release")) -> str:
    """Returns the code name of this machine's Debian or Ubuntu release, `unknown` when it has none."""
    lines = os_release.read_text().splitlines() if os_release.exists() else []
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    return values.get("VERSION_CODENAME", "unknown").strip('"')


class Archive:
    """The archive that this machine's apt uses, read through apt with private lists; downloads are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.packages = folder / "packages"

    def download(self, names: Sequence[str]) -> list[Path]:
        """Returns the `.deb` files of the packages ``names``, downloaded unless they are kept already.

        Raises:
            ToolError: The archive does not have one of them, or cannot be reached.
        """
        wanted = [name for name in names if self._kept(name) is None]
        if wanted:
            self._download(wanted)
        files = [(name, self._kept(name)) for name in names]
        lost = [name for name, file in files if file is None]
        if lost:
            raise ToolError(f"apt-get download succeeded but left no file for {', '.join(lost)} in {self.packages}")
        return [file for _, file in files if file is not None]

    def has(self, name: str) -> bool:
        """Says whether package ``name`` can be had."""
        if self._kept(name) is not None:
            return True
        self._update(LISTS_AGE_SECONDS)
        show = subprocess.run(["apt-cache", *self._options(), "show", name], capture_output=True)
        return show.returncode == 0

    def _kept(self, name: str) -> Path | None:
        # apt-get download writes to a partial file and renames it, so a file NAME_VERSION_ARCH.deb is whole.
        return max(self.packages.glob(f"{name}_*.deb"), key=lambda file: file.stat().st_mtime, default=None)

    def _download(self, names: Sequence[str]) -> None:
        self.packages.mkdir(parents=True, exist_ok=True)
        command = ["apt-get", *self._options(), "-qq", "download", *names]
        self._update(LISTS_AGE_SECONDS)
        try:
            run_with_retries(command, attempts=1, cwd=self.packages)
        except ToolError:
            self._update(0)  # a package that was replaced by a newer one is no longer at its old address
            run_with_retries(command, cwd=self.packages)

    def _update(self, age_seconds: float) -> None:
        """Fetches the lists of packages unless they are younger than ``age_seconds``."""
        stamp = self.folder / "updated"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < age_seconds:
            return
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        run_with_retries(["apt-get", *self._options(), "-qq", "update"])
        stamp.touch()

    def _options(self) -> list[str]:
        settings = {
            "Dir::State": self.folder / "state",
            "Dir::State::status": "/var/lib/dpkg/status",
            "Dir::Cache": self.folder / "cache",
            "APT::Sandbox::User": "root",  # the user _apt cannot write to a home folder
            "Acquire::Retries": 3,
        }
        return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def choose(archive: Archive, alternatives: str) -> str:
    """Returns the first name of `A|B|C` that the archive has.

    Raises:
        ToolError: It has none of them.
    """
    names = alternatives.split("|")
    for name in names:
        if len(names) == 1 or archive.has(name):
            return name
    raise ToolError(f"none of {', '.join(names)} is in this machine's Debian archive")


def unpack(archive: Archive, target: Path, packages: Sequence[str]) -> None:
    """Unpacks ``packages`` under ``target``, but those that its stamps say are there."""
    stamps = target / STAMPS
    missing = [(name, stamps / name.replace("|", "+")) for name in packages]
    missing = [(name, stamp) for name, stamp in missing if not stamp.exists()]
    files = archive.download([choose(archive, name) for name, _ in missing])
    stamps.mkdir(parents=True, exist_ok=True)
    for (_, stamp), file in zip(missing, files, strict=True):
        subprocess.run(["dpkg", "-x", file, target], check=True)
        stamp.write_text(f"{file.name}\n")
        print(f"unpacked {file.name} into {target}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="deb.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    unpacking = commands.add_parser("unpack", help="download packages and unpack them under DIR")
    unpacking.add_argument("target", metavar="DIR", type=Path)
    unpacking.add_argument("packages", metavar="PACKAGE", nargs="+", help="a name, or A|B for the first that there is")
    options = parser.parse_args(arguments)
    try:
        with locked("deb"):
            unpack(Archive(cache_folder() / f"deb-{release_name()}"), options.target, options.packages)
    except ToolError as error:
        print(f"deb.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
