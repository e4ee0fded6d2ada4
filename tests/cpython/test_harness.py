# SPDX-License-Identifier: Apache-2.0
"""Each rule of harness.py, shown on small test files that CPython's own regrtest runs, and on logs.

Both runners are one script: it runs regrtest on a folder of files made here (one folder plain, one "under Gossamer")
and, in place of Gossamer, leaves the statistics.
"""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("test.libregrtest", reason="this Python comes without its own tests")

HARNESS = Path(__file__).with_name("harness.py")
spec = importlib.util.spec_from_file_location("cpython_harness", HARNESS)
harness = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = harness
spec.loader.exec_module(harness)

LABEL = harness.probe(harness.Options(files=())).label

RUNNER = """
import atexit, json, os, runpy, sys
kind, folder, stats = sys.argv[1:4]
with open(os.path.join(folder, "runs"), "a") as runs:
    runs.write(sys.argv[-1] + "\\n")
def leave():
    line = {"pid": os.getpid(), "parks": 3, "main_is_virtual": True, **json.loads(stats)}
    if kind == "gossamer" and stats != "null":
        with open(os.environ["GOSSAMER_STATS_FILE"], "a") as file:
            for pid in [*line.pop("children", [1]), line["pid"]]:
                file.write(json.dumps({**line, "pid": pid}) + "\\n")
if stats != "null":
    atexit.register(leave)
sys.argv = ["test", *sys.argv[6:], "--testdir", folder]
runpy.run_module("test", run_name="__main__", alter_sys=True)
"""

HEAD = """
import os, time, unittest
class Some(unittest.TestCase):
    def test_first(self): pass
"""
PASSING = (
    HEAD
    + """
    def test_it(self): pass
    def test_last(self): pass
class Other(unittest.TestCase):
    def test_it(self): pass
"""
)


def with_body(body: str) -> str:
    return PASSING.replace("test_it(self): pass", f"test_it(self): {body}", 1)


