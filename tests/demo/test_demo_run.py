# SPDX-License-Identifier: Apache-2.0
"""The runner measures crawls, says what is wrong with them, and leaves no process behind."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from measure import Measurement, measure
from run import VARIANTS, Crawl, Site

DEMO = Path(__file__).resolve().parents[2] / "demo"
SITE = Site(port=1, pages=60, digest="right")
GOSSAMER = next(variant for variant in VARIANTS if variant.name == "gossamer")


def run_demo(*options: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("requests")
    command = [sys.executable, str(DEMO / "run.py"), "--only", "plain32", "--pages", "60", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def children_of(parent: int) -> set[int]:
    """Returns the processes whose parent is the one given, from /proc/PID/stat (proc(5), fields 1 and 4)."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.add(int(path.parent.name))
    return found


def correct_crawl(**changes: object) -> Crawl:
    fields = {"variant": GOSSAMER, "measurement": Measurement(peak_threads=12), "rows": 60, "digest": "right"}
    return Crawl(**{**fields, **changes})


def test_a_correct_run_prints_its_figures_and_exits_with_0():
    result = run_demo("--delay", "0.01")

    assert 0 == result.returncode, result.stdout + result.stderr
    assert re.search(r"^plain Python, 32 OS threads +60 +\d+\.\d +\d+\.\d +\d+ +\d+$", result.stdout, re.MULTILINE)
    assert "holds  every crawl stored the 60 rows" in result.stdout


def test_a_failing_page_is_reported_and_exits_with_1():
    result = run_demo("--delay", "0.01", "--fail", "60")

    assert 1 == result.returncode
    assert "WRONG  plain Python, 32 OS threads: exited with 1; pages that failed: 1;" in result.stdout
    assert "every crawl stored" not in result.stdout


def test_a_crawl_that_hangs_is_killed_and_reported():
    result = run_demo("--delay", "50", "--timeout", "1")

    assert 1 == result.returncode
    assert re.search(r"^WRONG  plain Python, 32 OS threads: hung: killed after \d+ s;", result.stdout, re.MULTILINE)


def test_an_unknown_run_is_refused_with_those_that_there_are():
    result = run_demo("--only", "plain32,fast")

    assert 2 == result.returncode
    assert "no such run: fast; there are plain32, plain2000, gossamer" in result.stderr


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT reaches children even where the tests themselves were started with it ignored, as background jobs are."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_runner_with_all_its_children(interruptible, number, exit_code):
    pytest.importorskip("requests")
    command = [sys.executable, str(DEMO / "run.py"), "--only", "plain32", "--pages", "60", "--delay", "50"]

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as runner:
        progress = runner.stderr.readline()
        children = children_of(runner.pid)
        runner.send_signal(number)
        runner.communicate(timeout=30)

    assert "of 60 pages" in progress
    assert 2 == len(children)  # the site and the crawl
    assert exit_code == runner.returncode
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_correct_crawl_has_no_problems():
    assert [] == correct_crawl().problems(SITE)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rows": 59}, "stored 59 rows, but the site has 60 pages"),
        ({"digest": "wrong"}, "the rows are not those that the site serves"),
        ({"failed": 2}, "pages that failed: 2"),
        ({"measurement": Measurement(exit_code=-11, peak_threads=3)}, "exited with -11"),
        ({"measurement": Measurement(peak_threads=13)}, "used 13 OS threads, more than 12"),
        ({"measurement": Measurement(exit_code=-9, timed_out=True, wall_seconds=120)}, "hung: killed after 120 s"),
    ],
)
def test_each_fault_of_a_crawl_is_a_problem(changes, problem):
    assert [problem] == correct_crawl(**changes).problems(SITE)


def test_only_gossamer_is_held_to_the_limit_of_os_threads():
    plain = correct_crawl(variant=VARIANTS[1], measurement=Measurement(peak_threads=2002))

    assert [] == plain.problems(SITE)


def test_a_measurement_sees_threads_memory_cpu_time_and_exit_code(tmp_path):
    program = """
import sys, threading, time
release = threading.Event()
for _ in range(7):
    threading.Thread(target=release.wait).start()
ballast = b"x" * 64_000_000
while time.process_time() < 0.3: pass
release.set()
print("done")
sys.exit(3)
"""
    log = tmp_path / "log"

    result = measure([sys.executable, "-c", program], log=log, directory=tmp_path, timeout=60, on_sample=lambda _: None)

    assert (3, False, 8, "done\n") == (result.exit_code, result.timed_out, result.peak_threads, log.read_text())
    assert result.peak_memory_bytes > 64_000_000
    assert result.cpu_seconds >= 0.3
    assert result.wall_seconds >= 0.3
