# SPDX-License-Identifier: Apache-2.0
"""What `make test` says of what ran and of what is missing."""

from types import SimpleNamespace

import pytest
import run_tests
from candidates import TAGS
from counts import Counts
from deb import ToolError
from run_tests import Row
from steps import StepFailed


def test_an_interpreter_that_every_machine_needs_is_a_failure_when_missing():
    row = run_tests._missing(TAGS["3.12"])

    assert Counts(failed=1) == row.counts
    assert "tools/interpreters.py get 3.12" in row.note


def test_another_interpreter_that_is_missing_is_only_told():
    row = run_tests._missing(TAGS["3.15"])

    assert Counts() == row.counts
    assert "tools/interpreters.py get 3.15" in row.note


@pytest.mark.parametrize("error", [StepFailed("3.12: build"), ToolError("cannot get CPython 3.12")])
def test_a_job_that_cannot_be_set_up_is_a_failure(error: Exception):
    """The other jobs run all the same."""

    def job() -> list[Row]:
        raise error

    [row] = run_tests.guarded("3.12", job)

    assert ("3.12", Counts(failed=1), str(error)) == (row.job, row.counts, row.note)


def test_a_job_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        run_tests.main(["--only", "3.12,3.7"])

    assert "no such job: 3.7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "everything", "expected"),
    [("3.14", True, [("--env", "PYTHON_JIT=1")]), ("3.14", False, []), ("3.12", True, [])],
)
def test_the_files_of_cpython_run_under_the_jit_too_when_everything_runs(
    monkeypatch: pytest.MonkeyPatch, name: str, everything: bool, expected: list[tuple[str, ...]]
):
    interpreter = SimpleNamespace(version=name, source="here")
    environment = SimpleNamespace(name=name, interpreter=interpreter, install_gossamer=lambda steps: None)
    jobs = run_tests.Jobs(None, SimpleNamespace(of=lambda tag: environment), everything=everything)
    options = []
    monkeypatch.setattr(jobs, "_pytest", lambda environment: Counts(passed=1))
    monkeypatch.setattr(jobs, "_harness", lambda environment, step, *more: options.append(more) or Counts(passed=1))

    rows = jobs.version(TAGS[name])

    usual = [(), ("--suite", "asyncio")]
    assert [*usual, *expected] == options
    assert 1 + len(options) == len(rows)


@pytest.mark.parametrize(("everything", "versions"), [(False, ["3.13"]), (True, ["3.13", "3.14"])])
def test_every_suite_of_another_project_is_a_row(
    monkeypatch: pytest.MonkeyPatch, everything: bool, versions: list[str]
):
    environments = SimpleNamespace(of=lambda tag: SimpleNamespace(name=tag.name))
    jobs = run_tests.Jobs(None, environments, everything=everything)
    monkeypatch.setattr(jobs, "_suite", lambda environment, file: Counts(passed=1))

    rows = jobs.suites()

    names = sorted(file.stem for file in run_tests.SUITES.glob("*.toml"))
    assert "asgiref" in names
    assert [f"{name}, {version}" for version in versions for name in names] == [row.suite for row in rows]
