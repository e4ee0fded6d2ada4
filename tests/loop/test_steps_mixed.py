# SPDX-License-Identifier: Apache-2.0
"""Steps, parks and cancellations in seeded orders: nothing is lost, nobody is where another is, everyone ends."""

import asyncio
import contextvars
import os
import queue
import random
import threading
import time

import gossamer as gs
import pytest
from gossamer import _core

TASKS = 600
SEEDS = [int(os.environ["GOSSAMER_SEED"])] if "GOSSAMER_SEED" in os.environ else range(8)
VARIABLE = contextvars.ContextVar("VARIABLE")


class Mixture:
    """What the tasks of one run share, and count."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.items = queue.SimpleQueue()
        self.locks = [threading.Lock(), threading.RLock()]
        self.inside = [0, 0]
        self.put = self.got = 0

    async def run(self):
        if self.random.random() < 0.5:
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        tasks = []
        for number in range(TASKS):
            tasks.append(asyncio.create_task(self.task(number)))
            if self.random.random() < 0.2:
                self.random.choice(tasks).cancel()
            if self.random.random() < 0.3:
                await asyncio.sleep(0)
        return await asyncio.gather(*tasks, return_exceptions=True)

    async def task(self, number):
        VARIABLE.set(number)
        actions = (self.exclude, self.exclude_again, self.wait, self.put_item, self.get_item, self.time_out, self.spawn)
        try:
            for _ in range(self.random.randrange(1, 8)):
                await self.random.choice(actions)()
                assert number == VARIABLE.get()
        finally:
            if self.random.random() < 0.3:
                gs.checkpoint()
            assert number == VARIABLE.get()

    async def exclude(self, index=0):
        with self.locks[index]:
            self.inside[index] += 1
            try:
                assert 1 == self.inside[index]
                gs.checkpoint()
            finally:
                self.inside[index] -= 1

    async def exclude_again(self):
        with self.locks[1]:
            await_nothing = self.exclude(1)
            try:
                await_nothing.send(None)
            except StopIteration:
                pass

    async def wait(self):
        if self.random.random() < 0.5:
            time.sleep(self.random.random() * 0.001)
        else:
            contextvars.copy_context().run(time.sleep, 0)
        await asyncio.sleep(0)

    async def put_item(self):
        self.items.put(1)
        self.put += 1

    async def get_item(self):
        try:
            self.items.get(timeout=self.random.random() * 0.002)
        except queue.Empty:
            return
        self.got += 1

    async def time_out(self):
        try:
            async with asyncio.timeout(self.random.random() * 0.001):
                time.sleep(0.0005)
                await asyncio.sleep(0.0005)
        except TimeoutError:
            pass

    async def spawn(self):
        children = [asyncio.create_task(self.wait()) for _ in range(2)]
        await asyncio.gather(*children, return_exceptions=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mixture_keeps_every_promise(seed):
    """A failure is repeated with GOSSAMER_SEED=seed."""
    mixture = Mixture(seed)

    def main():
        results = asyncio.run(mixture.run())
        return results, _core.statistics()["parked_steps"]

    results, parked = gs.run(main)

    errors = [result for result in results if isinstance(result, BaseException)]
    assert [] == [error for error in errors if not isinstance(error, asyncio.CancelledError)]
    assert 0 == parked
    assert [0, 0] == mixture.inside
    assert all(lock.acquire(blocking=False) for lock in mixture.locks)
    assert mixture.put == mixture.got + mixture.items.qsize()
