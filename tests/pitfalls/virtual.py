# SPDX-License-Identifier: Apache-2.0
"""Running a test's body in a virtual thread, and programs in children."""

from __future__ import annotations

import functools
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import gossamer as gs


def in_virtual_thread(test: Callable[..., Any]) -> Callable[..., Any]:
    """Run the test in a spawned virtual thread, not in the main one."""

    @functools.wraps(test)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        def main() -> None:
            with gs.scope() as scope:
                task = scope.spawn(functools.partial(test, *args, **kwargs))
            task.result()

        try:
            gs.run(main)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    return wrapper


def run_program(source: str, *options: str, timeout: float = 120, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run ``source`` as a script under ``gossamer run`` in a child process."""
    command = [sys.executable, "-X", "faulthandler", "-m", "gossamer", "run", *options, "-c", textwrap.dedent(source)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **kwargs)
