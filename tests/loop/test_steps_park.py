# SPDX-License-Identifier: Apache-2.0
"""A blocking call in an asyncio task suspends that task alone."""

import asyncio
import collections.abc
import gc
import queue
import socket
import sys
import threading
import time
import types

import gossamer as gs
import pytest
from gossamer import _core
from gossamer.testing import virtual_clock
from tasks import blocking_get, in_task, settle


@in_task
async def test_a_task_that_waits_for_a_queue_lets_the_others_run():
    gate = queue.Queue()

    async def getter():
        return gate.get()

    task = asyncio.create_task(getter())
    await settle()
    gate.put("given")

    assert "given" == await task


@in_task
async def test_a_call_may_wait_at_any_depth():
    gate = queue.SimpleQueue()

    def deep(levels):
        return deep(levels - 1) if levels else next(map(blocking_get, [gate]))

    async def await_deep(levels):
        return await await_deep(levels - 1) if levels else deep(20)

    task = asyncio.create_task(await_deep(20))
    await settle()
    gate.put("given")

    assert "given" == await task


@in_task
async def test_sleeping_tasks_sleep_at_the_same_time():
    async def sleeper(order, log):
        time.sleep(0.01 * order)
        log.append(order)

    log = []
    await asyncio.gather(*(sleeper(order, log) for order in (3, 1, 2)))

    assert [1, 2, 3] == log


@in_task
async def test_a_socket_waits_for_another_task():
    left, right = socket.socketpair()

    async def reader():
        return left.recv(5)

    with left, right:
        task = asyncio.create_task(reader())
        await settle()
        right.sendall(b"hello")
        assert b"hello" == await task


@in_task
async def test_a_lock_that_a_parked_task_has_is_waited_for():
    lock = threading.Lock()
    gate = queue.SimpleQueue()
    log = []

    async def holder():
        with lock:
            log.append(gate.get())

    async def waiter():
        with lock:
            log.append("waiter")

    tasks = [asyncio.create_task(holder()), asyncio.create_task(waiter())]
    await settle()
    gate.put("holder")
    await asyncio.gather(*tasks)

    assert ["holder", "waiter"] == log


@in_task
async def test_tasks_of_one_loop_exclude_each_other_on_an_rlock():
    """Its owner is a thread, which two tasks of a loop share: the words of a parked task's locks are its own."""
    lock = threading.RLock()
    gate = queue.SimpleQueue()
    log = []

    async def holder():
        with lock, lock:
            log.append(gate.get())
            with lock:
                log.append("again")

    async def waiter():
        assert not lock._is_owned()
        with lock:
            log.append("waiter")

    tasks = [asyncio.create_task(holder()), asyncio.create_task(waiter())]
    await settle()
    gate.put("holder")
    await asyncio.gather(*tasks)

    assert ["holder", "again", "waiter"] == log


@in_task
async def test_a_condition_on_an_rlock_works_between_tasks():
    condition = threading.Condition()
    log = []

    async def waiter():
        with condition:
            condition.wait()
            log.append("notified")

    task = asyncio.create_task(waiter())
    await settle()
    with condition:
        condition.notify()
        log.append("notifying")
    await task

    assert ["notifying", "notified"] == log


@in_task
async def test_an_rlock_held_over_an_await_is_the_threads_as_on_plain_asyncio():
    lock = threading.RLock()

    async def other():
        with lock:
            return "entered"

    with lock:
        assert "entered" == await asyncio.create_task(other())
        await settle()
    assert not lock._is_owned()


@in_task
async def test_checkpoint_lets_the_other_tasks_run():
    log = []

    async def worker(name):
        for turn in range(2):
            log.append((name, turn))
            gs.checkpoint()

    await asyncio.gather(worker("a"), worker("b"))

    assert [("a", 0), ("b", 0), ("a", 1), ("b", 1)] == log


@in_task
async def test_a_woken_task_runs_though_its_loop_is_never_idle():
    """The hub of a loop that always looks with a time-out of 0 must look for timers all the same."""

    async def sleeper():
        time.sleep(0.001)

    task = asyncio.create_task(sleeper())
    while not task.done():
        await asyncio.sleep(0)


@in_task
async def test_another_os_thread_wakes_a_parked_task():
    gate = queue.SimpleQueue()

    async def getter():
        return gate.get()

    task = asyncio.create_task(getter())
    await settle()
    await asyncio.to_thread(gate.put, "from a thread")

    assert "from a thread" == await task


def test_a_virtual_thread_wakes_a_parked_task():
    gate = queue.SimpleQueue()

    async def getter():
        return gate.get()

    def main():
        with gs.scope() as scope:
            scope.spawn(lambda: gate.put("from a virtual thread"))
            return asyncio.run(getter())

    assert "from a virtual thread" == gs.run(main)


