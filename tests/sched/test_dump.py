# SPDX-License-Identifier: Apache-2.0
"""`dump` and `snapshot`: each virtual thread, its age, what it waits for and its Python stack."""

import io
import os
import queue
import subprocess
import sys

import gossamer as gs
from virtually import settle, virtually


def wait_in_queue(gate):
    gate.get()


@virtually
def test_snapshot_tells_what_each_virtual_thread_does():
    gate = queue.SimpleQueue()
    with gs.scope() as scope:
        task = scope.spawn(wait_in_queue, gate)
        settle()

        main, waiter = gs.snapshot()

        gate.put(None)
    assert (True, "running", "main") == (main.is_main, main.state, main.name)
    assert "test_snapshot_tells_what_each_virtual_thread_does" == main.stack[-1].name
    assert ("parked", "SimpleQueue.get", "wait_in_queue") == (waiter.state, waiter.waits_for, waiter.name)
    assert (task, task.ident if not task.done() else waiter.ident) == (waiter.task, waiter.ident)
    assert ["wait_in_queue"] == [call.name for call in waiter.stack]
    assert not waiter.is_daemon
    assert 0 <= waiter.age < 60


@virtually
def test_snapshot_tells_the_descriptor_that_is_waited_for():
    import socket

    left, right = socket.socketpair()
    with left, right, gs.scope() as scope:
        scope.spawn(left.recv, 1)
        settle()

        assert left.fileno() == gs.snapshot()[1].descriptor

        right.send(b"x")


def test_snapshot_of_an_ordinary_thread_is_empty():
    assert [] == gs.snapshot()


@virtually
def test_dump_prints_to_a_file():
    gate = queue.SimpleQueue()
    file = io.StringIO()
    with gs.scope() as scope:
        scope.spawn(wait_in_queue, gate)
        settle()
        gs.dump(file=file)
        gate.put(None)

    assert "(wait_in_queue): parked in SimpleQueue.get" in file.getvalue()
    assert "    gate.get()" in file.getvalue()


def test_dump_prints_to_standard_error(capsys):
    gs.dump()

    assert "no virtual threads" in capsys.readouterr().err


QUIT = """
import os, queue, signal, gossamer
def wait_in_queue(gate):
    gate.get()
gate = queue.SimpleQueue()
with gossamer.scope() as scope:
    scope.spawn(wait_in_queue, gate)
    gossamer.checkpoint()
    os.kill(os.getpid(), signal.SIGQUIT)
    gossamer.checkpoint()
    gate.put(None)
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def test_sigquit_dumps_under_gossamer_run():
    result = subprocess.run(
        [sys.executable, "-m", "gossamer", "run", "-c", QUIT], capture_output=True, text=True, timeout=60
    )

    assert (0, "True\n") == (result.returncode, result.stdout)
    assert "(wait_in_queue): parked in SimpleQueue.get" in result.stderr


def test_sigquit_handler_is_no_hope_in_a_deadlock():
    program = "import queue; queue.SimpleQueue().get()"

    result = subprocess.run(
        [sys.executable, "-m", "gossamer", "run", "-c", program], capture_output=True, text=True, timeout=60
    )

    assert 1 == result.returncode
    assert "DeadlockError" in result.stderr


def test_sigquit_that_is_ignored_stays_ignored():
    program = "import signal; print(signal.getsignal(signal.SIGQUIT))"

    result = subprocess.run(
        [sys.executable, "-m", "gossamer", "run", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: __import__("signal").signal(__import__("signal").SIGQUIT, 1),
        env=os.environ,
    )

    assert "Handlers.SIG_IGN\n" == result.stdout or "1\n" == result.stdout
