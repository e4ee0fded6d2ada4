# SPDX-License-Identifier: Apache-2.0
"""Counts are what the runner reported, and a runner that died is never a success."""

from pathlib import Path

import counts
from counts import Counts

PYTEST = '<testsuites><testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10" /></testsuites>'
CTEST = '<testsuite name="Linux" tests="7" failures="1" disabled="1" skipped="2"><testcase name="A.B" /></testsuite>'


def test_pytests_report(tmp_path: Path):
    report = tmp_path / "report.xml"
    report.write_text(PYTEST)

    assert Counts(passed=4, failed=3, skipped=3) == counts.of_junit(report, 1)


def test_ctests_report(tmp_path: Path):
    """Disabled tests count as skipped."""
    report = tmp_path / "report.xml"
    report.write_text(CTEST)

    assert Counts(passed=3, failed=1, skipped=3) == counts.of_junit(report, 8)


def test_a_runner_that_left_no_report_is_a_failure(tmp_path: Path):
    """It died before its end, whatever its exit code says."""
    assert Counts(failed=1) == counts.of_junit(tmp_path / "report.xml", 0)


def test_a_runner_that_failed_without_a_failed_test_is_a_failure(tmp_path: Path):
    """As pytest with a wrong option, or a crash at exit after the report was written."""
    report = tmp_path / "report.xml"
    report.write_text('<testsuite tests="5" />')

    assert Counts(passed=5, failed=1) == counts.of_junit(report, -11)


def test_the_last_line_with_counts_is_the_one():
    output = "test_a: done\n3 passed, 1 failed\n\n12 passed, 0 failed, 2 skipped\n"

    assert Counts(passed=12, skipped=2) == counts.of_last_line(output, 0)


def test_output_without_counts_is_a_failure():
    assert Counts(failed=1) == counts.of_last_line("Traceback (most recent call last):\n", 1)


def test_the_last_line_of_all_has_the_form_that_others_read():
    total = sum([Counts(1, 0, 0), Counts(2, 3, 4)], Counts())

    assert "3 passed, 3 failed, 4 skipped" == str(total)
    assert "1 passed, 0 failed" == str(Counts(passed=1))
