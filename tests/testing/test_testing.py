# SPDX-License-Identifier: Apache-2.0
"""The virtual clock jumps when all wait, and the seeded scheduler finds orders that the usual one does not run."""

import queue
import socket
import threading
import time
from time import monotonic as bound_early

import gossamer as gs
import gossamer.testing
import pytest

HOUR = 3600.0


def test_sleeps_of_hours_take_no_time_and_all_clocks_agree():
    def main():
        with gossamer.testing.virtual_clock() as clock:
            before = time.time(), bound_early(), time.perf_counter(), time.time_ns(), time.monotonic_ns()
            time.sleep(10 * HOUR)
            after = time.time(), bound_early(), time.perf_counter(), time.time_ns(), time.monotonic_ns()

            assert 10 * HOUR == clock.elapsed
        differences = [late - early for early, late in zip(before, after, strict=True)]
        assert [10 * HOUR] * 3 == pytest.approx(differences[:3])
        assert [36 * 10**12] * 2 == differences[3:]

    start = time.monotonic()
    gs.run(main)

    assert time.monotonic() - start < HOUR


def test_time_stands_still_while_somebody_runs():
    def main():
        with gossamer.testing.virtual_clock() as clock:
            for _ in range(1000):
                gs.checkpoint()
            assert 0 == clock.elapsed

    gs.run(main)


def test_sleepers_wake_in_the_order_of_their_deadlines():
    order = []

    def sleep(hours):
        time.sleep(hours * HOUR)
        order.append((hours, time.monotonic()))

    def main():
        with gossamer.testing.virtual_clock(), gs.scope() as scope:
            start = time.monotonic()
            for hours in (3, 1, 2):
                scope.spawn(sleep, hours)
        return start

    start = gs.run(main)

    assert [1, 2, 3] == [hours for hours, _ in order]
    assert [1 * HOUR, 2 * HOUR, 3 * HOUR] == pytest.approx([woken - start for _, woken in order])


def lock_for_ever():
    lock = threading.Lock()
    lock.acquire()
    assert not lock.acquire(timeout=HOUR)


def read_with_time_limit():
    left, right = socket.socketpair()
    with left, right:
        left.settimeout(HOUR)
        with pytest.raises(TimeoutError):
            left.recv(1)


def wait_with_timeout():
    with pytest.raises(TimeoutError), gs.timeout(HOUR):
        queue.SimpleQueue().get()


def wait_for_task():
    with gs.scope() as scope:
        task = scope.spawn(time.sleep, 10 * HOUR)
        with pytest.raises(TimeoutError):
            task.result(HOUR)
        scope.cancel()


