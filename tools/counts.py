# SPDX-License-Identifier: Apache-2.0
"""How many tests passed, failed and were skipped, from what a test runner leaves behind.

A runner that died, or that failed without saying so in its report, counts as one failure more.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

LAST_LINE = re.compile(r"^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$", re.MULTILINE)


@dataclass(frozen=True)
class Counts:
    """Numbers of tests."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"

    def with_exit_code(self, code: int) -> Counts:
        """Returns the counts of a runner that ended with ``code``: never without a failure if that is not 0."""
        return self if code == 0 or self.failed else self + Counts(failed=1)


def of_junit(report: Path, code: int) -> Counts:
    """Returns the counts in a JUnit file, as pytest and GoogleTest write it.

    Args:
        report: The file; it is missing if the runner died.
        code: The runner's exit code.
    """
    try:
        suites = list(ElementTree.parse(report).iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return Counts(failed=1)
    total = Counts()
    for suite in suites:
        bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped = int(suite.get("skipped", 0)) + int(suite.get("disabled", 0))
        total += Counts(int(suite.get("tests", 0)) - bad - skipped, bad, skipped)
    return total.with_exit_code(code)


def of_last_line(output: str, code: int) -> Counts:
    """Returns the counts in the last line of the form `N passed, N failed` of a runner's output."""
    matches = LAST_LINE.findall(output)
    if not matches:
        return Counts(failed=1)
    return Counts(*(int(number or 0) for number in matches[-1])).with_exit_code(code)
