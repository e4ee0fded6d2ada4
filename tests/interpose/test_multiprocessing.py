# SPDX-License-Identifier: Apache-2.0
"""multiprocessing's locks, events and queues: they park, belong to a virtual thread, and other processes share them."""

import gc
import multiprocessing
import queue
import subprocess
import sys
import textwrap
import threading
from multiprocessing import resource_tracker

import gossamer as gs
import pytest

CONTEXT = multiprocessing.get_context("spawn")


def release(semaphore):
    """What another process does; a bound method of theirs cannot be sent to it."""
    semaphore.release()


def put(items, item):
    """The same."""
    items.put(item)


@pytest.fixture(scope="module", autouse=True)
def _no_child_stays():
    """Ends the process that watches over the semaphores: tests of waits for children expect to have none."""
    yield
    gc.collect()
    resource_tracker._resource_tracker._stop()


def settle():
    for _ in range(5):
        gs.checkpoint()


@pytest.mark.parametrize("make", [CONTEXT.Lock, CONTEXT.RLock, CONTEXT.Semaphore, CONTEXT.BoundedSemaphore])
def test_a_lock_excludes_the_virtual_threads_of_a_carrier(make):
    lock = make()
    inside, worst = [0], [0]

    def work():
        for _ in range(20):
            with lock:
                inside[0] += 1
                worst[0] = max(worst[0], inside[0])
                gs.checkpoint()
                inside[0] -= 1
            gs.checkpoint()

    def main():
        with gs.scope() as scope:
            for _ in range(5):
                scope.spawn(work)

    gs.run(main)

    assert [1] == worst


def test_a_recursive_lock_belongs_to_a_virtual_thread():
    lock = CONTEXT.RLock()

    def other():
        assert not lock.acquire(block=False)
        with pytest.raises(AssertionError, match="attempt to release recursive lock not owned by thread"):
            lock.release()
        return lock._semlock._is_mine()

    def main():
        with lock, lock, gs.scope() as scope:
            assert lock._semlock._is_mine()
            is_others = scope.spawn(other).result()
        assert lock.acquire(False)
        lock.release()
        return is_others

    assert gs.run(main) is False


def test_a_lock_of_the_main_virtual_thread_is_its_os_thread_s():
    lock = CONTEXT.RLock()
    lock.acquire()

    gs.run(lock.release)

    assert not lock._semlock._is_mine()


def test_an_os_thread_and_a_virtual_thread_exclude_each_other():
    lock = CONTEXT.RLock()
    held, release = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            release.wait()

    def main():
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        assert not lock.acquire(timeout=0.001)
        with gs.scope() as scope:
            waiting = scope.spawn(lock.acquire)
            settle()
            assert not waiting.done()
            release.set()
        thread.join()
        return waiting.result()

    assert gs.run(main)


def test_each_release_wakes_one_waiter():
    semaphore = CONTEXT.Semaphore(0)
    served = []

    def wait(number):
        semaphore.acquire()
        served.append(number)

    def main():
        with gs.scope() as scope:
            for number in range(10):
                scope.spawn(wait, number)
            settle()
            for count in range(1, 11):
                semaphore.release()
                while len(served) < count:
                    gs.checkpoint()
                settle()
                assert count == len(served)

    gs.run(main)

    assert list(range(10)) == sorted(served)


def test_a_cancelled_waiter_takes_nothing_and_the_others_go_on():
    """The one that asked for all of them is gone: another one asks, or nobody would see what another process does."""
    semaphore = CONTEXT.Semaphore(0)

    def main():
        with gs.scope() as scope:
            first, second = scope.spawn(semaphore.acquire), scope.spawn(semaphore.acquire)
            settle()
            first.cancel()
            settle()
            poster = CONTEXT.Process(target=release, args=(semaphore,))
            poster.start()
            assert second.result()
            poster.join()
        return first.cancelled(), semaphore.acquire(False)

    assert (True, False) == gs.run(main)


def test_a_wait_has_a_time_limit():
    semaphore = CONTEXT.Semaphore(1)

    def main():
        assert semaphore.acquire(timeout=-1)
        assert not semaphore.acquire(timeout=0)
        assert not semaphore.acquire(True, 0.001)
        with pytest.raises(TimeoutError), gs.timeout(0.001):
            semaphore.acquire(timeout=float("inf"))
        semaphore.release()
        return semaphore.acquire(block=True, timeout=None)

    assert gs.run(main)


@pytest.mark.parametrize("arguments", [{"args": (1, 2, 3)}, {"kwargs": {"wait": 1}}, {"args": (True, "soon")}])
def test_wrong_arguments_are_refused_as_ever(arguments):
    acquire = CONTEXT.Lock()._semlock.acquire
    errors = []

    def call():
        with pytest.raises(TypeError) as caught:
            acquire(*arguments.get("args", ()), **arguments.get("kwargs", {}))
        errors.append(str(caught.value))

    call()
    gs.run(call)

    assert errors[0] == errors[1]


def test_an_event_of_another_process_wakes_every_waiter_while_others_run():
    event = CONTEXT.Event()

    def main():
        with gs.scope() as scope:
            waiting = [scope.spawn(event.wait) for _ in range(3)]
            settle()
            child = CONTEXT.Process(target=event.set)
            child.start()
            results = [task.result() for task in waiting]
            child.join()
        return results

    assert [True, True, True] == gs.run(main)


def test_a_barrier_and_a_condition_among_virtual_threads():
    barrier, condition = CONTEXT.Barrier(3), CONTEXT.Condition()

    def wait():
        with condition:
            return condition.wait()

    def main():
        with gs.scope() as scope:
            numbers = [scope.spawn(barrier.wait) for _ in range(3)]
            waiting = [scope.spawn(wait) for _ in range(3)]
            settle()
            with condition:
                condition.notify_all()
        return sorted(task.result() for task in numbers), [task.result() for task in waiting]

    assert ([0, 1, 2], [True, True, True]) == gs.run(main)


def test_a_queue_between_virtual_threads_and_a_process():
    numbers, results = CONTEXT.Queue(1), CONTEXT.JoinableQueue()

    def produce():
        for number in range(20):
            numbers.put(number)

    def consume():
        for _ in range(10):
            results.put(numbers.get())

    def main():
        with gs.scope() as scope:
            scope.spawn(produce)
            for _ in range(2):
                scope.spawn(consume)
            child = CONTEXT.Process(target=put, args=(results, "of the child"))
            child.start()
            received = []
            for _ in range(21):
                received.append(results.get())
                results.task_done()
            results.join()
            child.join()
        with pytest.raises(queue.Empty):
            results.get(timeout=0.001)
        for each in (numbers, results):
            each.close()
            each.join_thread()
        return received

    assert [*range(20), "of the child"] == sorted(gs.run(main), key=lambda item: (isinstance(item, str), item))


def test_a_forked_child_waits_for_what_its_parent_waits_for():
    """Who asked in the parent does not exist in the child, which has to ask by itself."""
    program = """
        import multiprocessing, os
        import gossamer as gs

        semaphore = multiprocessing.get_context("fork").Semaphore(0)
        into, out = os.pipe()

        def main():
            with gs.scope() as scope:
                waiting = scope.spawn(semaphore.acquire)
                for _ in range(5):
                    gs.checkpoint()
                child = os.fork()
                if child == 0:
                    os.write(out, b"1")
                    semaphore.acquire()
                    os._exit(7)
                os.read(into, 1)
                semaphore.release()
                semaphore.release()
                print(waiting.result(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

        gs.run(main)
    """
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(program)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert ("True 7\n", "") == (result.stdout, result.stderr)
