# SPDX-License-Identifier: Apache-2.0
"""Each rule of run_suite.py, shown on small suites."""

import hashlib
import importlib.util
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("test.libregrtest", reason="this Python comes without its own tests")

RUN_SUITE = Path(__file__).with_name("run_suite.py")
spec = importlib.util.spec_from_file_location("run_suite", RUN_SUITE)
run_suite = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = run_suite
spec.loader.exec_module(run_suite)

LABEL = run_suite.harness.probe(run_suite.harness.Options(files=())).label
HEAD = """
import asyncio
import os

def on_ours():
    return type(asyncio.new_event_loop()).__module__.startswith("gossamer.")

def test_first():
    asyncio.run(asyncio.sleep(0.001))
"""


class Bench:
    """One suite of one file, and what is said of it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._capsys = capsys
        self._entries: dict[str, tuple] = {}

    def list(self, kind: str, *entries: object) -> None:
        self._entries[kind] = entries

    def run(self, test: str) -> tuple[int, str]:
        (self._folder / "tests").mkdir()
        (self._folder / "tests" / "test_it.py").write_text(HEAD + test)
        archive = self._folder / "suite-1.tar.gz"
        with tarfile.open(archive, "w:gz") as writer:
            writer.add(self._folder / "tests", "suite-1/tests")
        sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
        sources = run_suite.CACHE / "sources"
        sources.mkdir(parents=True)
        archive.rename(sources / archive.name)
        suite = run_suite.Suite("suite", "suite==1", sha256, ("tests",), "shared.txt", **self._entries)
        options = run_suite.Options(sources=self._folder / "unpacked", logs=self._folder / "logs", timeout=60)

        code = run_suite.run([suite], options)

        return code, self._capsys.readouterr().out


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(run_suite, "CACHE", tmp_path / "cache")
    return Bench(tmp_path, capsys)


ONLY_PLAIN = "def test_it(): assert not on_ours()"
PASSES = "def test_it(): pass"
NAME = "tests/test_it.py::test_it"
NOTE = run_suite.Note(NAME, "so")
DIFFERENCE = run_suite.Expected((LABEL,), "suite", NAME, "", "so")


def test_no_difference_is_a_success(bench):
    code, output = bench.run(PASSES)

    assert (0, "2 passed, 0 failed") == (code, output.splitlines()[-1])


def test_a_test_that_passes_only_plain_is_a_failure(bench):
    code, output = bench.run(ONLY_PLAIN)

    assert 1 == code
    assert f"FAILED suite {NAME}: fail " in output


@pytest.mark.parametrize("kind", ["difference", "flaky"])
def test_a_test_that_passes_only_plain_may_be_listed(bench, kind):
    bench.list(kind, DIFFERENCE if kind == "difference" else NOTE)

    code, output = bench.run(ONLY_PLAIN)

    assert (0, "1 passed, 0 failed") == (code, output.splitlines()[-1])


def test_a_listed_difference_that_is_none_is_a_failure(bench):
    bench.list("difference", DIFFERENCE)

    code, output = bench.run(PASSES)

    assert 1 == code
    assert f"{NAME}: stale" in output


def test_a_test_that_is_left_out_is_not_run(bench):
    bench.list("left_out", NOTE)

    _, output = bench.run("def test_it(): 1 / 0")

    assert "1 passed, 0 failed" == output.splitlines()[-1]
    assert NAME not in output


def test_the_test_that_ran_when_the_process_died_is_named(bench):
    code, output = bench.run("def test_it(): on_ours() and os._exit(3)")

    assert 1 == code
    assert f"FAILED suite {NAME}: crash while {NAME} was running, exit code 3" in output


def test_a_suite_that_cannot_be_imported_is_a_failure(bench):
    code, output = bench.run("on_ours() and 1 / 0")

    assert 1 == code
    assert "tests/test_it.py::test_first: missing" in output


def test_every_suite_that_there_is_can_be_read():
    assert run_suite.names()
    for name in run_suite.names():
        suite = run_suite.read_suite(name)

        assert suite.packages.exists()


def test_an_entry_without_a_reason_is_refused(tmp_path):
    text = (RUN_SUITE.parent / "asgiref.toml").read_text().split("[[")[0]
    (tmp_path / "some.toml").write_text(f'{text}\n[[flaky]]\ntest = "x"\nbecause = ""\n')

    with pytest.raises(run_suite.HarnessError, match="needs a reason"):
        run_suite.read_suite("some", tmp_path)
