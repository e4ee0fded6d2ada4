# SPDX-License-Identifier: Apache-2.0
"""A Debian release unpacked in a folder of the cache, with what the project builds and tests with.

Debian's next release has the newest CPythons, but they need a newer C library than this machine's: so they run in a
folder of their own (`enter_folder.py`). As root it is made with `debootstrap`, otherwise with `mmdebstrap` in a user
namespace. It comes from the archive that this machine's apt uses; GOSSAMER_DEBIAN_MIRROR names another.

The base system is unpacked under another name and renamed once it is whole. What is installed in it later is asked of
dpkg, so an interrupted installation is taken up again.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from deb import ATTEMPTS, ToolError, cache_folder, release_name, run_with_retries
from enter_folder import (
    STANDARD_PATH,
    Mount,
    enter_command,
    host_mounts,
    repository_of,
    system_mounts,
    unshare_command,
)

RELEASE = "forky"
OLDER_RELEASE = "trixie"  # its sources are still in the archive when those of RELEASE are missing
MIRROR_VARIABLE = "GOSSAMER_DEBIAN_MIRROR"
DEBOOTSTRAP_SCRIPT = Path("/usr/share/debootstrap/scripts/sid")  # for releases whose name it does not know yet too

# What the project builds and tests with, whatever the interpreter; most `-dev` packages are for CPython from source.
BASE_PACKAGES = (
    *("ca-certificates", "cmake", "g++", "git", "make", "ninja-build", "pkg-config", "procps", "tzdata", "xz-utils"),
    *("libbenchmark-dev", "libgmock-dev", "libgtest-dev", "libpq5", "redis-server"),
    *("libbz2-dev", "libffi-dev", "libgdbm-compat-dev", "libgdbm-dev", "liblzma-dev", "libncurses-dev"),
    *("libreadline-dev", "libsqlite3-dev", "libssl-dev", "uuid-dev", "zlib1g-dev"),
)

APT_CONFIGURATION = """\
Acquire::Retries "3";
Acquire::Languages "none";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
"""
NO_SERVICES = "#!/bin/sh\nexit 101\n"  # policy-rc.d: a package must not start its service here
INSTALL = 'dpkg --configure -a && apt-get -qq update && apt-get -qq --yes install "$@" && apt-get clean'


class DebianFolder:
    """One Debian release in a folder."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_folder() / f"debian-{RELEASE}"
        self.log = cache_folder() / "debian.log"
        self.archives = cache_folder() / "archives"

    def exists(self) -> bool:
        """Says whether the base system is there."""
        return self.path.is_dir()

    def create(self) -> None:
        """Unpacks the base system unless it is there.

        Raises:
            ToolError: A program is missing or the archive cannot be reached.
        """
        if self.exists():
            return
        partial = DebianFolder(self.path.with_name(f"{self.path.name}.partial"))
        run_with_retries([*unshare_command(), "rm", "-rf", partial.path], attempts=1)
        self.archives.mkdir(parents=True, exist_ok=True)
        mirror = debian_mirror()
        run_with_retries(_bootstrap_command(partial.path, mirror, self.archives), log=self.log)
        partial._configure(mirror)
        partial.path.rename(self.path)

    def install(self, packages: Iterable[str]) -> None:
        """Installs those of ``packages`` that are missing.

        Raises:
            ToolError: apt could not.
        """
        missing = sorted(set(packages) - self.installed())
        if missing:
            self.set_up(INSTALL, *missing)

    def installed(self) -> set[str]:
        """Returns the names of the packages that are installed."""
        status = self.path / "var/lib/dpkg/status"
        paragraphs = status.read_text().split("\n\n") if status.exists() else []
        matches = (re.match(r"Package: (\S+)\nStatus: install ok installed\n", text.lstrip()) for text in paragraphs)
        return {match[1] for match in matches if match}

    def set_up(self, script: str, *arguments: str, attempts: int = ATTEMPTS) -> None:
        """Runs a shell script of root's work in the folder, where it sees nothing of the host that it could spoil.

        Raises:
            ToolError: It failed repeatedly.
        """
        mounts = [*system_mounts(), Mount(self.archives, Path("/var/cache/apt/archives"))]
        command = ["env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", "sh", "-ec", script, "sh", *arguments]
        run_with_retries(enter_command(self.path, command, mounts, current=Path("/")), attempts=attempts, log=self.log)

    def command(self, command: Sequence[str], *, first_on_path: Path | None = None) -> list[str]:
        """Returns the command line, for exec, that runs ``command`` in the folder with the host's files around it.

        Args:
            command: The program and its arguments.
            first_on_path: A folder to search for programs before the system's.
        """
        current = Path.cwd()
        entries = os.environ.get("PATH", "").split(":")
        own = [entry for entry in entries if Path(entry).is_relative_to(repository_of(current))]
        search_path = ":".join([*own, *([str(first_on_path)] if first_on_path else []), STANDARD_PATH])
        mounts = [*system_mounts(), *host_mounts(current, os.environ)]
        return enter_command(self.path, command, mounts, current=current, search_path=search_path)

    def _configure(self, mirror: str) -> None:
        # The lists of a release in the making can be past their date; their signatures are checked all the same.
        option = "[check-valid-until=no]"
        sources = [f"deb {option} {mirror} {RELEASE} main"]
        sources += [f"deb-src {option} {mirror} {release} main" for release in (RELEASE, OLDER_RELEASE)]
        (self.path / "etc/apt/sources.list").write_text("\n".join(sources) + "\n")
        (self.path / "etc/apt/apt.conf.d/90gossamer").write_text(APT_CONFIGURATION)
        policy = self.path / "usr/sbin/policy-rc.d"
        policy.write_text(NO_SERVICES)
        policy.chmod(0o755)


