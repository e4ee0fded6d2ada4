# SPDX-License-Identifier: Apache-2.0
"""The command line that runs a program inside the folder of another Linux system, as if on the host.

A chain of execs: `unshare` for mounts of its own (and, without root, a user namespace), a shell that mounts, `chroot`,
a shell that sets PATH and the current folder, the program. So the program has the caller's process id, streams, signals
and exit code, nothing is mounted on the host, and nothing has to be undone. A host path that is given to the program is
at the same absolute path inside.

Sources: unshare(1), mount_namespaces(7), user_namespaces(7); `pip config debug` for where pip reads its configuration.
"""

from __future__ import annotations

import configparser
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

STANDARD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SYSTEM_FOLDERS = {"bin", "boot", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "sys", "usr", "var"}
KERNEL_FOLDERS = (Path("/dev"), Path("/proc"), Path("/sys"))  # /dev/pts and /dev/shm come with /dev
NETWORK_FILES = (Path("/etc/hosts"), Path("/etc/resolv.conf"))
CERTIFICATE_FOLDERS = (
    Path("/etc/ssl/certs"),
    Path("/usr/share/ca-certificates"),
    Path("/usr/local/share/ca-certificates"),
)
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO")

CHANGE_ROOT = 'PATH=$PATH:/usr/sbin:/sbin; exec chroot "$@"'  # most users' PATH is without the folder of chroot
IN_THE_FOLDER = 'PATH=$1; export PATH; cd "$2" || exit 125; shift 2; exec "$@"'


@dataclass(frozen=True)
class Mount:
    """A host path that is to be seen in the folder at ``target``."""

    source: Path
    target: Path
    read_only: bool = False

    def script(self, root: Path) -> str:
        """Returns the shell command that makes the mount point under ``root`` and mounts."""
        inside = root / self.target.relative_to("/")
        source, target, parent = (shlex.quote(str(path)) for path in (self.source, inside, inside.parent))
        make_folder = f"mkdir -p {target}"
        make_file = f"mkdir -p {parent} && {{ [ -e {target} ] || touch {target}; }}"
        make = make_folder if self.source.is_dir() else make_file
        return f"{make} && mount -o {'rbind,ro' if self.read_only else 'rbind'} {source} {target}"

    def comes_with(self, other: Mount) -> bool:
        """Says whether it is there, and may be written to as it should, once ``other`` is."""
        same_path = self.source == self.target and other.source == other.target
        return same_path and self.source.is_relative_to(other.source) and other.read_only <= self.read_only


def unshare_command() -> list[str]:
    """Returns the command that gives the program after it mounts of its own, and root's rights over them."""
    user = [] if os.geteuid() == 0 else ["--map-root-user", "--map-auto"]
    return ["unshare", "--mount", *user]


def enter_command(
    root: Path, command: Sequence[str], mounts: Iterable[Mount], *, current: Path, search_path: str = STANDARD_PATH
) -> list[str]:
    """Returns the command line, for exec, that runs ``command`` in the system under ``root``.

    Args:
        root: The folder with the system.
        command: The program, looked up on ``search_path``, and its arguments.
        mounts: What of the host is to be seen.
        current: The current folder, as seen inside.
        search_path: PATH inside.
    """
    script = "\n".join([*(mount.script(root) for mount in _in_order(mounts, root)), CHANGE_ROOT])
    inside = [str(root), "/bin/sh", "-c", IN_THE_FOLDER, "sh", search_path, str(current), *command]
    return [*unshare_command(), "sh", "-ec", script, "sh", *inside]


def system_mounts() -> list[Mount]:
    """Returns what any program needs: the kernel's file systems and name resolution."""
    paths = [*KERNEL_FOLDERS, *(file for file in NETWORK_FILES if file.exists())]
    return [Mount(path, path, read_only=path.is_file()) for path in paths]


def host_mounts(current: Path, environment: Mapping[str, str]) -> list[Mount]:
    """Returns what the project's commands use of the host besides: files of the user, pip's set-up, certificates."""
    home = Path(environment.get("HOME", "/"))
    named = [Path(environment[name]) for name in ("TMPDIR", "XDG_CACHE_HOME") if environment.get(name)]
    places = [home, Path("/tmp"), *named, repository_of(current), repository_of(Path(__file__).parent)]
    paths = [path for path in (*places, *pip_paths(environment)) if path.is_dir() and _may_cover(path)]
    files = [path for path in (*pip_paths(environment), *certificate_paths(environment)) if path.is_file()]
    fixed = [path for path in CERTIFICATE_FOLDERS if path.is_dir()]
    return [
        *(Mount(path, path) for path in paths),
        *(Mount(path, path, read_only=True) for path in (*fixed, *files)),
    ]


def repository_of(folder: Path) -> Path:
    """Returns the repository that ``folder`` is in, or ``folder`` itself."""
    folder = folder.resolve()
    return next((place for place in (folder, *folder.parents) if (place / ".git").exists()), folder)


def pip_paths(environment: Mapping[str, str]) -> list[Path]:
    """Returns pip's configuration files and the local files and folders that they or its variables name."""
    files = [file for file in pip_configuration_files(environment) if file.is_file()]
    values = [value for name, value in environment.items() if name.startswith("PIP_")]
    for file in files:
        parser = configparser.RawConfigParser()
        parser.read(file)
        values += [value for section in parser.sections() for _, value in parser.items(section)]
    named = [path for value in values for path in _paths_in(value)]
    return [*files, *(path for path in named if path.exists())]


def pip_configuration_files(environment: Mapping[str, str]) -> list[Path]:
    """Returns where pip looks for its configuration on Linux, the files of a single interpreter left out."""
    home = Path(environment.get("HOME", "/"))
    user = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    everyone = [Path(folder) for folder in environment.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":") if folder]
    named = [Path(environment["PIP_CONFIG_FILE"])] if "PIP_CONFIG_FILE" in environment else []
    return [
        *(folder / "pip/pip.conf" for folder in everyone),
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        user / "pip/pip.conf",
        *named,
    ]


def certificate_paths(environment: Mapping[str, str]) -> list[Path]:
    """Returns the certificate files that the environment names."""
    return [Path(environment[name]) for name in CERTIFICATE_VARIABLES if name in environment]


def _paths_in(value: str) -> Iterator[Path]:
    for word in value.split():
        if word.startswith("/"):
            yield Path(word)
        elif word.startswith("file://"):
            # A local index has its files beside the folder with its pages, which is what the address names.
            yield Path(unquote(urlsplit(word).path)).parent


def _may_cover(path: Path) -> bool:
    """Says whether the folder's own ``path`` may be hidden; not so for those with its system."""
    return len(path.parts) > (3 if path.parts[1:2] and path.parts[1] in SYSTEM_FOLDERS else 1)


def _in_order(mounts: Iterable[Mount], root: Path) -> list[Mount]:
    """Sorts parents before children, and drops what comes with a parent.

    A mount of a folder that has ``root`` in it goes first, or it would bring all earlier mounts a second time.
    """
    ordered: list[Mount] = []
    for mount in sorted(set(mounts), key=lambda mount: (not root.is_relative_to(mount.source), mount.target)):
        if not any(mount.comes_with(other) for other in ordered):
            ordered.append(mount)
    return ordered
