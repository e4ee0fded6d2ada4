# SPDX-License-Identifier: Apache-2.0
"""Uninstalling puts back every pointer that installing has changed; each program runs in a child."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

PRELUDE = """
import _ctypes, _io, _socket, ctypes, io, select, socket, ssl, queue, threading, time
import tables

def names(found):
    parts = [name.partition("#") for name in found]
    return [owner.removeprefix("builtins.") + member.partition(".")[2] for owner, _, member in parts]
"""


def run_program(program: str) -> list[str]:
    """The lines that the program prints; it must end with exit code 0."""
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PRELUDE + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert 0 == result.returncode, result.stderr
    return result.stdout.splitlines()


def test_uninstalling_leaves_the_memory_of_the_tables_as_it_was_before():
    """All of it: method tables, descriptors and slots, also of a class that was made while they were swapped."""
    lines = run_program("""
        class Early(io.BufferedReader):
            pass

        import gossamer as gs
        from gossamer import _run

        before = tables.snapshot()
        gs.run(time.sleep, 0)
        during = tables.snapshot()

        class Late(io.BufferedReader):
            pass

        _run.uninstall()
        after = tables.snapshot()
        print(*names(tables.changes(before, after)))
        print(len({tables.slot(kind, "iternext") for kind in (io.BufferedReader, Early, Late)}))
        print(*names(tables.changes(before, during)))
        """)

    assert "" == lines[0]
    assert "1" == lines[1]
    for name in (
        "time.sleep",
        "_socket.socketrecv",
        "_socket.socket__init__",
        "_io.BufferedReader",
        "_io.BufferedReader__next__",
        "_ctypes.CFuncPtr",
        "_ssl._SSLSocketread",
        "_imp.exec_dynamic",
    ):
        assert name in lines[2].split()


def test_what_was_uninstalled_is_installed_again_by_the_next_run():
    assert ["True", "[]"] == run_program("""
        import gossamer as gs
        from gossamer import _core, _run

        def parks():
            left, right = socket.socketpair()
            with left, right, gs.scope() as scope:
                task = scope.spawn(left.recv, 1)
                gs.checkpoint()
                right.send(b"x")
            return task.result() == b"x"

        gs.run(parks)
        before = tables.snapshot()
        _run.uninstall()
        print(gs.run(parks))
        print(tables.changes(before, tables.snapshot()))
        """)


def test_the_class_of_threads_that_threading_did_not_start_is_put_back():
    assert ["True True"] == run_program("""
        original = threading._DummyThread
        import gossamer as gs
        from gossamer import _run

        gs.run(int)
        was_replaced = threading._DummyThread is not original
        _run.uninstall()
        print(was_replaced, threading._DummyThread is original)
        """)


def test_uninstalling_is_refused_while_virtual_threads_run():
    """Who releases a lock would not wake the one that is parked on it any more."""
    assert ["virtual threads run: who waits for them would not be woken any more", "woken"] == run_program("""
        import gossamer as gs
        from gossamer import _run

        def main():
            lock = threading.Lock()
            lock.acquire()
            with gs.scope() as scope:
                task = scope.spawn(lock.acquire)
                gs.checkpoint()
                try:
                    _run.uninstall()
                except RuntimeError as error:
                    print(error)
                lock.release()
            print("woken" if task.result() else "not woken")

        gs.run(main)
        """)
