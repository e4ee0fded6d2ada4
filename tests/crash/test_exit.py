# SPDX-License-Identifier: Apache-2.0
"""The end of a program: as plain Python's, with whatever is parked."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PARKED = """
import sys, threading, time, os
import gossamer as gs

def park():
    threading.Event().wait(1000)

for _ in range(COUNT):
    threading.Thread(target=park, daemon=True).start()
time.sleep(0)
"""


def parked(count: int) -> str:
    return PARKED.replace("COUNT", str(count))


def test_ten_thousand_parked_daemons_at_the_end_say_nothing(run_program):
    result = run_program(parked(10_000) + "print('end')")

    assert (0, "end\n", "") == (result.returncode, result.stdout, result.stderr)


@pytest.mark.parametrize(
    ("way_out", "code"),
    [("sys.exit(3)", 3), ("os._exit(4)", 4), ("os.kill(os.getpid(), 15)", -signal.SIGTERM), ("sys.exit()", 0)],
)
def test_a_way_out_with_a_thousand_parked(run_program, way_out, code):
    result = run_program(parked(1000) + way_out)

    assert (code, "", "") == (result.returncode, result.stdout, result.stderr)


def test_non_daemon_virtual_threads_are_joined(run_both):
    plain, virtual = run_both(
        """
        import threading
        def late():
            threading.main_thread().join()
            print("late")
        threading.Thread(target=late).start()
        print("end of main")
        """
    )

    assert plain == virtual == (0, "end of main\nlate\n", "")


def test_a_daemon_has_time_to_clean_up(run_program):
    result = run_program(
        """
        import threading, time
        def body():
            try:
                threading.Event().wait(1000)
            finally:
                time.sleep(0.001)
                print("cleaned up")
        threading.Thread(target=body, daemon=True).start()
        time.sleep(0)
        """
    )

    assert (0, "cleaned up\n", "") == (result.returncode, result.stdout, result.stderr)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="before 3.14 a finaliser that joins a daemon waits for ever")
def test_a_finaliser_that_joins_an_abandoned_daemon_fails_as_in_plain_python(run_program):
    """Nothing of ours collects garbage between the end of the program and the end of the interpreter."""
    result = run_program(
        """
        import threading
        def spin():
            while True:
                pass
        class Cycle:
            def __init__(self):
                self.myself = self
                self.thread = threading.Thread(target=spin, daemon=True)
                self.thread.start()
            def __del__(self):
                try:
                    self.thread.join()
                except PythonFinalizationError:
                    print("cannot be joined")
        Cycle()
        """,
        options=("--exit-grace=0.01",),
    )

    assert (0, "cannot be joined\n") == (result.returncode, result.stdout)
    assert "1 virtual threads did not end in 0.01 s and are abandoned" in result.stderr


def test_a_daemon_that_does_not_end_is_named_and_abandoned(run_program):
    result = run_program(
        """
        import asyncio, threading, time
        def stubborn():
            while True:
                try:
                    threading.Event().wait(1000)
                except asyncio.CancelledError:
                    pass
        threading.Thread(target=stubborn, daemon=True, name="the-stubborn-one").start()
        time.sleep(0)
        """,
        options=("--exit-grace=0.05",),
    )

    assert 0 == result.returncode
    assert "abandoned" in result.stderr
    assert "the-stubborn-one" in result.stderr


def test_a_raw_thread_that_is_cancelled_at_the_end_says_nothing(run_program):
    result = run_program(
        """
        import _thread, threading, time
        _thread.start_new_thread(threading.Event().wait, (1000,))
        time.sleep(0)
        """
    )

    assert (0, "", "") == (result.returncode, result.stdout, result.stderr)


def test_atexit_handlers_may_wait(run_both):
    plain, virtual = run_both(
        """
        import atexit, queue, threading, time
        channel = queue.Queue()
        def handler():
            time.sleep(0.001)
            channel.put("item")
            print(channel.get())
        atexit.register(handler)
        """
    )

    assert plain == virtual == (0, "item\n", "")


@pytest.mark.parametrize(
    "source",
    [
        "raise ValueError('uncaught')",
        "def f():\n    1 / 0\nf()",
        "raise SystemExit('a message')",
        "raise SystemExit(None)",
        "import sys; sys.exit(7)",
        "raise KeyboardInterrupt",
        "import sys\nsys.excepthook = lambda *a: print('hook', a[0].__name__)\nraise KeyError",
        "import sys\nsys.excepthook = lambda *a: 1 / 0\nraise KeyError",
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('x') from e",
        "syntax error here",
        "import sys; print(sys.argv, __name__, sys.path[0] == '')",
        "import threading\ndef f():\n    raise SystemExit(3)\nt = threading.Thread(target=f); t.start(); t.join()",
    ],
)
def test_the_end_looks_as_plain_pythons(run_both, source):
    plain, virtual = run_both(source, "argument")

    assert plain == virtual


@pytest.mark.parametrize("kind", ["script", "module"])
def test_a_script_and_a_module_end_as_plain_pythons(tmp_path, kind):
    path = tmp_path / "program.py"
    path.write_text("import sys\nprint(__name__, __file__, sys.argv[1:], sys.path[0])\ndef f():\n    1 / 0\nf()\n")
    program = [str(path), "x"] if kind == "script" else ["-m", "program", "x"]

    plain, virtual = (
        subprocess.run([sys.executable, *runner, *program], capture_output=True, text=True, timeout=60, cwd=tmp_path)
        for runner in ([], ["-m", "gossamer", "run"])
    )

    assert (plain.returncode, plain.stdout, plain.stderr) == (virtual.returncode, virtual.stdout, virtual.stderr)


def test_an_error_that_nobody_took_fails_the_program(run_program):
    source = "import threading\nt = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()"

    assert 1 == run_program(source).returncode
    assert 0 == run_program(source, options=("--lost-errors=warn",)).returncode


def test_virtual_threads_run_while_main_waits_for_os_threads_at_the_end(run_program):
    result = run_program(
        """
        import threading
        import gossamer as gs
        event = threading.Event()
        threading.Thread(target=event.wait).start()
        from gossamer import _core
        _core.spawn(lambda: (gs.checkpoint(), event.set(), print("set")))
        print("end of main")
        """,
        options=("--os-threads",),
    )

    assert (0, "end of main\nset\n", "") == (result.returncode, result.stdout, result.stderr)


def test_ctrl_c_while_everything_is_parked_ends_as_plain_pythons(run_both):
    plain, virtual = run_both(
        """
        import os, signal, threading, time
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        threading.Event().wait()
        """
    )

    assert plain[0] == virtual[0] == -signal.SIGINT
    assert plain[2].splitlines()[-1] == virtual[2].splitlines()[-1]


def test_a_carrier_that_is_a_daemon_and_computes_does_not_crash_the_end(tmp_path):
    """3.12 ended its OS thread by unwinding the stack of the fiber that it was on, in one run of three."""
    program = tmp_path / "program.py"
    program.write_text("""
import threading, gossamer as gs
up = threading.Event()
def compute():
    up.set()
    while True: pass
def main():
    with gs.scope() as scope: scope.spawn(compute)
threading.Thread(target=gs.run, args=(main,), daemon=True).start()
up.wait()
""")

    runs = [subprocess.run([sys.executable, program], timeout=60, capture_output=True, check=False) for _ in range(12)]

    assert [(0, b"")] * 12 == [(run.returncode, run.stderr) for run in runs]