@in_task
async def test_a_blocking_scope_in_a_task_waits_for_its_virtual_threads():
    gate = queue.SimpleQueue()

    async def spawner():
        with gs.scope() as scope:
            task = scope.spawn(gate.get)
        return task.result()

    task = asyncio.create_task(spawner())
    await settle()
    gate.put("given")

    assert "given" == await task


@in_task
async def test_generators_and_async_generators_may_wait_inside():
    gate = queue.SimpleQueue()
    log = []

    def numbers():
        for number in range(3):
            gate.get()
            yield number

    async def later_numbers():
        try:
            for number in range(3):
                gate.get()
                yield number
                await asyncio.sleep(0)
        finally:
            log.append(gate.get())

    async def collect():
        return list(numbers()), [number async for number in later_numbers()]

    async def giver():
        for turn in range(7):
            gate.put(turn)
            await settle()

    results = await asyncio.gather(collect(), giver())

    assert ([0, 1, 2], [0, 1, 2]) == results[0]
    assert [6] == log


@in_task
async def test_throwing_into_an_async_generator_that_waits():
    gate = queue.SimpleQueue()

    async def numbers():
        try:
            yield 1
        except KeyError:
            yield gate.get()

    async def throw():
        generator = numbers()
        await anext(generator)
        value = await generator.athrow(KeyError)
        await generator.aclose()
        return value

    task = asyncio.create_task(throw())
    await settle()
    gate.put("given")

    assert "given" == await task


@in_task
async def test_a_generator_based_coroutine_may_wait():
    gate = queue.SimpleQueue()

    @types.coroutine
    def old_style():
        yield from asyncio.sleep(0).__await__()
        return gate.get()

    async def caller():
        return await old_style()

    task = asyncio.create_task(caller())
    await settle()
    gate.put("given")

    assert "given" == await task


class ForeignCoroutine(collections.abc.Coroutine):
    """Drives a coroutine as one of another kind (Cython's) does."""

    def __init__(self, coroutine):
        self.coroutine = coroutine

    def send(self, value):
        return self.coroutine.send(value)

    def throw(self, *args):
        return self.coroutine.throw(*args)

    def close(self):
        return self.coroutine.close()

    def __await__(self):
        return self.coroutine.__await__()


@in_task
async def test_a_task_of_a_foreign_coroutine_parks():
    gate = queue.SimpleQueue()

    async def getter():
        return gate.get()

    task = asyncio.create_task(ForeignCoroutine(getter()))
    await settle()
    gate.put("given")

    assert "given" == await task


@in_task
async def test_an_awaitable_that_wraps_a_coroutine_parks():
    gate = queue.SimpleQueue()

    async def getter():
        return gate.get()

    class Awaitable:
        def __await__(self):
            return getter().__await__()

    async def caller():
        return await Awaitable()

    task = asyncio.create_task(caller())
    await settle()
    gate.put("given")

    assert "given" == await task


@in_task
async def test_a_coroutine_driven_by_hand_in_a_task_parks_the_task():
    gate = queue.SimpleQueue()

    async def getter():
        return gate.get()

    async def driver():
        try:
            getter().send(None)
        except StopIteration as stop:
            return stop.value

    task = asyncio.create_task(driver())
    await settle()
    gate.put("given")

    assert "given" == await task


def test_asyncios_own_python_task_parks():
    gate = queue.SimpleQueue()

    async def getter():
        return gate.get()

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, coroutine, **options: asyncio.tasks._PyTask(coroutine, loop=loop, **options))
        task = loop.create_task(getter())
        await settle()
        gate.put("given")
        return await task

    assert "given" == gs.run(main)


@in_task
async def test_eager_tasks_park_in_their_first_step():
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    gate = queue.SimpleQueue()
    log = []

    async def child(name):
        log.append(name)
        return gate.get()

    async def nested(levels):
        if levels:
            return await asyncio.create_task(nested(levels - 1))
        return gate.get()

    this = asyncio.current_task()
    try:
        raise KeyError
    except KeyError:
        tasks = [asyncio.create_task(child(name)) for name in "ab"]
    assert this is asyncio.current_task()
    assert ["a", "b"] == log, "both ran up to their wait"
    deep = asyncio.create_task(nested(8))
    for number in range(3):
        gate.put(number)

    assert [0, 1, 2] == [*await asyncio.gather(*tasks), await deep]


@in_task
async def test_a_finaliser_may_wait():
    gate = queue.SimpleQueue()
    log = []

    class Waits:
        def __del__(self):
            log.append(gate.get())

    async def owner():
        things = [[Waits()] for _ in range(2)]
        del things

    task = asyncio.create_task(owner())
    await settle()
    gate.put(1)
    gate.put(2)
    await task

    assert [1, 2] == log


