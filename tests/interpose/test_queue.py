# SPDX-License-Identifier: Apache-2.0
"""Queues shared by virtual threads, OS threads and a signal handler."""

from __future__ import annotations

import queue
import random
import signal

import gossamer as gs
import pytest
from handoff import HANDOFFS, SEED, maybe_yield, run_mixed

KINDS = [queue.Queue, queue.LifoQueue, queue.PriorityQueue, queue.SimpleQueue]
made_before_gossamer = [kind() for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_is_put_is_got_once(kind):
    channel = kind()
    producers, consumers, each = 4, 4, HANDOFFS // 16
    got: list[list[int]] = [[] for _ in range(consumers)]

    def produce(number: int) -> None:
        source = random.Random(SEED + number)
        for index in range(each):
            channel.put(number * each + index)
            maybe_yield(source)

    def consume(number: int) -> None:
        source = random.Random(SEED - number)
        for _ in range(each):
            got[number].append(channel.get())
            maybe_yield(source)

    bodies = [lambda number=number: produce(number) for number in range(producers)]
    bodies += [lambda number=number: consume(number) for number in range(consumers)]
    run_mixed(bodies)

    assert list(range(producers * each)) == sorted(item for items in got for item in items)


@pytest.mark.parametrize("kind", [queue.Queue, queue.LifoQueue])
def test_a_bounded_queue_holds_its_putters_back(kind):
    channel = kind(2)
    longest = [0]

    def produce() -> None:
        for number in range(HANDOFFS // 16):
            channel.put(number)
            longest[0] = max(longest[0], channel.qsize())

    def consume() -> None:
        for _ in range(HANDOFFS // 16):
            channel.get()
            channel.task_done()

    run_mixed([produce, consume, consume, produce])

    assert longest[0] <= 2
    channel.join()


@pytest.mark.parametrize("channel", made_before_gossamer, ids=[kind.__name__ for kind in KINDS])
def test_a_queue_made_before_gossamer_started_wakes_its_getter(channel):
    def main() -> str:
        with gs.scope() as scope:
            task = scope.spawn(channel.get)
            gs.checkpoint()
            channel.put("item")
            return task.result()

    assert "item" == gs.run(main)


def test_a_signal_handler_puts_into_a_simple_queue():
    channel: queue.SimpleQueue[int] = queue.SimpleQueue()

    def consume() -> list[int]:
        got = []
        for number in range(HANDOFFS // 40):
            signal.raise_signal(signal.SIGUSR1)
            got.append(channel.get())
        return got

    numbers = iter(range(HANDOFFS))

    def main() -> list[int]:
        with gs.scope() as scope:
            task = scope.spawn(consume)
        return task.result()

    previous = signal.signal(signal.SIGUSR1, lambda *_: channel.put(next(numbers)))
    try:
        assert list(range(HANDOFFS // 40)) == gs.run(main)
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_a_get_that_times_out_raises_empty_and_takes_nothing():
    channel: queue.SimpleQueue[int] = queue.SimpleQueue()

    def main() -> int:
        with pytest.raises(queue.Empty):
            channel.get(timeout=0.001)
        channel.put(1)
        return channel.get()

    assert 1 == gs.run(main)


def test_a_cancelled_get_leaves_the_item_to_the_next():
    channel: queue.SimpleQueue[int] = queue.SimpleQueue()

    def main() -> int:
        with gs.scope() as scope:
            cancelled = scope.spawn(channel.get)
            waiter = scope.spawn(channel.get)
            gs.checkpoint()
            cancelled.cancel()
            gs.checkpoint()
            channel.put(1)
            return waiter.result()

    assert 1 == gs.run(main)
