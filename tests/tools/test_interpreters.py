# SPDX-License-Identifier: Apache-2.0
"""Which candidates count as a supported CPython, and how commands run where one lives."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import candidates
import deb
import interpreters
import pytest
from candidates import TAGS, Tag
from fake_machine import ANSWER, TOOLS, MakeProgram


def run_tool(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs interpreters.py as a user would."""
    command = [sys.executable, str(TOOLS / "interpreters.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def refusal(tag: Tag, **differences: Any) -> str | None:
    """Returns why an interpreter that differs from 3.12.1 as told does not count as ``tag``."""
    answer = candidates.parse_answer(json.dumps({**ANSWER, **differences}))
    assert answer is not None
    return answer.refusal(tag)


def test_an_interpreter_answers_with_its_own_version():
    """The probe runs in a real interpreter and tells its version and kind."""
    answer = candidates.ask([sys.executable])

    assert answer is not None
    assert (sys.version_info[:3], sys.implementation.name) == (answer.version, answer.implementation)


@pytest.mark.parametrize("text", ["", "Python 3.12.1", "[]", "{}", '{"version": [3, 12, 1]}', '{"version": 3}'])
def test_anything_but_a_whole_answer_is_none(text: str):
    """What a program prints that is no CPython is not taken for an answer."""
    assert candidates.parse_answer(text) is None


def test_an_interpreter_with_all_that_is_needed_counts():
    """Version, build, headers and tests are right: nothing is refused."""
    assert refusal(TAGS["3.12"]) is None


@pytest.mark.parametrize(
    ("tag", "differences", "reason"),
    [
        ("3.14", {"version": [3, 14, 0]}, "too old"),
        ("3.13", {}, "is 3.12.1"),
        ("3.15", {"version": [3, 15, 0], "release_level": "beta"}, "3.15.0 beta"),
        ("3.13t", {"version": [3, 13, 5]}, "not free-threaded"),
        ("3.13", {"version": [3, 13, 5], "free_threaded": True}, "is free-threaded"),
        ("3.12", {"implementation": "pypy"}, "is pypy"),
        ("3.12", {"has_headers": False}, "no headers"),
        ("3.12", {"has_tests": False}, "no tests"),
    ],
)
def test_an_interpreter_that_lacks_something_is_refused_with_the_reason(
    tag: str, differences: dict[str, Any], reason: str
):
    """3.14.0, previews, the wrong build and incomplete installations do not count."""
    said = refusal(TAGS[tag], **differences)

    assert said is not None
    assert reason in said


def test_3_14_1_counts():
    """The first 3.14 whose C stack bounds can be set is accepted."""
    assert refusal(TAGS["3.14"], version=[3, 14, 1]) is None


def test_a_broken_shim_does_not_count(make_program: MakeProgram):
    """A program that exists but does not run, as a shim of pyenv for a version that is not selected, is passed over."""
    make_program("python3.12", "echo 'pyenv: python3.12: command not found' >&2; exit 127")

    assert interpreters.find(TAGS["3.12"]) is None


def test_the_version_under_pyenv_is_found_behind_its_broken_shim(
    make_program: MakeProgram, make_python: MakeProgram, tmp_path: Path
):
    """PATH comes first, and what does not run there does not hide what does elsewhere."""
    make_program("python3.12", "exit 127")
    make_python("python3.12", tmp_path / "pyenv/versions/3.12.1/bin", python="/there/python3.12")

    found = interpreters.find(TAGS["3.12"])

    assert found is not None
    assert ("/there/python3.12", "pyenv", "3.12.1") == (found.python, found.source, found.version)


def test_the_newest_micro_version_under_pyenv_is_found(make_python: MakeProgram, tmp_path: Path):
    """3.12.10 is newer than 3.12.9, though not by the alphabet."""
    for micro in (9, 10):
        make_python("python3.12", tmp_path / f"pyenv/versions/3.12.{micro}/bin", version=[3, 12, micro])

    found = interpreters.find(TAGS["3.12"])

    assert found is not None
    assert "3.12.10" == found.version


def test_list_says_what_is_there_and_what_is_not(make_python: MakeProgram):
    """One line for each supported CPython, and nothing is downloaded for those that are missing."""
    make_python("python3.12")

    lines = run_tool("list").stdout.splitlines()

    assert list(TAGS) == [line.split()[0] for line in lines]
    assert ["3.12", "3.12.1", "/usr/bin/python3.12", "(PATH)"] == lines[0].split()
    assert all(line.endswith("not there") for line in lines[1:])


def test_list_for_programs_is_json(make_python: MakeProgram):
    """Only what is there is listed, with its path."""
    make_python("python3.12")

    rows = json.loads(run_tool("list", "--json").stdout)

    assert [("3.12", "/usr/bin/python3.12", False)] == [(row["tag"], row["python"], row["in_folder"]) for row in rows]


def test_get_that_cannot_says_how_to_get_it_by_hand(make_python: MakeProgram, monkeypatch: pytest.MonkeyPatch):
    """The message names the reason of each refusal and the way by hand."""
    monkeypatch.setattr(interpreters, "_install_on_host", lambda tag: None)
    make_python("python3.12", has_headers=False)

    with pytest.raises(deb.ToolError, match=r"(?s)python3\.12 has no headers.*pyenv install 3\.12"):
        interpreters.get(TAGS["3.12"])


def test_run_keeps_the_exit_code(make_python: MakeProgram):
    """The command's exit code is the tool's."""
    make_python("python3.12")

    assert 7 == run_tool("run", "3.12", "--", "sh", "-c", "exit 7").returncode


def test_run_keeps_the_current_folder_and_the_streams(make_python: MakeProgram, tmp_path: Path):
    """The command starts where the caller is, reads what it is given, and its arguments are passed as they are."""
    make_python("python3.12")

    result = run_tool(
        "run", "3.12", "--", "sh", "-c", 'pwd; cat; echo "$1"', "sh", "-- a  b", cwd=tmp_path, input="given\n"
    )

    assert f"{tmp_path}\ngiven\n-- a  b\n" == result.stdout


def test_run_puts_the_interpreter_in_place_of_its_name(make_python: MakeProgram):
    """{python} is the path that the interpreter told."""
    make_python("python3.12")

    assert (
        "/usr/bin/python3.12 -V\n" == run_tool("run", "3.12", "--", "sh", "-c", "echo $0 $1", "{python}", "-V").stdout
    )


def test_run_becomes_the_command(make_python: MakeProgram):
    """There is no process between caller and command that a signal could stop at."""
    make_python("python3.12")
    command = [sys.executable, str(TOOLS / "interpreters.py"), "run", "3.12", "--", "sh", "-c", "echo $$"]

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        told, _ = process.communicate(timeout=60)

    assert f"{process.pid}\n" == told


def test_run_of_an_unknown_program_exits_as_a_shell_would(make_python: MakeProgram):
    """A missing program is 127 and a message, not a traceback."""
    make_python("python3.12")

    result = run_tool("run", "3.12", "--", "no-such-program")

    assert (127, "interpreters.py: no-such-program: No such file or directory\n") == (result.returncode, result.stderr)


def test_run_without_the_interpreter_says_how_to_get_it(machine: Path):
    """Nothing is fetched by run."""
    result = run_tool("run", "3.15", "--", "true")

    assert 1 == result.returncode
    assert "interpreters.py get 3.15" in result.stderr


def test_newest_does_without_tests_and_without_the_free_threaded_build(make_python: MakeProgram):
    """A user's Python needs headers to build for, but not CPython's tests."""
    make_python("python3.12")
    make_python("python3.13", version=[3, 13, 2], has_tests=False, python="/usr/bin/python3.13")
    make_python("python3.13t", version=[3, 13, 2], free_threaded=True)

    assert "/usr/bin/python3.13\n" == run_tool("newest").stdout


def test_newest_says_how_to_get_one(machine: Path):
    """On a machine with none the message is the way to one."""
    result = run_tool("newest")

    assert 1 == result.returncode
    assert "pyenv install" in result.stderr


@pytest.mark.parametrize("tag", ["3.14", "3.15", "3.13t"])
class TestInTheFolder:
    """The same promises, kept in this machine's Debian folder; skipped where an interpreter does not live there."""

    @pytest.fixture(autouse=True)
    def needs_it_in_the_folder(self, tag: str) -> None:
        """Skips the test for an interpreter that lives elsewhere."""
        found = interpreters.find(TAGS[tag])
        if found is None or found.folder is None:
            pytest.skip(f"{tag} does not live in the Debian folder of this machine")

    def test_exit_code_folder_and_process_are_kept(self, tag: str, tmp_path: Path):
        """Exit code, current folder, process id and environment are as on the host."""
        script = "import os, sys; print(os.getcwd(), os.getpid(), os.environ['MARK']); sys.exit(7)"
        command = [sys.executable, str(TOOLS / "interpreters.py"), "run", tag, "--", "{python}", "-c", script]

        environment = {**os.environ, "MARK": "seen"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as process:
            told, _ = process.communicate(timeout=60)

        assert (7, f"{tmp_path} {process.pid} seen\n") == (process.returncode, told)

    def test_pseudo_terminals_and_certificates_are_there(self, tag: str):
        """What 35 of CPython's tests need: /dev/pts, and certificates of authorities."""
        script = "import os, ssl; print(os.isatty(os.openpty()[1]), bool(ssl.create_default_context().get_ca_certs()))"

        assert "True True\n" == run_tool("run", tag, "--", "{python}", "-c", script).stdout

    def test_nothing_stays_mounted(self, tag: str):
        """The mounts are the command's own."""
        run_tool("run", tag, "--", "true")

        assert str(deb.cache_folder()) not in Path("/proc/mounts").read_text()
