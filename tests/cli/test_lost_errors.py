# SPDX-License-Identifier: Apache-2.0
"""What nobody took fails `gossamer run`, and only that."""

import subprocess
import sys

import pytest


def run(program, *options, python=()):
    return subprocess.run(
        [sys.executable, *python, "-m", "gossamer", "run", *options, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
    )


THREAD_FAILS = "import threading; threading.Thread(target=int, args=('x',)).start(); print('end')"
TASK_FAILS = "from gossamer import _core, checkpoint; _core.spawn(int, 'x'); checkpoint(); print('end')"
NEVER_AWAITED = "async def work(): pass\ndef forget():\n    work()\nforget(); print('end')"


@pytest.mark.parametrize("program", [THREAD_FAILS, TASK_FAILS, NEVER_AWAITED])
def test_lost_error_fails_the_run_after_its_end(program):
    result = run(program)

    assert (1, "end\n") == (result.returncode, result.stdout)


@pytest.mark.parametrize("program", [THREAD_FAILS, TASK_FAILS, NEVER_AWAITED])
def test_lost_error_is_told_alone_if_so_wished(program):
    result = run(program, "--lost-errors=warn")

    assert 0 == result.returncode
    assert "invalid literal" in result.stderr or "never awaited" in result.stderr


def test_line_that_made_a_coroutine_is_told():
    result = run(NEVER_AWAITED)

    assert "coroutine 'work' was never awaited" in result.stderr
    assert 'File "<string>", line 3, in forget' in result.stderr
    assert "gossamer/" not in result.stderr


def test_line_that_made_a_coroutine_is_told_in_every_virtual_thread():
    program = (
        "import threading\nasync def work(): pass\ndef forget():\n    work()\nthreading.Thread(target=forget).start()\n"
    )

    result = run(program)

    assert 1 == result.returncode
    assert 'File "<string>", line 4, in forget' in result.stderr


IGNORED = """
import warnings
async def work(): pass
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    work()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    work()
assert "never awaited" in str(caught[0].message), caught
warnings.showwarning = lambda *args, **kwargs: None
work()
"""


def test_coroutine_about_which_the_program_decided_is_not_lost():
    result = run(IGNORED)

    assert (0, "") == (result.returncode, result.stderr)


def test_coroutine_under_warnings_as_errors_is_lost():
    assert 1 == run(NEVER_AWAITED, python=["-W", "error"]).returncode


def test_origin_depth_of_an_asyncio_debug_run_is_its_own():
    program = (
        "import asyncio, sys, threading\n"
        "async def main(): return sys.get_coroutine_origin_tracking_depth()\n"
        "print(sys.get_coroutine_origin_tracking_depth() , asyncio.run(main(), debug=True) > 1)\n"
        "threading.Thread(target=lambda: print(sys.get_coroutine_origin_tracking_depth())).start()\n"
    )

    assert "1 True\n1\n" == run(program).stdout


def test_error_that_a_joiner_took_is_not_lost():
    program = (
        "import gossamer\n"
        "from gossamer import _core\n"
        "task = _core.spawn(int, 'x')\n"
        "try: task.result()\n"
        "except ValueError: pass\n"
    )

    assert (0, "") == ((result := run(program)).returncode, result.stderr)