class Bench:
    """A plain file and one under Gossamer, and what the harness says of them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._capsys = capsys
        self._stats = "{}"
        self._entries = ""
        for kind in ("plain", "gossamer"):
            (folder / kind).mkdir()
            self.write(kind, PASSING)
        (folder / "runner.py").write_text(RUNNER)

    def write(self, kind: str, source: str, file: str = "test_queue") -> None:
        (self._folder / kind / f"{file}.py").write_text(source)

    def leave_stats(self, stats: dict | None) -> None:
        self._stats = json.dumps(stats)

    def expect(self, method: str, **changes: object) -> None:
        fields = {"versions": [LABEL], "file": "test_queue", "method": method, "reason": "os-thread", "because": "so."}
        lines = (f"{name} = {json.dumps(value)}" for name, value in {**fields, **changes}.items())
        self._entries += "[[difference]]\n" + "\n".join(lines) + "\n"

    def options(self, **changes: object) -> harness.Options:
        expected = self._folder / "expected.toml"
        expected.write_text(self._entries)
        script = f"{{python}} {self._folder / 'runner.py'}"
        options = harness.Options(
            files=("test_queue",),
            runner=f"{script} gossamer {self._folder / 'gossamer'} '{self._stats}'",
            plain_runner=f"{script} plain {self._folder / 'plain'} {{}}",
            expected=expected,
            cache=self._folder / "cache",
            timeout=60,
        )
        return dataclasses.replace(options, **changes)

    def run(self, **changes: object) -> tuple[int, str]:
        code = harness.run(self.options(**changes))
        return code, self._capsys.readouterr().out

    def times_run(self, kind: str) -> int:
        runs = self._folder / kind / "runs"
        return len(runs.read_text().split()) if runs.exists() else 0


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, capsys)


def last_line(output: str) -> str:
    return output.splitlines()[-1]


def test_no_difference_is_a_success(bench):
    code, output = bench.run()

    assert 0 == code
    assert "4 passed, 0 failed" == last_line(output)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("self.fail('why')", "fail AssertionError: why"),
        ("1 / 0", "error ZeroDivisionError: division by zero"),
        ("self.skipTest('why')", "skip why"),
        ("self.enterContext(self.subTest(i=1)); self.skipTest('why')", "skip why"),
        ("[self.enterContext(self.subTest(i=i)) for i in (1, 2)]; self.fail('why')", "fail AssertionError: why"),
        ("self.addCleanup(self.fail, 'why')", "fail AssertionError: why"),
        ("print('ok'); self.skipTest('why')", "skip why"),
        ("os.write(1, b'ok'); self.skipTest('why')", "skip why"),
    ],
)
def test_a_method_that_does_worse_than_plain_is_a_failure(bench, body, what):
    bench.write("gossamer", with_body(body))

    code, output = bench.run()

    assert 1 == code
    assert f"FAILED test_queue Some.test_it: {what}\n" in output
    assert "3 passed, 1 failed" == last_line(output)


def test_a_method_that_is_missing_is_a_failure(bench):
    bench.write("gossamer", PASSING.replace("test_last", "no_test"))

    code, output = bench.run()

    assert 1 == code
    assert "FAILED test_queue Some.test_last: missing\n" in output


def test_methods_that_a_failed_set_up_class_took_along_are_failures(bench):
    bench.write("gossamer", PASSING + "    setUpClass = lambda: 1 / 0\n")

    code, output = bench.run()

    assert 1 == code
    assert "FAILED test_queue Other.test_it: missing Other.setUpClass: error ZeroDivisionError" in output
    assert "3 passed, 1 failed" == last_line(output)


def test_a_module_that_cannot_be_imported_takes_every_method_along(bench):
    bench.write("gossamer", "1 / 0")

    code, output = bench.run()

    assert 1 == code
    assert "FAILED test_queue the module fails\n" in output
    assert "0 passed, 5 failed" == last_line(output)


def test_a_method_that_fails_plain_too_is_not_compared(bench):
    bench.write("plain", with_body("self.fail()"))
    bench.write("gossamer", with_body("self.skipTest('')"))

    code, output = bench.run()

    assert 0 == code
    assert "plain test_queue Some.test_it: fail, so it is not compared\n" in output


def test_a_method_that_passes_plain_only_at_the_second_try_is_compared(bench):
    once = "self.assertTrue(os.path.exists(path := os.path.dirname(__file__) + '/once') or os.mkdir(path))"
    bench.write("plain", with_body(once))
    bench.write("gossamer", with_body("self.fail()"))

    code, output = bench.run()

    assert 1 == code
    assert "plain test_queue flaky: Some.test_it\n" in output
    assert "FAILED test_queue Some.test_it: fail" in output


def test_an_expected_difference_is_no_failure(bench):
    bench.write("gossamer", with_body("self.fail()"))
    bench.expect("Some.test_it")

    code, output = bench.run()

    assert 0 == code
    assert "expected test_queue Some.test_it: fail\n" in output


@pytest.mark.parametrize(("changes"), [{"versions": ["3.11"]}, {"file": "test_gc"}, {"method": "Other.test_it"}])
def test_an_entry_for_something_else_excuses_nothing(bench, changes):
    bench.write("gossamer", with_body("self.fail()"))
    bench.expect(**{"method": "Some.test_it", **changes})

    code, output = bench.run()

    assert 1 == code
    assert "FAILED test_queue Some.test_it: fail" in output


def test_an_entry_whose_method_passes_is_a_failure(bench):
    bench.expect("Some.test_it")

    code, output = bench.run()

    assert 1 == code
    assert "FAILED test_queue Some.test_it: stale in expected.toml, it passes\n" in output
    assert "4 passed, 1 failed" == last_line(output)


def test_an_entry_for_a_method_that_plain_does_not_pass_is_a_failure(bench):
    bench.expect("Some.test_gone")

    code, output = bench.run()

    assert 1 == code
    assert "FAILED test_queue Some.test_gone: stale in expected.toml, it does not pass plain either (missing)" in output


def test_more_than_twenty_methods_a_version_are_refused(bench):
    for number in range(21):
        bench.expect(f"Some.test_{number}")

    with pytest.raises(harness.HarnessError, match="21 methods for"):
        bench.run()


@pytest.mark.parametrize(
    "changes",
    [
        {"reason": "too hard"},
        {"because": " "},
        {"because": "a\nb"},
        {"file": "test_ssl"},
        {"versions": []},
        {"why": ""},
    ],
)
def test_an_entry_without_a_reason_of_the_three_and_an_explanation_is_refused(bench, changes):
    bench.expect("Some.test_it", **changes)

    with pytest.raises(harness.HarnessError, match="entry 1"):
        bench.run()


def test_a_hang_names_the_method_and_no_entry_excuses_it(bench):
    bench.write("gossamer", with_body("time.sleep(600)"))
    bench.expect("Some.test_it")

    code, output = bench.run(timeout=3)

    assert 1 == code
    assert "FAILED test_queue Some.test_it: hang while Some.test_it was running, after 3 s; " in output
    assert "FAILED test_queue Some.test_last: missing after the hang\n" in output
    assert "2 passed, 2 failed" == last_line(output)


def test_a_hang_leaves_the_stacks_in_the_log(bench, tmp_path):
    body = "__import__('signal').signal(3, print) or time.sleep(600)"  # in place of Gossamer's own dump
    bench.write("gossamer", with_body(body))

    bench.run(timeout=3, logs=tmp_path / "logs")

    assert "in test_it\n" in (tmp_path / "logs" / "gossamer" / "test_queue.err").read_text()


@pytest.mark.parametrize(
    ("body", "code"), [("os.kill(os.getpid(), 9)", -9), ("os._exit(0)", 0), ("os._exit(2)", 2), ("os.abort()", -6)]
)
def test_a_crash_names_the_method_and_no_entry_excuses_it(bench, body, code):
    bench.write("gossamer", with_body(body))
    bench.expect("Some.test_it")

    result, output = bench.run()

    assert 1 == result
    assert f"FAILED test_queue Some.test_it: crash while Some.test_it was running, exit code {code}" in output


def test_a_crash_at_exit_is_a_failure(bench):
    bench.write("gossamer", PASSING + "import atexit; atexit.register(os._exit, 1)\n")

    code, output = bench.run()

    assert 1 == code
    assert "FAILED test_queue crash at the end, after the last method, exit code 1" in output
    assert "4 passed, 1 failed" == last_line(output)


def test_an_exit_code_that_no_method_explains_is_a_failure(bench):
    bench.write("gossamer", PASSING + "import atexit; atexit.register(os._exit, 2)\n")

    code, output = bench.run()

    assert 1 == code
    assert "FAILED test_queue exit code 2, though no method failed\n" in output


@pytest.mark.parametrize(
    ("stats", "failure"),
    [
        (None, "no statistics"),
        ({"pid": 1}, "no line of process"),
        ({"parks": 0}, "nothing parked"),
        ({"main_is_virtual": False}, "the main thread was not virtual"),
    ],
)
def test_statistics_that_do_not_show_virtual_threads_at_work_are_a_failure(bench, stats, failure):
    bench.leave_stats(stats)

    code, output = bench.run()

    assert 1 == code
    assert f"FAILED test_queue {failure}" in output
    assert "4 passed, 1 failed" == last_line(output)


def test_a_file_that_may_hardly_wait_need_not_park(bench):
    for kind in ("plain", "gossamer"):
        bench.write(kind, PASSING, "test_gc")
    bench.leave_stats({"parks": 0})

    code, _ = bench.run(files=("test_gc",))

    assert 0 == code


@pytest.mark.parametrize(("children", "code"), [([], 1), ([1], 0)])
def test_a_file_with_children_must_have_some_on_gossamer(bench, children, code):
    for kind in ("plain", "gossamer"):
        bench.write(kind, PASSING, "test_signal")
    bench.leave_stats({"children": children})

    result, output = bench.run(files=("test_signal",))

    assert code == result
    assert (code == 1) is ("FAILED test_signal the children were plain Python" in output)


@pytest.mark.skipif(
    sys.version_info >= (3, 15) and not list(HARNESS.parents[2].glob("python/gossamer/_core.cpython-315*.so")),
    reason="from 3.15 on a .pth file that fails ends the interpreter, and nothing is built in place here",
)
def test_an_environment_in_place_has_the_source_and_starts_gossamer_in_children(tmp_path):
    python = harness.environment_in_place(sys.executable, tmp_path)

    look = "import sys; print(sys.path)"
    child = subprocess.run([python, "-Ic", look], capture_output=True, text=True, env={"GOSSAMER_RUN": "nonsense"})

    assert str(HARNESS.parents[2] / "python") in child.stdout
    assert "gossamer" in child.stderr


def test_plain_results_are_kept(bench):
    bench.run()
    bench.run()

    assert (1, 2) == (bench.times_run("plain"), bench.times_run("gossamer"))


def test_fresh_runs_plain_again(bench):
    bench.run()
    bench.run(fresh=True)

    assert 2 == bench.times_run("plain")


def test_a_plain_run_that_hangs_is_a_failure_and_is_not_kept(bench):
    bench.write("plain", with_body("time.sleep(600)"))

    code, output = bench.run(plain_only=True, timeout=3)

    assert 1 == code
    assert "FAILED test_queue hang while Some.test_it was running, after 3 s\n" in output
    assert [] == list(bench.options().cache.glob("*/test_queue.json"))


def test_a_plain_run_in_which_nothing_passes_is_a_failure(bench):
    bench.write("plain", "import unittest\nraise unittest.SkipTest('not here')")

    code, output = bench.run()

    assert 1 == code
    assert "FAILED test_queue plain: the module is skipped: not here\n" in output


def test_the_environment_has_no_variable_of_python(bench, monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "5")
    body = "self.assertEqual(['C.UTF-8', os.getcwd()[:8]], [os.environ['LANG'], '/tmp/gs-'])"
    body += "; self.assertFalse([name for name in os.environ if name.startswith('PYTHON') and 'REGRTEST' not in name])"
    bench.write("gossamer", with_body(body))
    monkeypatch.setattr(harness.tempfile, "tempdir", "/tmp")

    code, output = bench.run()

    assert (0, "4 passed, 0 failed") == (code, last_line(output))


def test_an_interrupt_ends_the_children(bench, tmp_path):
    bench.write("gossamer", with_body("time.sleep(600)"))
    options = bench.options()
    script = f"""
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("harness", {str(HARNESS)!r})
sys.modules["harness"] = harness = importlib.util.module_from_spec(spec)
spec.loader.exec_module(harness)
path = pathlib.Path({str(tmp_path)!r})
harness.run(harness.Options(files=("test_queue",), runner={options.runner!r}, plain_runner={options.plain_runner!r},
    expected=path / "expected.toml", cache=path / "cache", logs=path / "logs"))
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "logs" / "gossamer" / "test_queue.log"
    deadline = time.monotonic() + 30
    while not (log.exists() and "test_it" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)

    child.send_signal(signal.SIGINT)
    child.wait(20)

    assert [] == [pid for pid in os.listdir("/proc") if pid.isdigit() and str(tmp_path / "gossamer") in command(pid)]


