# SPDX-License-Identifier: Apache-2.0
"""``python -m asyncio ps`` and ``pstree`` see the tasks of a process from outside, parked ones too."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.skipif(sys.version_info < (3, 14), reason="from 3.14 on")

PROGRAM = """
import asyncio, sys, gossamer

def wait_for_the_end():
    sys.stdin.read()

async def inner():
    await asyncio.Event().wait()

async def awaits():
    await inner()

async def blocks():
    wait_for_the_end()

async def main():
    waiting = asyncio.create_task(awaits(), name="waiting")
    blocked = asyncio.create_task(blocks(), name="blocked")
    asyncio.get_running_loop().call_soon(print, "ready")  # once this task waits too
    await blocked
    waiting.cancel()

sys.stdout.reconfigure(line_buffering=True)
with asyncio.Runner(loop_factory=gossamer.new_event_loop) as runner:
    runner.run(main())
"""


@pytest.fixture
def program() -> Iterator[int]:
    """The process id of a program whose tasks wait. We are its parent, so we may look into it."""
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.communicate("")
    assert process.returncode == 0


def test_ps(program: int, capsys: pytest.CaptureFixture[str]):
    from asyncio import tools

    tools.display_awaited_by_tasks_table(program)

    lines = capsys.readouterr().out.splitlines()
    [waiting] = [line for line in lines if " waiting " in line]
    [blocked] = [line for line in lines if " blocked " in line]
    assert "Event.wait -> inner -> awaits" in waiting
    assert "blocks" in blocked
    assert "Task-1" in blocked, "who waits for it"


def test_pstree(program: int, capsys: pytest.CaptureFixture[str]):
    from asyncio import tools

    tools.display_awaited_by_tasks_tree(program)

    tree = capsys.readouterr().out
    assert "(T) waiting" in tree
    assert "(T) blocked" in tree
    assert "(T) Task-1" in tree
    assert tree.index("(T) Task-1") < tree.index("(T) blocked"), "which the first waits for"