@in_task
async def test_a_callback_blocks_its_loop_as_on_plain_asyncio():
    loop = asyncio.get_running_loop()
    gate = queue.SimpleQueue()
    done = loop.create_future()
    log = []

    def callback():
        threading.Thread(target=gate.put, args=["from a thread"]).start()
        log.append(gate.get())
        done.set_result(None)

    loop.call_soon(callback)
    loop.call_soon(log.append, "next callback")
    await done

    assert ["from a thread", "next callback"] == log


def test_loops_in_several_threads_at_once():
    def run_loop(results):
        gate = queue.SimpleQueue()

        async def getter():
            return gate.get()

        async def main():
            tasks = [asyncio.create_task(getter()) for _ in range(10)]
            await settle()
            for number in range(10):
                gate.put(number)
            return await asyncio.gather(*tasks)

        results.append(gs.run(main))

    results = []
    threads = [threading.Thread(target=run_loop, args=[results]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 4 * [list(range(10))] == results


def test_loops_in_several_virtual_threads_at_once():
    gate = queue.SimpleQueue()

    async def getter():
        return gate.get()

    async def tasks():
        return sum(await asyncio.gather(getter(), getter()))

    def main():
        with gs.scope() as scope:
            runs = [scope.spawn(asyncio.run, tasks()) for _ in range(3)]
            gs.checkpoint()
            for _ in range(6):
                gate.put(1)
        return [run.result() for run in runs]

    assert [2, 2, 2] == gs.run(main)


@in_task
async def test_ten_thousand_tasks_park_while_garbage_is_collected():
    gate = threading.Event()

    async def waiter(number):
        cycle = [number]
        cycle.append(cycle)
        gate.wait()
        return cycle[0]

    thresholds = gc.get_threshold()
    tasks = [asyncio.create_task(waiter(number)) for number in range(10_000)]
    await settle()
    gc.set_threshold(5, 2, 2)
    gc.collect()
    gate.set()
    await settle()
    gc.set_threshold(*thresholds)

    assert list(range(10_000)) == await asyncio.gather(*tasks)


@in_task
async def test_a_loop_that_has_no_readers_is_blocked():
    """A loop that cannot be told of a wake-up: the call waits, and nothing is lost."""
    gate = queue.SimpleQueue()
    loop = asyncio.get_running_loop()
    log = []

    def refuse(*args):
        raise NotImplementedError

    async def getter():
        threading.Thread(target=gate.put, args=["given"]).start()
        log.append(gate.get())

    loop.add_reader = refuse
    try:
        other = asyncio.create_task(getter())
        loop.call_soon(log.append, "next callback")
        await other
    finally:
        del loop.add_reader

    assert ["given", "next callback"] == log


@in_task
async def test_an_import_that_waits_blocks_the_loop_as_on_plain_asyncio(tmp_path, monkeypatch):
    """Two tasks are one thread for the import system: the other would see half a module."""
    gate = sys.modules["gate_of_this_test"] = types.ModuleType("gate_of_this_test")
    gate.queue = queue.SimpleQueue()
    (tmp_path / "module_that_waits.py").write_text("import gate_of_this_test as g\ng.queue.get()\nvalue = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    async def importer():
        import module_that_waits

        return module_that_waits.value

    os_thread = await asyncio.to_thread(lambda: threading.Timer(0.01, gate.queue.put, ["go"]))
    os_thread.start()

    assert [1, 1] == await asyncio.gather(importer(), importer())


def test_tasks_of_a_loop_that_runs_while_its_module_is_imported_park(tmp_path, monkeypatch):
    """The import is below the loop, not inside of a task."""
    (tmp_path / "module_that_runs_a_loop.py").write_text("import test_gate\nresult = test_gate.run()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "test_gate", gate := types.ModuleType("test_gate"))

    async def main():
        channel = queue.SimpleQueue()

        async def getter():
            return channel.get()

        task = asyncio.create_task(getter())
        await settle()
        channel.put("given")
        return await task

    gate.run = lambda: asyncio.run(main())

    def import_it():
        import module_that_runs_a_loop

        return module_that_runs_a_loop.result

    assert "given" == gs.run(import_it)


def test_tasks_sleep_by_a_virtual_clock():
    async def sleeper(log):
        time.sleep(3600)
        log.append(1)

    async def main():
        log = []
        await asyncio.gather(*(sleeper(log) for _ in range(3)))
        return log

    def with_clock():
        with virtual_clock():
            return asyncio.run(main())

    assert [1, 1, 1] == gs.run(with_clock)


@pytest.mark.usefixtures("no_bridge")
@pytest.mark.parametrize("park", ["block", "error"])
def test_without_parking_no_step_leaves_its_thread_stack(park):
    async def main():
        before = _core.statistics()["steps"]
        await asyncio.create_task(settle())
        return _core.statistics()["steps"] - before

    assert 0 == gs.run(main, blocking=park)