def command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def test_the_vsock_class_is_left_out_of_both_runs(bench):
    source = (
        PASSING + "class ThreadedVSOCKSocketStreamTest(unittest.TestCase):\n    def test_it(self): time.sleep(600)\n"
    )
    for kind in ("plain", "gossamer"):
        bench.write(kind, source, "test_socket")

    code, output = bench.run(files=("test_socket",), timeout=30)

    assert (0, "4 passed, 0 failed") == (code, last_line(output))


LOG_OF_3_12_1 = """\
0:00:00 load avg: 0.20 [1/1] test_queue
test_deco (test.test_queue.A.test_deco) ... skipped 'deco'
test_it (test.test_queue.A.test_it)
A docstring ... with dots ... ok
test_it (test.test_queue.B.test_it) ... something of its own
ok
test_raw (test.test_queue.A.test_raw) ... no newlineok
test_sub (test.test_queue.A.test_sub)
A docstring ...\x20
  test_sub (test.test_queue.A.test_sub) [msg (x) ... ok] (i=1)
A docstring ... FAIL
test_twice (test.test_queue.A.test_twice) ... FAIL
test_twice (test.test_queue.A.test_twice) ... ERROR
test_xf (test.test_queue.A.test_xf) ... expected failure
skipped 'a class without its name'
test_us (test.test_queue.A.test_us) ... unexpected success
setUpClass (test.test_queue.C) ... ERROR
_threading_local ()
Doctest: _threading_local ... ok
_threading_local ()
Doctest: _threading_local ... ok
"""


def test_the_log_of_every_version_is_read():
    outcomes = harness.LogReader("test_queue", LOG_OF_3_12_1).outcomes

    assert {
        "A.test_deco": "skip",
        "A.test_it": "ok",
        "B.test_it": "ok",
        "A.test_raw": "ok",
        "A.test_sub": "fail",
        "A.test_twice": "error",
        "A.test_xf": "ok",
        "A.test_us": "fail",
        "C.setUpClass": "error",
        "_threading_local": "ok",
        "_threading_local#2": "ok",
    } == {name: outcome.status for name, outcome in outcomes.items()}


def test_methods_that_neither_source_names_are_a_failure(tmp_path):
    log = "test_it (test.test_queue.A.test_it) ... ok\n\nRan 2 tests in 0.1s\n\nOK\n"

    run = harness.read_run("test_queue", log, "", tmp_path / "none.xml", 0, timed_out=False)

    assert ["unittest ran 2 methods, the log and the JUnit file name 1"] == run.problems


def test_the_list_of_expected_differences_is_well_formed():
    harness.read_expected(HARNESS.with_name("expected.toml"))
