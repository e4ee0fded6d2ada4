# SPDX-License-Identifier: Apache-2.0
"""Steps, parks, cancellations and crossings of the bridge in seeded orders, on each kind of loop: nothing is lost,
nobody is where another is, everyone ends, and nothing is left behind.

A failure is repeated with GOSSAMER_SEED=seed; GOSSAMER_MIXED_STEPS is how much each run does.
"""

import asyncio
import contextlib
import contextvars
import gc
import os
import queue
import random
import threading
import time

import gossamer as gs
import pytest
from gossamer import _core, asyncify, await_, syncify

try:
    import uvloop
except ImportError:
    uvloop = None

TASKS_AT_ONCE = 100
DEEPEST = 3
ACTIONS = int(os.environ.get("GOSSAMER_MIXED_STEPS", "2000"))
SEEDS = [int(os.environ["GOSSAMER_SEED"])] if "GOSSAMER_SEED" in os.environ else range(3 if ACTIONS < 10_000 else 1)
VARIABLE = contextvars.ContextVar("VARIABLE")


class Place:
    """Where a piece of code runs, and what must still hold where it goes on."""

    def __init__(self):
        self.value = VARIABLE.get(None)
        self.ident = threading.get_ident()
        self.loop = asyncio._get_running_loop()
        self.task = None if self.loop is None else asyncio.current_task()

    def check(self):
        assert self.value == VARIABLE.get(None)
        assert self.ident == threading.get_ident()
        assert self.loop is asyncio._get_running_loop()
        assert self.task is (None if self.loop is None else asyncio.current_task())


