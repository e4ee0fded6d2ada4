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


ON_LOOP = """
import asyncio, gossamer, sys
async def fail():
    await asyncio.sleep(0)
    raise ValueError("nobody asked")
def handle_with(handler):
    asyncio.get_running_loop().set_exception_handler(handler)
async def main():
{}
with asyncio.Runner(loop_factory={}) as runner:
    runner.run(main())
print("end")
"""
STOCK, OURS, UVLOOP = "asyncio.new_event_loop", "gossamer.new_event_loop", "__import__('uvloop').new_event_loop"
on_each_loop = pytest.mark.parametrize("factory", [STOCK, OURS, UVLOOP])


@pytest.fixture(autouse=True)
def uvloop_if_needed(request):
    if "factory" in request.fixturenames and request.getfixturevalue("factory") == UVLOOP:
        pytest.importorskip("uvloop")


NEVER_RETRIEVED = """
    task = asyncio.create_task(fail())
    await asyncio.wait([task])
"""
IN_A_CYCLE = """
    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    task.add_done_callback(task)
"""
FUTURE = "    asyncio.get_running_loop().create_future().set_exception(ValueError('nobody asked'))"
CALLBACK = """
    asyncio.get_running_loop().call_soon(int, "x")
    await asyncio.sleep(0)
"""
HANDLER_DEFERS = "    handle_with(lambda loop, context: loop.default_exception_handler(context))" + CALLBACK
HANDLER_FAILS = "    handle_with(lambda loop, context: 1 / 0)" + CALLBACK

HANDLER_TAKES = "    handle_with(lambda loop, context: None)" + CALLBACK
RETRIEVED = """
    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    assert task.exception()
"""
CANCELLED = """
    task = asyncio.create_task(asyncio.sleep(3600))
    await asyncio.sleep(0)
    task.cancel()
"""
NEVER_ENDED = """
    global task  # which asyncio then cancels
    task = asyncio.create_task(asyncio.sleep(3600))
"""
EXIT_OF_A_TASK = """
    async def leave():
        sys.exit(0)
    task = asyncio.create_task(leave())
    await asyncio.sleep(3600)
"""


@on_each_loop
@pytest.mark.parametrize(
    "body", [NEVER_RETRIEVED, IN_A_CYCLE, FUTURE, CALLBACK, HANDLER_DEFERS, HANDLER_FAILS], ids=str.strip
)
def test_error_that_a_loop_only_tells_of_is_lost(body, factory):
    result = run(ON_LOOP.format(body, factory))

    assert (1, "end\n") == (result.returncode, result.stdout)
    assert "nobody asked" in result.stderr or "invalid literal" in result.stderr or "ZeroDivision" in result.stderr


@on_each_loop
@pytest.mark.parametrize("body", [HANDLER_TAKES, RETRIEVED, CANCELLED, NEVER_ENDED, EXIT_OF_A_TASK], ids=str.strip)
def test_error_that_somebody_took_from_a_loop_is_not_lost(body, factory):
    assert 0 == run(ON_LOOP.format(body, factory)).returncode


@on_each_loop
def test_error_of_a_loop_is_told_alone_if_so_wished(factory):
    result = run(ON_LOOP.format(NEVER_RETRIEVED, factory), "--lost-errors=warn")

    assert (0, "end\n") == (result.returncode, result.stdout)
    assert "Task exception was never retrieved" in result.stderr
    assert "gossamer/" not in result.stderr


def test_error_of_a_loop_on_an_os_thread_is_lost():
    assert 1 == run(ON_LOOP.format(CALLBACK, STOCK), "--os-threads").returncode
    program = ON_LOOP.format(CALLBACK, STOCK).replace("with asyncio", "def work():\n  with asyncio")
    program = program.replace("    runner.run", "      runner.run")
    start = "import threading; thread = threading.Thread(target=work); thread.start(); thread.join()\n"

    assert 1 == run(program.replace("print", start + "print"), "--os-threads").returncode


def test_class_of_a_loop_written_in_c_is_as_it_was_after_uninstalling():
    pytest.importorskip("uvloop")
    program = (
        "import asyncio, uvloop\n"
        "from gossamer import _loop_errors\n"
        "before = dict(vars(uvloop.Loop))\n"
        "class Own(uvloop.Loop):\n"
        "    def default_exception_handler(self, context): super().default_exception_handler(context)\n"
        "for kind in uvloop.Loop, Own, asyncio.EventLoop if hasattr(asyncio, 'EventLoop') else uvloop.Loop:\n"
        "    loop = kind(); _loop_errors.watch(loop); loop.close()\n"
        "print('default_exception_handler' in vars(uvloop.Loop))\n"
        "_loop_errors.uninstall()\n"
        "print(vars(uvloop.Loop) == before)\n"
    )

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert (0, "True\nTrue\n", "") == (result.returncode, result.stdout, result.stderr)


def test_error_of_a_loop_changes_nothing_outside_of_gossamer_run():
    program = ON_LOOP.format(NEVER_RETRIEVED, OURS)

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert (0, "end\n") == (result.returncode, result.stdout)
    assert "Task exception was never retrieved" in result.stderr
