# SPDX-License-Identifier: Apache-2.0
"""Markers and settings: which one counts, what is wrong with one, and how a test runs under several seeds."""

import pytest

LEAKS = "kept = []\n@pytest.mark.gossamer({})\ndef test_it(): kept.append(open('/dev/null'))\n"


def test_the_marker_of_a_test_adds_to_that_of_its_module_and_the_closer_one_counts(run_tests):
    source = """
import time
pytestmark = pytest.mark.gossamer(clock="virtual", seeds=2)
runs = []
@pytest.mark.gossamer(seeds=3)
def test_it(): start = time.monotonic(); time.sleep(3600); runs.append(time.monotonic() - start)
@pytest.mark.gossamer(clock="real")
def test_real(): runs.append(0)
def test_all(): assert [3600] * 3 == pytest.approx(runs[:3]); assert [0, 0] == runs[3:]
"""

    result = run_tests(source)

    assert {"passed": 3} == result.outcomes, result.output


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("clock='fast'", "test_it.py::test: gossamer(clock='fast'): 'real' or 'virtual' is expected"),
        ("seeds=0", "test_it.py::test: gossamer(seeds=0): 1 seed or more is expected"),
        ("speed=3", "test_it.py::test: gossamer(speed=3): got an unexpected keyword argument 'speed'"),
        ("may_leave='sockets'", "test_it.py::test: gossamer(may_leave='sockets'): may_leave:"),
    ],
)
def test_a_marker_that_is_wrong_is_told_before_a_test_runs(run_tests, marker, message):
    source = f"def test_before(): pass\n@pytest.mark.gossamer({marker})\ndef test(): pass\n"

    with pytest.raises(AssertionError) as caught:
        run_tests(source)

    assert message in str(caught.value)
    assert "passed" not in str(caught.value)


@pytest.mark.parametrize("how", ["marker", "ini"])
def test_a_test_may_be_allowed_to_leave_something(run_tests, how):
    marker = "may_leave='descriptors'" if how == "marker" else ""

    result = run_tests(LEAKS.format(marker), *(["-o", "gossamer_may_leave=descriptors"] if how == "ini" else []))

    assert {"passed": 1} == result.outcomes, result.output
    assert {"passed": 1, "error": 1} == run_tests(LEAKS.format("may_leave=['tasks', 'threads']")).outcomes


def test_each_seed_has_an_instance_of_the_class_of_its_own(run_tests):
    source = """
class TestClass:
    @pytest.mark.gossamer(seeds=3)
    def test_it(self): assert not hasattr(self, "was_here"); self.was_here = True
"""

    assert {"passed": 1} == run_tests(source).outcomes


def test_a_test_that_is_skipped_is_skipped_once(run_tests):
    source = "runs = []\n@pytest.mark.gossamer(seeds=9)\ndef test(): runs.append(1); pytest.skip(f'{len(runs)} runs')\n"

    result = run_tests(source, "-rs")

    assert {"skipped": 1} == result.outcomes
    assert "1 runs" in result.output


def test_a_failure_with_a_seed_and_a_leak_tells_both(run_tests):
    source = "async def work(): pass\n@pytest.mark.gossamer(seeds=2)\ndef test(): work()\n"

    result = run_tests(source)

    assert {"passed": 1, "error": 1} == result.outcomes
    assert "coroutine 'work' was never awaited" in result.output
    assert "failed with --gossamer-seed 0" in result.output
