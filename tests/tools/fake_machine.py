# SPDX-License-Identifier: Apache-2.0
"""What the tests of the tools share: where the tools are, and what a CPython 3.12.1 answers when it is asked."""

from collections.abc import Callable
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / "tools"

ANSWER = {
    "implementation": "cpython",
    "version": [3, 12, 1],
    "release_level": "final",
    "free_threaded": False,
    "python": "/usr/bin/python3.12",
    "has_headers": True,
    "has_tests": True,
}

MakeProgram = Callable[..., Path]
