# SPDX-License-Identifier: Apache-2.0
"""Unpacking packages without root: what is downloaded, what is kept, what a stamp says."""

from pathlib import Path

import deb
import pytest
from fake_machine import MakeProgram

FAKE_APT_GET = r"""
echo "$*" >> "$LOG"
for word; do last=$word; done
case "$*" in *" download "*) for word; do case $word in lib*) : > "${word}_1.0_amd64.deb";; esac; done;; esac
"""


@pytest.fixture
def apt_log(make_program: MakeProgram, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for apt and dpkg that writes down how it was called; only libb and libc can be had."""
    log = tmp_path / "apt.log"
    monkeypatch.setenv("LOG", str(log))
    make_program("apt-get", FAKE_APT_GET)
    make_program("apt-cache", 'for word; do last=$word; done; [ "$last" = libb ] || [ "$last" = libc ]')
    make_program("dpkg", 'echo "dpkg $*" >> "$LOG"')
    return log


@pytest.fixture
def archive(tmp_path: Path) -> deb.Archive:
    """An archive whose downloads are in a folder of the test."""
    return deb.Archive(tmp_path / "archive")


def test_a_package_is_downloaded_once_and_unpacked_once(apt_log: Path, archive: deb.Archive, tmp_path: Path):
    """The stamp of the first call leaves nothing for the second to do."""
    deb.unpack(archive, tmp_path / "target", ["libb"])
    calls = apt_log.read_text()

    deb.unpack(archive, tmp_path / "target", ["libb"])

    assert calls == apt_log.read_text()
    assert 1 == calls.count(" download libb")
    assert 1 == calls.count("dpkg -x")


def test_nothing_is_printed_when_all_is_there(
    apt_log: Path, archive: deb.Archive, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """A build that calls the tool each time stays quiet."""
    deb.unpack(archive, tmp_path / "target", ["libb"])
    capfd.readouterr()

    deb.unpack(archive, tmp_path / "target", ["libb"])

    assert ("", "") == capfd.readouterr()


def test_a_second_folder_is_served_from_the_kept_download(apt_log: Path, archive: deb.Archive, tmp_path: Path):
    """A fresh clone on the same machine downloads nothing again."""
    deb.unpack(archive, tmp_path / "one", ["libb"])

    deb.unpack(archive, tmp_path / "two", ["libb"])

    assert 1 == apt_log.read_text().count(" download ")
    assert (tmp_path / "two" / deb.STAMPS / "libb").exists()


def test_unpacking_that_fails_leaves_no_stamp(
    apt_log: Path, archive: deb.Archive, make_program: MakeProgram, tmp_path: Path
):
    """An interrupted call does not count as done."""
    make_program("dpkg", "exit 2")

    with pytest.raises(deb.subprocess.CalledProcessError):
        deb.unpack(archive, tmp_path / "target", ["libb"])

    assert not (tmp_path / "target" / deb.STAMPS / "libb").exists()


def test_the_first_name_that_there_is_is_taken(apt_log: Path, archive: deb.Archive):
    """A|B names a package whose name depends on the release."""
    assert "libc" == deb.choose(archive, "liba|libc|libb")


def test_no_name_that_there_is_is_an_error(apt_log: Path, archive: deb.Archive):
    """The message names all that were tried."""
    with pytest.raises(deb.ToolError, match="none of liba, libd"):
        deb.choose(archive, "liba|libd")


def test_a_command_that_fails_is_tried_again(make_program: MakeProgram, tmp_path: Path):
    """A download that succeeds the second time is a success."""
    flaky = make_program("flaky", f'[ -e "{tmp_path}/tried" ] || {{ : > "{tmp_path}/tried"; exit 1; }}')

    deb.run_with_retries([flaky], pause=0)

    assert (tmp_path / "tried").exists()


def test_a_command_that_always_fails_is_reported_with_its_log(make_program: MakeProgram, tmp_path: Path):
    """The error has the exit code and the place of the output."""
    broken = make_program("broken", "echo tried; exit 3")

    with pytest.raises(deb.ToolError, match=f"2 times.*exit code 3.*{tmp_path}/log"):
        deb.run_with_retries([broken], attempts=2, pause=0, log=tmp_path / "log")

    assert "tried\ntried\n" == (tmp_path / "log").read_text()