def debian_mirror(apt: Path = Path("/etc/apt"), release: str | None = None) -> str:
    """Returns the address of the Debian archive that this machine's apt uses.

    Raises:
        ToolError: There is none, as on another distribution.
    """
    named = os.environ.get(MIRROR_VARIABLE)
    if named:
        return named
    release = release or release_name()
    found = [address for address, suite, components in apt_sources(apt) if suite == release and "main" in components]
    # Others' archives may have a suite of the same name; Debian's ends in its name by convention.
    found.sort(key=lambda address: not address.rstrip("/").endswith("/debian"))
    if not found or not found[0].rstrip("/").endswith("/debian"):
        raise ToolError(f"no Debian archive in {apt}: set {MIRROR_VARIABLE} to the address of one")
    return found[0].rstrip("/")


def apt_sources(apt: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Yields address, suite and components of each archive that apt is configured with."""
    for file in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*.list"))]:
        lines = file.read_text().splitlines() if file.exists() else []
        for match in filter(None, (re.match(r"deb\s+(?:\[[^]]*]\s+)?(\S+)\s+(\S+)\s+(.*)", line) for line in lines)):
            yield _followed(match[1]), match[2], match[3].split()
    for file in sorted((apt / "sources.list.d").glob("*.sources")):
        for paragraph in re.split(r"\n\s*\n", file.read_text()):
            fields = dict(re.findall(r"^(\S+):[ \t]*(.*(?:\n[ \t].*)*)", paragraph, re.MULTILINE))
            for address in fields.get("URIs", "").split():
                for suite in fields.get("Suites", "").split():
                    yield _followed(address), suite, fields.get("Components", "").split()


def _followed(address: str) -> str:
    """Returns the first address of the list that a `mirror+file:` address names, any other address as it is."""
    if not address.startswith("mirror+file:"):
        return address
    lines = Path("/" + address.removeprefix("mirror+file:").lstrip("/")).read_text().split()
    return next((word for word in lines if "://" in word), address)


def _bootstrap_command(target: Path, mirror: str, archives: Path) -> list[str | Path]:
    """Returns the command that unpacks the base system; as root it installs the program for it first."""
    if os.geteuid() != 0:
        return _bootstrap_command_without_root(target, mirror, archives)
    if shutil.which("debootstrap") is None:
        run_with_retries(["sh", "-c", "apt-get -qq update; apt-get -qq --yes install debootstrap"])
    options = ["--variant=minbase", f"--cache-dir={archives}"]
    return [*unshare_command(), "debootstrap", *options, RELEASE, target, mirror, DEBOOTSTRAP_SCRIPT]


def _bootstrap_command_without_root(target: Path, mirror: str, archives: Path) -> list[str | Path]:
    for program, package in (("mmdebstrap", "mmdebstrap"), ("newuidmap", "uidmap")):
        if shutil.which(program) is None:
            raise ToolError(f"{program} is not installed: ask an administrator for the package {package}")
    # Through a tar file, because the users of mmdebstrap's own namespace may not enter a home folder.
    make = "mmdebstrap --quiet --mode=unshare --variant=minbase --aptopt='Acquire::Check-Valid-Until \"false\"'"
    script = f'{make} "$1" "$2" "$3"; mkdir -p "$4"; tar_file=$2; shift 4; "$@"; rm "$tar_file"'
    tar_file = archives / f"{RELEASE}.tar"
    unpack: list[str | Path] = [*unshare_command(), "tar", "-xf", tar_file, "-C", target, "--exclude=./dev/*"]
    return ["sh", "-ec", script, "sh", RELEASE, tar_file, mirror, target, *unpack]
