# SPDX-License-Identifier: Apache-2.0
"""The folder with Debian's next release: its archive, and when it counts as there."""

from pathlib import Path

import debian_folder
import pytest
from deb import ToolError
from debian_folder import DebianFolder
from fake_machine import MakeProgram

ONE_LINE_SOURCES = """\
# deb http://commented.example/debian stable main
deb [arch=amd64] http://other.example/tools stable main
deb http://mirror.example/debian/ stable main contrib
deb http://security.example/debian-security stable-security main
"""
DEB822_SOURCES = """\
Types: deb
URIs: http://tools.example/apt
Suites: stable
Components: main

Types: deb
# a comment
URIs: {address}
Suites: stable stable-updates
Components: main
"""
STATUS = """\
Package: half
Status: install ok unpacked
Version: 1

Package: whole
Status: install ok installed
Version: 1
"""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty configuration of apt."""
    monkeypatch.delenv(debian_folder.MIRROR_VARIABLE, raising=False)
    (tmp_path / "apt/sources.list.d").mkdir(parents=True)
    return tmp_path / "apt"


def test_the_mirror_is_read_from_one_line_sources(apt: Path):
    """Debian's archive is chosen among others with the same suite."""
    (apt / "sources.list").write_text(ONE_LINE_SOURCES)

    assert "http://mirror.example/debian" == debian_folder.debian_mirror(apt, "stable")


def test_the_mirror_is_read_from_deb822_sources(apt: Path):
    """Paragraphs, comments and several suites are understood."""
    (apt / "sources.list.d/debian.sources").write_text(DEB822_SOURCES.format(address="http://mirror.example/debian"))

    assert "http://mirror.example/debian" == debian_folder.debian_mirror(apt, "stable")


def test_a_list_of_mirrors_is_followed(apt: Path, tmp_path: Path):
    """Cloud images name a file that has the addresses."""
    (tmp_path / "mirrors").write_text("http://first.example/debian priority:1\nhttp://second.example/debian\n")
    (apt / "sources.list.d/debian.sources").write_text(
        DEB822_SOURCES.format(address=f"mirror+file:/{tmp_path}/mirrors")
    )

    assert "http://first.example/debian" == debian_folder.debian_mirror(apt, "stable")


def test_a_machine_without_debian_is_told_how_to_name_a_mirror(apt: Path):
    """On another distribution nothing is guessed."""
    with pytest.raises(ToolError, match=debian_folder.MIRROR_VARIABLE):
        debian_folder.debian_mirror(apt, "stable")


def test_only_packages_that_are_configured_are_installed(tmp_path: Path):
    """A package whose installation was interrupted is installed again."""
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(STATUS)

    assert {"whole"} == DebianFolder(tmp_path).installed()


def test_an_interrupted_base_system_does_not_count(
    make_program: MakeProgram, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Only the rename at the end makes the folder exist."""
    monkeypatch.setenv(debian_folder.MIRROR_VARIABLE, "http://mirror.example/debian")
    monkeypatch.setattr(debian_folder, "_bootstrap_command", lambda *_: ["sh", "-c", "exit 1"])
    monkeypatch.setattr("deb.time.sleep", lambda seconds: None)
    make_program("unshare", "exit 0")
    folder = DebianFolder(tmp_path / "debian")

    with pytest.raises(ToolError):
        folder.create()

    assert not folder.exists()
