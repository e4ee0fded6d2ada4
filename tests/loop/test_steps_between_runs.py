# SPDX-License-Identifier: Apache-2.0
"""Tasks that go on over many runs of their loop on an ordinary thread, in seeded orders."""

import asyncio
import gc
import queue
import random
import time
from typing import Any

import gossamer as gs
import pytest
from gossamer import _core
from loops import new_loop

ROUNDS = 30


class Work:
    """Tasks that wait in every way; counts what they were given."""

    def __init__(self, loop: asyncio.AbstractEventLoop, random: random.Random) -> None:
        self.loop = loop
        self.random = random
        self.gate: queue.SimpleQueue = queue.SimpleQueue()
        self.sent = self.received = 0
        self.tasks: list[asyncio.Task] = []

    def begin(self) -> None:
        """Begin another task."""
        self.tasks.append(self.loop.create_task(self.work()))

    async def work(self) -> None:
        """Wait five times."""
        try:
            for _ in range(5):
                await self.wait()
        finally:
            if self.random.random() < 0.5:
                time.sleep(0.0002)

    async def wait(self) -> None:
        """Wait in some way."""
        match self.random.randrange(5):
            case 0:
                self.gate.get()
                self.received += 1
            case 1:
                await asyncio.sleep(0)
            case 2:
                gs.checkpoint()
            case 3:
                time.sleep(0.0005)
            case _:
                try:
                    async with asyncio.timeout(0.0005):
                        time.sleep(1000)
                except TimeoutError:
                    pass

    def do_something(self) -> None:
        """Do something between two runs."""
        match self.random.randrange(5):
            case 0:
                self.gate.put(None)
                self.sent += 1
            case 1:
                self.random.choice(self.tasks).cancel()
            case 2:
                self.begin()
            case 3:
                gs.run(time.sleep, 0)
            case _:
                asyncio.run(asyncio.sleep(0), loop_factory=gs.new_event_loop)


@pytest.mark.parametrize("seed", range(20))
def test_tasks_go_on_over_many_runs_and_nothing_is_lost(seed):
    chance = random.Random(seed)
    told: list[dict[str, Any]] = []

    with new_loop() as loop:
        loop.set_exception_handler(lambda _, context: told.append(context))
        work = Work(loop, chance)
        for _ in range(20):
            work.begin()
        for _ in range(ROUNDS):
            work.do_something()
            loop.run_until_complete(asyncio.sleep(chance.choice([0, 0.0003])))
        if chance.random() < 0.5:
            for task in work.tasks:
                task.cancel()
            results = loop.run_until_complete(asyncio.gather(*work.tasks, return_exceptions=True))
            assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
        if chance.random() < 0.5:
            work.tasks.clear()
            gc.collect()
        for task in work.tasks:
            task._log_destroy_pending = False

    assert not _core.is_virtual()
    assert [] == [context for context in told if "was destroyed" not in context["message"]]
    assert work.sent == work.received + work.gate.qsize()
