# SPDX-License-Identifier: Apache-2.0
"""A deadlock is an error that tells where each virtual thread waits, and its scopes then cancel the rest."""

import asyncio
import queue
import subprocess
import sys
import textwrap
import threading

import gossamer as gs
import pytest
from virtually import settle, virtually


def hold_for_ever(lock):
    lock.acquire()
    lock.acquire()  # the line that is told


def deadlock_of(caught):
    (error,) = caught.value.exceptions
    assert isinstance(error, gs.DeadlockError)
    return error


def test_deadlock_is_raised_at_the_park_of_main():
    with pytest.raises(gs.DeadlockError) as caught:
        gs.run(hold_for_ever, threading.Lock())

    assert "main: Lock.acquire" in str(caught.value)
    assert "lock.acquire()  # the line that is told" in str(caught.value)


@virtually
def test_message_has_the_programs_line_of_each_wait():
    """Condition.wait parks in threading.py, but the program's line is the one that calls it."""

    def wait_on_event():
        threading.Event().wait()  # the program's line

    with pytest.raises(ExceptionGroup) as caught, gs.scope() as scope:
        scope.spawn(wait_on_event)
        scope.spawn(hold_for_ever, threading.Lock())

    message = str(deadlock_of(caught))
    assert "main: the tasks of a scope" in message
    assert "wait_on_event: Lock.acquire" in message
    assert "threading.Event().wait()  # the program's line" in message
    assert "lock.acquire()  # the line that is told" in message
    assert "gossamer/_" not in message


@virtually
def test_rest_is_cancelled_and_cleans_up():
    cleaned = []

    def wait():
        try:
            queue.SimpleQueue().get()
        except asyncio.CancelledError:
            gs.checkpoint()
            cleaned.append(True)
            raise

    with pytest.raises(ExceptionGroup), gs.scope() as scope:
        scope.spawn(wait)
        scope.spawn(wait)

    assert [True, True] == cleaned


def test_task_that_deadlocks_again_is_let_go():
    def refuse():
        while True:
            try:
                queue.SimpleQueue().get()
            except asyncio.CancelledError:
                if len(tries) > 3:
                    raise
                tries.append(True)

    tries = []

    def main():
        with pytest.raises(ExceptionGroup) as caught, gs.scope() as scope:
            scope.spawn(refuse)
        deadlock_of(caught)

    for _ in range(2):
        gs.run(main, grace=0.01)


@virtually
def test_main_can_go_on_after_a_deadlock():
    lock = threading.Lock()
    lock.acquire()

    with pytest.raises(gs.DeadlockError):
        lock.acquire()

    lock.release()
    lock.acquire()


@virtually
def test_timer_is_hope():
    lock = threading.Lock()
    lock.acquire()

    assert not lock.acquire(timeout=0.001)


@virtually
def test_os_thread_is_hope():
    answer = queue.SimpleQueue()
    threading.Timer(0.01, answer.put, [1]).start()

    assert 1 == answer.get()


def test_deadlock_after_main_has_ended_is_raised_by_run():
    """Here: a call of an executor, which is waited for. Leaving ends it all the same."""
    futures = []

    def main():
        executor = gs.VirtualThreadPoolExecutor()
        futures.append(executor.submit(hold_for_ever, threading.Lock()))

    with pytest.raises(gs.DeadlockError):
        gs.run(main)

    assert futures[0].done()
    assert 0 == gs.run(int)


@virtually
def test_deadlock_of_many_names_some():
    with pytest.raises(ExceptionGroup) as caught, gs.scope() as scope:
        for _ in range(100):
            scope.spawn(hold_for_ever, threading.Lock())
        settle()

    assert "... and 51 more" in str(deadlock_of(caught))


CARRIERS = """
import queue, threading
import gossamer as gs

def wait_for_ever(queue):
    queue.get()

def carry(name, is_up, gate):
    try:
        gs.run(wait_in_scope, is_up, gate)
    except* gs.DeadlockError as group:
        told[name] = str(group.exceptions[0])
        has_told.release()

def wait_in_scope(is_up, gate):
    with gs.scope() as scope:
        scope.spawn(wait_for_ever, gate)
        is_up.release()

told = {}
has_told = threading.Semaphore(0)
"""


def run_program(program: str) -> list[str]:
    """The lines that the program prints; it must end with exit code 0. A hang ends it with its stacks."""
    watch = "import faulthandler; faulthandler.dump_traceback_later(60, exit=True)\n"
    result = subprocess.run(
        [sys.executable, "-c", watch + CARRIERS + textwrap.dedent(program)], capture_output=True, text=True, timeout=120
    )
    assert 0 == result.returncode, result.stderr
    return result.stdout.splitlines()


def test_deadlock_of_two_carriers_is_raised_on_both():
    assert ["{'main', 'other'}", "True True", "True"] == run_program("""
        is_up = threading.Semaphore(0)
        other = threading.Thread(target=carry, args=("other", is_up, queue.SimpleQueue()))
        other.start()
        is_up.acquire()
        carry("main", is_up, queue.SimpleQueue())
        other.join()
        print({*told} if {*told} != {"main", "other"} else "{'main', 'other'}")
        print(told["main"].count("wait_for_ever: SimpleQueue.get") == 2, "main of Thread-1 (carry)" in told["main"])
        print("wait_for_ever" in told["other"])
        """)


def test_carrier_that_deadlocks_is_no_hope_for_who_joins_its_os_thread():
    assert ["DeadlockError", "True"] == run_program("""
        other = threading.Thread(target=carry, args=("other", threading.Semaphore(0), queue.SimpleQueue()))

        def main():
            other.start()
            other.join()

        try:
            gs.run(main)
        except gs.DeadlockError as error:
            print(type(error).__name__)
        has_told.acquire()
        print("wait_for_ever: SimpleQueue.get" in told["other"])
        """)


def test_carrier_that_ends_wakes_who_joins_its_os_thread():
    assert ["ended"] == run_program("""
        def main():
            other.start()
            go.release()
            other.join()
            return "ended"

        go = threading.Semaphore(0)
        other = threading.Thread(target=gs.run, args=(go.acquire,))
        print(gs.run(main))
        """)


def test_carrier_that_can_go_on_is_hope_for_another():
    """Main waits for what the other carrier gives it once main's own virtual threads have all parked."""
    assert ["given"] == run_program("""
        gate, answer = queue.SimpleQueue(), queue.SimpleQueue()

        def give():
            gate.get()
            threading.Event().wait(0.01)
            answer.put("given")

        def main():
            gate.put(None)
            return answer.get()

        other = threading.Thread(target=gs.run, args=(give,))
        other.start()
        print(gs.run(main))
        other.join()
        """)


def test_carriers_that_wake_each_other_are_no_deadlock():
    assert ["10000"] == run_program("""
        there, back = queue.SimpleQueue(), queue.SimpleQueue()

        def echo():
            while (item := there.get()) is not None:
                back.put(item)

        def main():
            for item in range(10_000):
                there.put(item)
                back.get()
            there.put(None)
            return item + 1

        other = threading.Thread(target=gs.run, args=(echo,))
        other.start()
        print(gs.run(main))
        other.join()
        """)