WAITS = {
    "lock": lock_for_ever,
    "event": lambda: threading.Event().wait(HOUR),
    "queue": lambda: pytest.raises(queue.Empty, queue.Queue().get, timeout=HOUR),
    "simple queue": lambda: pytest.raises(queue.Empty, queue.SimpleQueue().get, timeout=HOUR),
    "socket": read_with_time_limit,
    "timeout": wait_with_timeout,
    "task": wait_for_task,
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
def test_time_limit_passes_when_all_wait(wait):
    def main():
        with gossamer.testing.virtual_clock() as clock:
            wait()
            assert HOUR == pytest.approx(clock.elapsed)

    gs.run(main)


def test_data_on_a_socket_comes_before_the_clock_jumps():
    def main():
        left, right = socket.socketpair()
        with left, right, gossamer.testing.virtual_clock() as clock, gs.scope() as scope:
            scope.spawn(time.sleep, HOUR)
            reader = scope.spawn(left.recv, 1)
            gossamer.testing.settle()
            right.send(b"x")
            reader.result()
            assert 0 == clock.elapsed

    gs.run(main)


def test_advance_runs_what_is_due_and_no_more():
    done = []

    def work(hours):
        time.sleep(hours * HOUR)
        done.append(hours)

    def main():
        with gossamer.testing.virtual_clock() as clock, gs.scope() as scope:
            scope.spawn(work, 1)
            scope.spawn(work, 3)
            gossamer.testing.settle()
            clock.advance(2 * HOUR)
            assert [1] == done
            with pytest.raises(ValueError):
                clock.advance(-1)

    gs.run(main)

    assert [1, 3] == done


def test_clocks_are_the_originals_again_after_the_block():
    def main():
        with gossamer.testing.virtual_clock():
            time.sleep(10 * HOUR)
            virtual = time.monotonic()
        assert time.monotonic() < virtual - HOUR

    gs.run(main)


def test_other_os_threads_have_real_time():
    answers = queue.SimpleQueue()
    real = time.monotonic()

    def main():
        with gossamer.testing.virtual_clock():
            time.sleep(10 * HOUR)
            threading.Thread(target=lambda: answers.put(time.monotonic())).start()
            return answers.get()

    assert gs.run(main) < real + HOUR


def test_virtual_clock_is_for_virtual_threads_and_not_nested():
    with pytest.raises(RuntimeError), gossamer.testing.virtual_clock():
        pass

    def main():
        with gossamer.testing.virtual_clock(), pytest.raises(RuntimeError), gossamer.testing.virtual_clock():
            pass

    gs.run(main)


def run_order(seed):
    order = []

    def main():
        with gs.scope() as scope:
            for number in range(5):
                scope.spawn(order.append, number)

    gossamer.testing.explore(main, seeds=[seed])
    return tuple(order)


def test_seeds_give_many_orders_and_each_always_the_same():
    orders = {run_order(seed) for seed in range(50)}

    assert len(orders) > 30
    assert run_order(7) == run_order(7)


def lost_update():
    """Reads, lets others run, writes: right in the usual order of three threads only."""
    box = [0]
    ready = []

    def first():
        box[0] += 1
        ready.append(True)

    def second():
        if not ready:
            raise AssertionError("second before first")

    with gs.scope() as scope:
        scope.spawn(first)
        scope.spawn(second)


def test_explore_finds_an_order_that_fails_and_tells_its_seed(capsys):
    gs.run(lost_update)

    with pytest.raises(ExceptionGroup) as caught:
        gossamer.testing.explore(lost_update)

    assert "seed" in caught.value.__notes__[0]
    assert "failed with seed" in capsys.readouterr().err


def test_seed_of_the_environment_runs_alone(monkeypatch):
    runs = []
    monkeypatch.setenv("GOSSAMER_SEED", "3")

    gossamer.testing.explore(lambda: runs.append(True))

    assert [True] == runs


def test_queue_hands_over_everything_in_every_order():
    """Our own: no order of three producers and three consumers loses an item or leaves one of them waiting."""

    def main():
        channel = queue.Queue(maxsize=2)
        got = []

        def produce():
            for number in range(5):
                channel.put(number)

        def consume():
            for _ in range(5):
                got.append(channel.get())

        with gs.scope() as scope:
            for _ in range(3):
                scope.spawn(produce)
                scope.spawn(consume)
        assert sorted(list(range(5)) * 3) == sorted(got)

    gossamer.testing.explore(main, seeds=50)


def test_scope_ends_its_tasks_in_every_order():
    """Our own: a failure, a cancellation and a time limit at once."""

    def main():
        ended = []

        def work():
            try:
                gs.checkpoint()
                time.sleep(HOUR)
            finally:
                ended.append(True)

        def fail():
            gs.checkpoint()
            raise KeyError

        with gossamer.testing.virtual_clock(), pytest.raises(BaseExceptionGroup), gs.scope(timeout=1) as scope:
            began = [scope.spawn(work) for _ in range(3)]
            scope.spawn(fail)
            gs.checkpoint()
            began[0].cancel()
        assert all(task.done() for task in began)

    gossamer.testing.explore(main, seeds=50)
