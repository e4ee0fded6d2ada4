# SPDX-License-Identifier: Apache-2.0
"""Waiting for signals parks the virtual thread alone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest


def run_program(source: str) -> subprocess.CompletedProcess[str]:
    """Run ``source`` under ``gossamer run``; the threads that it starts are virtual."""
    command = [sys.executable, "-m", "gossamer", "run", "-c", textwrap.dedent(source)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))


PROLOGUE = """
import os, signal, threading
number = signal.SIGUSR1

def send():
    os.kill(os.getpid(), number)

def send_from_a_thread():
    threading.Thread(target=send).start()
"""


@pytest.mark.parametrize(
    "wait",
    [
        "signal.sigwait([number])",
        "signal.sigwaitinfo({number}).si_signo",
        "signal.sigtimedwait((number,), 60).si_signo",
    ],
)
def test_a_thread_that_waits_for_a_signal_lets_the_one_run_that_sends_it(wait: str) -> None:
    """Were the carrier asleep, nobody could send it."""
    result = run_program(
        PROLOGUE
        + f"""
signal.pthread_sigmask(signal.SIG_BLOCK, [number])
send_from_a_thread()
print({wait} == number)
"""
    )

    assert (0, "True\n", "") == (result.returncode, result.stdout, result.stderr)


def test_a_wait_for_a_signal_that_does_not_come_times_out() -> None:
    """sigtimedwait() returns None, as ever."""
    result = run_program(
        PROLOGUE
        + """
signal.pthread_sigmask(signal.SIG_BLOCK, [number])
print(signal.sigtimedwait([number], 0.01), signal.sigtimedwait([number], 0))
"""
    )

    assert (0, "None None\n", "") == (result.returncode, result.stdout, result.stderr)


def test_pause_ends_when_a_handler_has_run() -> None:
    """And other threads run meanwhile."""
    result = run_program(
        PROLOGUE
        + """
import gossamer
from gossamer import _core
signal.signal(number, lambda *_: print("handled"))

def send_once_main_waits():
    while not any(what == "signal.pause" for _ident, _status, what, *_rest in _core.threads()):
        gossamer.checkpoint()
    send()

threading.Thread(target=send_once_main_waits).start()
signal.pause()
print("went on")
"""
    )

    assert (0, "handled\nwent on\n", "") == (result.returncode, result.stdout, result.stderr)


def test_refused_signals_are_refused_in_the_same_words() -> None:
    """The original says what is wrong."""
    result = run_program(
        PROLOGUE
        + """
for call in (lambda: signal.sigwait([0]), lambda: signal.sigwait(["x"]), lambda: signal.sigtimedwait([number], -1)):
    try:
        call()
    except (ValueError, TypeError) as error:
        print(type(error).__name__)
"""
    )

    assert (0, "ValueError\nTypeError\nValueError\n", "") == (result.returncode, result.stdout, result.stderr)


RESTARTING = (
    PROLOGUE
    + """
import select, socket, subprocess, sys, time
import gossamer
from gossamer import _core
reader, writer = os.pipe()
ours, theirs = socket.socketpair()
signal.signal(number, lambda *_: print("handled"))
signal.siginterrupt(number, False)

def once_main_waits(then):
    def run():
        while not any(status == "parked" and what for _ident, status, what, *_rest in _core.threads()):
            gossamer.checkpoint()
        send()
        time.sleep(0.001)  # the hub finds nothing to run, and looks whether main must be interrupted
        print("sent")
        then()
    threading.Thread(target=run).start()
"""
)


@pytest.mark.parametrize(
    ("wait", "end"),
    [
        ("os.read(reader, 1)", 'os.write(writer, b"x")'),
        ("ours.recv(1)", 'theirs.send(b"x")'),
        ("child.wait()", "child.stdin.close()"),
    ],
)
def test_a_call_that_the_kernel_restarts_goes_on_after_a_signal_that_does_not_interrupt(wait: str, end: str) -> None:
    """The handler runs when the call is over, as in plain Python."""
    result = run_program(
        RESTARTING
        + f"""
child = subprocess.Popen([sys.executable, "-ISc", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
once_main_waits(lambda: {end})
{wait}
print("went on")
child.stdin.close()
child.wait()
"""
    )

    assert ("sent\nhandled\nwent on\n", "") == (result.stdout, result.stderr)


@pytest.mark.parametrize("wait", ["select.select([reader], [], [])", "ours.settimeout(60); ours.recv(1)"])
def test_a_call_that_the_kernel_never_restarts_is_interrupted_by_every_signal(wait: str) -> None:
    """These wait in select() and poll(); the handler runs at once."""
    result = run_program(
        RESTARTING
        + f"""
once_main_waits(lambda: (os.write(writer, b"x"), theirs.send(b"x")))
{wait}
print("went on")
"""
    )

    assert ("handled\nsent\nwent on\n", "") == (result.stdout, result.stderr)


def test_a_signal_that_interrupts_runs_the_handlers_of_those_that_do_not() -> None:
    """The call comes back to the interpreter, which looks at all of them."""
    result = run_program(
        RESTARTING
        + """
signal.signal(signal.SIGUSR2, lambda *_: print("handled another"))

def go_on():
    os.kill(os.getpid(), signal.SIGUSR2)
    time.sleep(0.001)
    print("sent another")
    os.write(writer, b"x")

once_main_waits(go_on)
os.read(reader, 1)
"""
    )

    assert ("sent\nhandled\nhandled another\nsent another\n", "") == (result.stdout, result.stderr)
