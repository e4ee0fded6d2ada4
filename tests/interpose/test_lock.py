# SPDX-License-Identifier: Apache-2.0
"""Locks and what stands on them, shared by virtual threads, OS threads and a signal handler."""

from __future__ import annotations

import asyncio
import random
import signal
import threading

import gossamer as gs
import pytest
from handoff import HANDOFFS, SEED, maybe_yield, run_mixed

made_before_gossamer = {"lock": threading.Lock(), "rlock": threading.RLock()}


@pytest.mark.parametrize("make", [threading.Lock, threading.RLock], ids=["Lock", "RLock"])
def test_a_lock_excludes_virtual_threads_and_os_threads(make):
    lock = make()
    inside = [0]
    worst = [0]

    def body(number: int) -> None:
        source = random.Random(SEED + number)
        for _ in range(HANDOFFS // 8):
            with lock:
                inside[0] += 1
                worst[0] = max(worst[0], inside[0])
                maybe_yield(source)
                inside[0] -= 1
            maybe_yield(source)

    run_mixed([lambda number=number: body(number) for number in range(8)])

    assert 1 == worst[0]


@pytest.mark.parametrize("kind", ["lock", "rlock"])
def test_a_lock_made_before_gossamer_started_excludes(kind):
    lock = made_before_gossamer[kind]
    order = []

    def body() -> None:
        with lock:
            order.append("in")
            gs.checkpoint()
            order.append("out")

    def main() -> None:
        with gs.scope() as scope:
            scope.spawn(body)
            scope.spawn(body)

    gs.run(main)

    assert ["in", "out", "in", "out"] == order


def test_a_lock_held_by_an_os_thread_parks_and_is_handed_over():
    lock = threading.Lock()
    is_held, may_release = threading.Event(), threading.Event()

    def holder() -> None:
        with lock:
            is_held.set()
            may_release.wait()

    def main() -> str:
        thread = threading.Thread(target=holder)
        thread.start()
        is_held.wait()
        with gs.scope() as scope:
            scope.spawn(may_release.set)  # runs only if the acquire below parks
            with lock:
                pass
        thread.join()
        return "acquired"

    assert "acquired" == gs.run(main)


def test_an_rlock_of_a_virtual_thread_is_not_released_by_another():
    lock = threading.RLock()

    def main() -> None:
        with gs.scope() as scope:
            scope.spawn(lock.acquire).result()
            with pytest.raises(RuntimeError):
                lock.release()
            assert not lock._is_owned()

    gs.run(main)


def test_an_rlock_is_taken_again_by_its_virtual_thread_alone():
    lock = threading.RLock()

    def owner() -> None:
        with lock, lock:
            gs.checkpoint()
            assert lock._is_owned()

    def main() -> bool:
        with gs.scope() as scope:
            scope.spawn(owner)
            gs.checkpoint()
            got = lock.acquire(blocking=False)
        return got

    assert gs.run(main) is False


def test_condition_hands_over_with_a_reentrant_lock_held_twice():
    condition = threading.Condition()
    turns = []

    def waiter() -> None:
        with condition, condition:
            condition.wait()
            turns.append("woken")
            assert condition._is_owned()

    def main() -> None:
        with gs.scope() as scope:
            scope.spawn(waiter)
            gs.checkpoint()
            with condition:
                condition.notify()
                turns.append("notified")

    gs.run(main)

    assert ["notified", "woken"] == turns


def test_no_wakeup_of_a_condition_is_lost():
    condition = threading.Condition()
    turn = [0]
    parties = 4

    def body(number: int) -> None:
        for _ in range(HANDOFFS // (4 * parties)):
            with condition:
                while turn[0] % parties != number:
                    condition.wait()
                turn[0] += 1
                condition.notify_all()

    run_mixed([lambda number=number: body(number) for number in range(parties)])

    assert HANDOFFS // (4 * parties) * parties == turn[0]


def test_no_wakeup_of_a_semaphore_is_lost():
    semaphore = threading.Semaphore(2)
    inside, worst = [0], [0]

    def body(number: int) -> None:
        source = random.Random(SEED + number)
        for _ in range(HANDOFFS // 16):
            with semaphore:
                inside[0] += 1
                worst[0] = max(worst[0], inside[0])
                maybe_yield(source)
                inside[0] -= 1

    run_mixed([lambda number=number: body(number) for number in range(8)])

    assert worst[0] <= 2


def test_no_wakeup_of_an_event_is_lost():
    rounds = HANDOFFS // 16
    pings = [threading.Event() for _ in range(rounds)]
    pongs = [threading.Event() for _ in range(rounds)]

    def ping() -> None:
        for out, back in zip(pings, pongs, strict=True):
            out.set()
            back.wait()

    def pong() -> None:
        for out, back in zip(pings, pongs, strict=True):
            out.wait()
            back.set()

    run_mixed([ping, pong])

    assert all(event.is_set() for event in pongs)


def test_a_barrier_lets_all_through_together():
    parties = 4
    barrier = threading.Barrier(parties)
    passed = [0] * parties

    def body(number: int) -> None:
        for _ in range(HANDOFFS // 40):
            barrier.wait()
            passed[number] += 1
            assert max(passed) - min(passed) <= 1

    run_mixed([lambda number=number: body(number) for number in range(parties)])

    assert [HANDOFFS // 40] * parties == passed


def test_a_signal_handler_wakes_parked_virtual_threads():
    lock = threading.Lock()
    rounds = HANDOFFS // 40
    got = []

    def body() -> None:
        for number in range(rounds):
            lock.acquire()
            got.append(number)
            signal.raise_signal(signal.SIGUSR1)

    def main() -> None:
        lock.acquire()
        previous = signal.signal(signal.SIGUSR1, lambda *_: lock.release())
        try:
            with gs.scope() as scope:
                scope.spawn(body)
                gs.checkpoint()
                signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.signal(signal.SIGUSR1, previous)

    gs.run(main)

    assert list(range(rounds)) == got


def test_an_acquire_that_a_signal_handler_ends_leaves_the_lock_to_the_next():
    """The lock was released, and the first in its queue woken, who then raised instead of taking it."""
    lock = threading.Lock()

    def main() -> bool:
        lock.acquire()
        with gs.scope() as scope:

            def release_and_interrupt() -> gs.Task[bool]:
                waiter = scope.spawn(lock.acquire)
                gs.checkpoint()
                signal.raise_signal(signal.SIGUSR1)
                lock.release()
                return waiter

            releaser = scope.spawn(release_and_interrupt)
            with pytest.raises(ZeroDivisionError):
                lock.acquire()
            waiter = releaser.result()
            gs.checkpoint()
            try:
                return waiter.done()
            finally:
                scope.cancel()

    previous = signal.signal(signal.SIGUSR1, lambda *_: 1 / 0)
    try:
        assert gs.run(main) is True
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_acquire_takes_the_longest_timeout_there_is():
    lock = threading.Lock()

    assert gs.run(lambda: lock.acquire(timeout=threading.TIMEOUT_MAX))
    with pytest.raises(OverflowError):
        gs.run(lambda: lock.acquire(timeout=threading.TIMEOUT_MAX * 2))


@pytest.mark.parametrize("make", [threading.Lock, threading.RLock], ids=["Lock", "RLock"])
def test_a_condition_that_is_cancelled_twice_gets_its_lock_back(make):
    """With a Lock, Condition._acquire_restore calls Lock.acquire: cancelled there, `with` released another's lock."""
    condition = threading.Condition(make())
    log = []

    def waiter() -> None:
        try:
            with condition:
                condition.wait()
        finally:
            log.append("out")

    def main() -> None:
        with gs.scope() as scope:
            task = scope.spawn(waiter)
            gs.checkpoint()
            with condition:
                for _ in range(2):
                    task.cancel()
                    gs.checkpoint()
                log.append("held")
            with pytest.raises(asyncio.CancelledError):
                task.result()

    gs.run(main)

    assert ["held", "out"] == log


def test_a_cancelled_acquire_leaves_the_lock_to_the_next():
    lock = threading.Lock()

    def main() -> bool:
        lock.acquire()
        with gs.scope() as scope:
            cancelled = scope.spawn(lock.acquire)
            waiter = scope.spawn(lock.acquire)
            gs.checkpoint()
            cancelled.cancel()
            gs.checkpoint()
            lock.release()
            return waiter.result()

    assert gs.run(main) is True
