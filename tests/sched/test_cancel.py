# SPDX-License-Identifier: Apache-2.0
"""Cancellation and time-outs: what they interrupt, when they are raised, and what a shield holds back."""

import asyncio
import queue
import socket
import threading
import time

import gossamer as gs
import pytest
from virtually import settle, virtually


def wait_on_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def wait_on_condition():
    with (condition := threading.Condition()):
        condition.wait()


def wait_on_socket():
    left, right = socket.socketpair()
    with left, right:
        left.recv(1)


def wait_on_task():
    with gs.scope() as scope:
        scope.spawn(queue.SimpleQueue().get).result()


PARKS = {
    "sleep": lambda: time.sleep(1000),
    "gossamer.sleep": lambda: gs.sleep(1000),
    "lock": wait_on_lock,
    "condition": wait_on_condition,
    "event": lambda: threading.Event().wait(),
    "simple queue": lambda: queue.SimpleQueue().get(),
    "queue": lambda: queue.Queue().get(),
    "semaphore": lambda: threading.Semaphore(0).acquire(),
    "barrier": lambda: threading.Barrier(2).wait(),
    "socket": wait_on_socket,
    "task": wait_on_task,
    "timed lock": lambda: (lock := threading.Lock()).acquire() and lock.acquire(timeout=1000),
}


@pytest.mark.parametrize("park", PARKS.values(), ids=PARKS.keys())
@virtually
def test_cancellation_interrupts_a_park(park):
    with gs.scope() as scope:
        task = scope.spawn(park)
        settle()
        assert not task.done()
        assert task.cancel()

    assert task.cancelled()


@pytest.mark.parametrize("park", PARKS.values(), ids=PARKS.keys())
@virtually
def test_time_out_interrupts_a_park(park):
    with pytest.raises(TimeoutError), gs.timeout(0.001):
        park()


@virtually
def test_timeout_0_interrupts_the_first_wait():
    before = []

    with pytest.raises(TimeoutError), gs.timeout(0):
        before.append("computes")
        gs.checkpoint()
        before.append("went on")

    assert ["computes"] == before


@virtually
def test_body_that_does_not_wait_beats_timeout_0():
    with gs.timeout(0):
        pass

    gs.checkpoint()


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_time_limit_that_is_no_duration_is_refused(seconds):
    with pytest.raises(ValueError):
        gs.timeout(seconds)
    with pytest.raises(ValueError):
        gs.scope(timeout=seconds)


@pytest.mark.parametrize("seconds", [None, float("inf"), 1e30])
@virtually
def test_time_limit_without_end(seconds):
    if seconds == 1e30:
        with pytest.raises(OverflowError), gs.timeout(seconds):
            pass
        return
    with gs.timeout(seconds):
        gs.checkpoint()


@virtually
def test_timeout_is_raised_from_the_cancellation_that_shows_the_wait():
    with pytest.raises(TimeoutError) as caught, gs.timeout(0):
        gs.checkpoint()

    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


@virtually
def test_error_of_the_body_passes_a_timeout_bare():
    with pytest.raises(KeyError), gs.timeout(0):
        try:
            gs.checkpoint()
        finally:
            raise KeyError


@virtually
def test_body_that_swallows_a_time_out_has_succeeded():
    with gs.timeout(0):
        try:
            gs.checkpoint()
        except asyncio.CancelledError:
            pass


@virtually
def test_inner_limit_ends_the_inner_block_alone():
    reached = []

    with gs.timeout(1000):
        with pytest.raises(TimeoutError), gs.timeout(0.001):
            gs.sleep(1000)
        gs.checkpoint()
        reached.append(True)

    assert [True] == reached


@virtually
def test_outer_limit_ends_both_blocks():
    reached = []

    with pytest.raises(TimeoutError), gs.timeout(0.001):
        with gs.timeout(1000):
            gs.sleep(1000)
        reached.append("between")

    assert [] == reached


@virtually
def test_both_limits_at_once_raise_one_error_from_the_outer_block():
    reached = []

    with pytest.raises(TimeoutError), gs.timeout(0):
        try:
            with gs.timeout(0):
                gs.checkpoint()
        finally:
            reached.append("inner left")
        reached.append("between")

    assert ["inner left"] == reached
    gs.checkpoint()


@virtually
def test_time_limit_of_a_scope_cancels_its_tasks():
    with pytest.raises(TimeoutError), gs.scope(timeout=0.001) as scope:
        task = scope.spawn(gs.sleep, 1000)

    assert task.cancelled()


