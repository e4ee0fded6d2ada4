# SPDX-License-Identifier: Apache-2.0
"""tests/pitfalls.md names tests that exist, for every class."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIST = ROOT / "tests" / "pitfalls.md"
CLASSES = 63


def rows() -> dict[int, str]:
    found = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", LIST.read_text(), re.MULTILINE)
    return {int(number): tests for number, tests in found}


def exists(test: str) -> bool:
    path, _, name = test.partition("::")
    if not (ROOT / path).is_file():
        return False
    source = (ROOT / path).read_text()
    if path.endswith(".cpp"):
        suite, _, fact = name.partition(".")
        return re.search(rf"TEST(_F|_P)?\({suite}, {fact}\)", source) is not None
    return f"def {name}(" in source


def test_every_class_has_a_line() -> None:
    """No class is forgotten, and each line has a test or says why there is none."""
    lines = rows()

    assert list(range(1, CLASSES + 1)) == sorted(lines)
    assert [] == [n for n, text in lines.items() if "`tests/" not in text and not text.startswith("cannot apply yet: ")]


def test_every_named_test_exists() -> None:
    """A test that is renamed or removed is missed here."""
    missing = [test for text in rows().values() for test in re.findall(r"`(tests/[^`]+)`", text) if not exists(test)]

    assert [] == missing
