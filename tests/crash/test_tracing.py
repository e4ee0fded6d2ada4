# SPDX-License-Identifier: Apache-2.0
"""Events that are asked for while virtual threads are parked in the middle of their code."""

from __future__ import annotations

import pytest

PROGRAM = """
import sys, time
import gossamer as gs

def innermost():
    time.sleep(1000)

def outer():
    try:
        innermost()
    finally:
        ended.append(1)

ended = []
with gs.scope() as scope:
    tasks = [scope.spawn(outer) for _ in range(10)]
    gs.checkpoint()
    ASK
    for task in tasks:
        task.cancel()
print(len(ended))
"""


@pytest.mark.parametrize(
    "ask",
    [
        "sys.settrace(lambda *_: None)",
        "sys.setprofile(lambda *_: None)",
        "sys.monitoring.use_tool_id(3, 'ours'); sys.monitoring.set_events(3, sys.monitoring.events.RAISE)",
        "sys.monitoring.use_tool_id(3, 'ours'); sys.monitoring.set_events(3, sys.monitoring.events.PY_UNWIND)",
    ],
)
def test_an_error_in_code_that_was_parked_when_events_were_asked_for(run_program, ask):
    """3.15 keeps what an exception's event needs with the code, which the interpreter finds by the frames that run."""
    result = run_program(PROGRAM.replace("ASK", ask))

    assert (0, "10\n", "") == (result.returncode, result.stdout, result.stderr)