@virtually
def test_time_limit_of_a_scope_joins_failures_in_the_group():
    def fail_in_cleanup():
        try:
            gs.sleep(1000)
        finally:
            raise OSError

    with pytest.raises(ExceptionGroup) as caught, gs.scope(timeout=0.001) as scope:
        scope.spawn(fail_in_cleanup)

    assert {OSError, TimeoutError} == {type(error) for error in caught.value.exceptions}


@virtually
def test_scope_that_ends_in_time_leaves_no_timer():
    for _ in range(3):
        with gs.scope(timeout=0.001) as scope:
            scope.spawn(int)

    gs.sleep(0.002)


@virtually
def test_task_cancelled_before_it_began_never_begins():
    began = []

    with gs.scope() as scope:
        task = scope.spawn(began.append, True)
        task.cancel()

    assert [] == began
    assert task.cancelled()


@virtually
def test_cancellation_is_raised_once():
    seen = []

    def stubborn():
        try:
            gs.sleep(1000)
        except asyncio.CancelledError:
            seen.append("cancelled")
        gs.checkpoint()
        seen.append("went on")

    with gs.scope() as scope:
        task = scope.spawn(stubborn)
        settle()
        task.cancel()

    assert ["cancelled", "went on"] == seen
    assert not task.cancelled()


@virtually
def test_cancel_of_an_ended_task_returns_false():
    with gs.scope() as scope:
        task = scope.spawn(int)

    assert not task.cancel()


@virtually
def test_cancel_from_another_os_thread():
    with gs.scope() as scope:
        task = scope.spawn(gs.sleep, 1000)
        settle()
        threading.Thread(target=task.cancel).start()

    assert task.cancelled()


@virtually
def test_task_can_cancel_itself():
    def cancel_myself():
        gs.current().cancel()
        gs.checkpoint()
        raise AssertionError("went on")

    with gs.scope() as scope:
        task = scope.spawn(cancel_myself)

    assert task.cancelled()


@virtually
def test_shield_holds_a_cancellation_back_until_the_wait_after_it():
    seen = []

    def clean_up():
        with gs.shield():
            gate.get()
            seen.append("cleaned up")
        seen.append("left the shield")
        gs.checkpoint()
        seen.append("went on")

    gate = queue.SimpleQueue()
    with gs.scope() as scope:
        task = scope.spawn(clean_up)
        settle()
        task.cancel()
        settle()
        assert not task.done()
        gate.put(None)

    assert ["cleaned up", "left the shield"] == seen
    assert task.cancelled()


@virtually
def test_body_under_a_shield_outlives_its_limit_and_has_succeeded():
    with gs.timeout(0), gs.shield():
        gs.checkpoint()

    gs.checkpoint()


@virtually
def test_limit_inside_a_shield_waits_for_the_end_of_the_shield():
    with gs.shield(), gs.timeout(0):
        gs.checkpoint()

    gs.checkpoint()


@virtually
def test_checkpoint_raises_a_cancellation_and_sleep_0_is_the_same():
    def raises(wait):
        gs.current().cancel()
        with pytest.raises(asyncio.CancelledError):
            wait()

    with gs.scope() as scope:
        scope.spawn(raises, gs.checkpoint)
        scope.spawn(raises, lambda: gs.sleep(0))


@virtually
def test_checkpoint_lets_every_ready_virtual_thread_run():
    ran = []

    with gs.scope() as scope:
        for number in range(5):
            scope.spawn(ran.append, number)
        gs.checkpoint()
        assert [0, 1, 2, 3, 4] == ran


@virtually
def test_wait_in_no_switch_raises_and_nothing_else_runs():
    ran = []

    with gs.scope() as scope:
        scope.spawn(ran.append, True)
        with gs.no_switch():
            gs.checkpoint()
            with pytest.raises(RuntimeError, match="no_switch"):
                gs.sleep(1)
            assert [] == ran


@virtually
def test_lock_served_at_the_moment_of_cancellation_is_kept():
    """The waiter was chosen before it was cancelled: it has the lock, and the cancellation comes at its next wait."""
    lock = threading.Lock()
    seen = []

    def take():
        lock.acquire()
        seen.append("has it")
        try:
            gs.checkpoint()
        finally:
            lock.release()

    lock.acquire()
    with gs.scope() as scope:
        task = scope.spawn(take)
        settle()
        lock.release()
        task.cancel()

    assert ["has it"] == seen
    assert task.cancelled()
    assert lock.acquire(blocking=False)
