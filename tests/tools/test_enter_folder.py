# SPDX-License-Identifier: Apache-2.0
"""What of the host is to be seen inside the folder of another system."""

from pathlib import Path

import enter_folder
import pytest
from enter_folder import Mount

ROOT = Path("/home/user/.cache/system")


def sources(command: list[str]) -> list[str]:
    """Returns what is mounted, in order, by a command line."""
    script = command[command.index("-ec") + 1]
    return [line.split()[-2] for line in script.splitlines() if "mount" in line]


def mounted(*paths: str) -> list[str]:
    """Returns what is mounted, in order, when ``paths`` are asked for at their own place."""
    mounts = [Mount(Path(path), Path(path)) for path in paths]
    return sources(enter_folder.enter_command(ROOT, ["true"], mounts, current=Path("/")))


def test_a_path_below_another_is_mounted_once():
    """The parent brings it."""
    assert ["/srv/a"] == mounted("/srv/a/b", "/srv/a", "/srv/a")


def test_the_folder_that_holds_the_system_is_mounted_first():
    """Otherwise it would bring all earlier mounts a second time."""
    assert ["/home/user", "/dev", "/proc"] == mounted("/proc", "/dev", "/home/user")


def test_a_read_only_mount_does_not_stand_for_a_writable_one_below_it():
    """The writable one is still mounted."""
    upper, lower = Path("/srv/a"), Path("/srv/a/b")

    command = enter_folder.enter_command(
        ROOT, ["true"], [Mount(upper, upper, read_only=True), Mount(lower, lower)], current=Path("/")
    )

    assert ["/srv/a", "/srv/a/b"] == sources(command)


def test_pip_brings_its_files_and_what_they_name(tmp_path: Path):
    """A local index is mounted with the files beside it, a folder of wheels as it is."""
    (tmp_path / "index/simple").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    configuration = tmp_path / ".config/pip/pip.conf"
    configuration.parent.mkdir(parents=True)
    configuration.write_text(f"[global]\nfind-links = {tmp_path}/wheels\n  {tmp_path}/missing\n")
    environment = {
        "HOME": str(tmp_path),
        "PIP_EXTRA_INDEX_URL": f"https://there.example/simple file://{tmp_path}/index/simple",
    }

    paths = enter_folder.pip_paths(environment)

    assert {configuration, tmp_path / "wheels", tmp_path / "index"} == {
        path for path in paths if tmp_path in path.parents
    }


@pytest.mark.parametrize("path", ["/", "/usr", "/usr/lib", "/etc"])
def test_the_systems_own_folders_are_not_covered(path: str):
    """A home folder of / or /usr would hide the other system."""
    mounts = enter_folder.host_mounts(Path("/tmp"), {"HOME": path})

    assert Path(path) not in {mount.source for mount in mounts}


def test_a_repository_is_seen_as_a_whole(tmp_path: Path):
    """From a folder deep in it the whole of it is to be seen."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "a/b").mkdir(parents=True)

    assert tmp_path.resolve() == enter_folder.repository_of(tmp_path / "a/b")