class Mixture:
    """What the tasks of one run share, and count."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.left = ACTIONS
        self.items = queue.SimpleQueue()
        self.locks = [threading.Lock(), threading.RLock()]
        self.inside = [0, 0]
        self.put = self.got = 0
        self.begun = self.ended = 0
        self.tasks = []
        self.plain_actions = [
            self.exclude_plainly,
            self.sleep,
            self.put_item,
            self.get_item,
            self.await_something,
            self.await_something,
            self.iterate_plainly,
            self.manage_plainly,
            self.run_apart,
            self.spawn_thread,
        ]
        self.async_actions = [
            self.exclude,
            self.wait,
            self.spawn_task,
            self.time_out,
            self.time_out_plainly,
            self.cancel_another,
            self.call_plainly,
            self.call_plainly,
            self.iterate,
            self.manage,
            self.just_block,
        ]

    async def run(self):
        loop = asyncio.get_running_loop()
        if self.random.random() < 0.5 and isinstance(loop, asyncio.BaseEventLoop):  # uvloop refuses the factory
            loop.set_task_factory(asyncio.eager_task_factory)
        results = []
        number = 0
        while self.left > 0:
            while len(self.tasks) < TASKS_AT_ONCE and self.left > 0:
                self.tasks.append(loop.create_task(self.task(number)))
                number += 1
            done, _ = await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
            self.tasks = [task for task in self.tasks if task not in done]
            results += [None if task.cancelled() else task.exception() for task in done]
        done = await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks = []
        return [error for error in (*results, *done) if not isinstance(error, asyncio.CancelledError | None)]

    async def task(self, number):
        VARIABLE.set(number)
        place = Place()
        try:
            for _ in range(self.random.randrange(1, 8)):
                await self.act(0)
        finally:
            if self.random.random() < 0.3:
                gs.checkpoint()
            place.check()

    def begin(self):
        self.left -= 1
        self.begun += 1
        return Place()

    async def act(self, depth):
        """Do one thing at random, in a coroutine."""
        place = self.begin()
        try:
            await self.random.choice(self.async_actions)(depth + 1)
        finally:
            self.ended += 1
            place.check()

    def act_plainly(self, depth):
        """Do one thing at random, in a plain function."""
        place = self.begin()
        try:
            self.random.choice(self.plain_actions)(depth + 1)
        finally:
            self.ended += 1
            place.check()

    async def go_deeper(self, depth):
        if depth < DEEPEST:
            await self.act(depth)
        else:
            await asyncio.sleep(0)

    def go_deeper_plainly(self, depth):
        if depth < DEEPEST:
            self.act_plainly(depth)
        else:
            gs.checkpoint()

    # --- In coroutines ---

    async def exclude(self, depth):
        with self.locks[0]:
            self.enter(0)
            try:
                gs.checkpoint()
            finally:
                self.inside[0] -= 1

    async def wait(self, depth):
        if self.random.random() < 0.5:
            await asyncio.sleep(self.random.random() * 0.001)
        else:
            contextvars.copy_context().run(time.sleep, 0)
        await asyncio.sleep(0)

    async def spawn_task(self, depth):
        children = [asyncio.create_task(self.go_deeper(depth)) for _ in range(2)]
        try:
            await asyncio.gather(*children, return_exceptions=True)
        finally:
            for child in children:
                child.cancel()

    async def time_out(self, depth):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.random.random() * 0.001):
                await self.go_deeper(depth)

    async def time_out_plainly(self, depth):
        with contextlib.suppress(TimeoutError), gs.timeout(self.random.random() * 0.001):
            await self.go_deeper(depth)

    async def cancel_another(self, depth):
        if self.tasks:
            self.random.choice(self.tasks).cancel()
        await asyncio.sleep(0)

    async def call_plainly(self, depth):
        await asyncify(self.go_deeper_plainly)(depth)

    async def just_block(self, depth):
        self.go_deeper_plainly(depth)

    async def iterate(self, depth):
        numbers = []
        async with contextlib.aclosing(asyncify(self.plain_numbers(depth))) as generator:
            async for number in generator:
                numbers.append(number)
                if self.random.random() < 0.2:
                    break
        assert list(range(len(numbers))) == numbers

    def plain_numbers(self, depth):
        place = Place()
        try:
            for number in range(3):
                self.go_deeper_plainly(depth)
                yield number
        finally:
            place.check()

    async def manage(self, depth):
        async with asyncify(self.manager(depth)) as place:
            place.check()
            await self.go_deeper(depth)

    @contextlib.contextmanager
    def manager(self, depth):
        self.go_deeper_plainly(depth)
        place = Place()
        try:
            yield place
        finally:
            place.check()

    # --- In plain functions ---

    def enter(self, index):
        self.inside[index] += 1
        assert 1 == self.inside[index]

    def exclude_plainly(self, depth):
        with self.locks[1], self.locks[1]:
            self.enter(1)
            try:
                gs.checkpoint()
            finally:
                self.inside[1] -= 1

    def sleep(self, depth):
        time.sleep(self.random.random() * 0.001)

    def put_item(self, depth):
        self.items.put(1)
        self.put += 1

    def get_item(self, depth):
        try:
            self.items.get(timeout=self.random.random() * 0.002)
        except queue.Empty:
            return
        self.got += 1

    def await_something(self, depth):
        await_(self.go_deeper(depth))

    def iterate_plainly(self, depth):
        numbers = []
        with contextlib.closing(syncify(self.numbers)(depth)) as generator:
            for number in generator:
                numbers.append(number)
                if self.random.random() < 0.2:
                    break
        assert list(range(len(numbers))) == numbers

    async def numbers(self, depth):
        place = Place()
        try:
            for number in range(3):
                await self.go_deeper(depth)
                yield number
        finally:
            place.check()

    def manage_plainly(self, depth):
        with syncify(self.async_manager(depth)):
            self.go_deeper_plainly(depth)

    @contextlib.asynccontextmanager
    async def async_manager(self, depth):
        await self.go_deeper(depth)
        place = Place()
        try:
            yield place
        finally:
            await asyncio.sleep(0)
            place.check()

    def run_apart(self, depth):
        if self.random.random() < 0.2:  # a loop and a virtual thread each
            outer = asyncio._get_running_loop()
            asyncio.run(self.apart(outer, VARIABLE.get(None), depth))

    async def apart(self, outer, value, depth):
        assert outer is not asyncio.get_running_loop()
        assert value == VARIABLE.get(None)
        VARIABLE.set("apart")
        await self.go_deeper(depth)

    def spawn_thread(self, depth):
        if _core.is_virtual():
            with gs.scope() as scope:
                scope.spawn(self.in_thread, VARIABLE.get(None), depth)

    def in_thread(self, value, depth):
        assert value == VARIABLE.get(None)
        assert asyncio._get_running_loop() is None
        VARIABLE.set("thread")
        await_(self.go_deeper(depth))
        self.go_deeper_plainly(depth)


def open_descriptors():
    return [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.lexists(entry.path)]


def on_our_loop(main):
    return gs.run(main)


def on_a_stock_loop(main):
    with gs.blocking_in_tasks("park"):
        return asyncio.run(main())


def on_a_stock_loop_inside(main):
    return gs.run(lambda: asyncio.run(main()))


def on_uvloop(main):
    with gs.blocking_in_tasks("park"):
        return asyncio.run(main(), loop_factory=uvloop.new_event_loop)


def on_uvloop_inside(main):
    return gs.run(lambda: asyncio.run(main(), loop_factory=uvloop.new_event_loop))


LOOPS = [on_our_loop, on_a_stock_loop, on_a_stock_loop_inside]
if uvloop is not None:
    uvloop.run(asyncio.sleep(0))  # what libuv opens once and for all is no leak
    LOOPS += [on_uvloop, on_uvloop_inside]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("enter", LOOPS)
def test_a_mixture_keeps_every_promise(enter, seed):
    mixture = Mixture(seed)

    async def main():
        errors = await mixture.run()
        gc.collect()
        await asyncio.sleep(0)
        statistics = _core.statistics()
        return errors, statistics["parked_steps"], statistics["steps_in_use"], len(asyncio.all_tasks())

    descriptors = open_descriptors()
    errors, parked, steps, tasks = enter(main)
    gc.collect()

    assert [] == errors
    assert 0 == parked
    assert 1 == steps, "the one that counted"
    assert 1 == tasks
    assert mixture.begun == mixture.ended >= ACTIONS
    assert [0, 0] == mixture.inside
    assert all(lock.acquire(blocking=False) for lock in mixture.locks)
    assert mixture.put == mixture.got + mixture.items.qsize()
    assert descriptors == open_descriptors()
    assert not _core.is_virtual()
