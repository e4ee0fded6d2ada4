# SPDX-License-Identifier: Apache-2.0
"""Tasks of a loop that waits in C code park too: the loop drives the hub."""

import asyncio
import queue
import socket
import threading
import time

import gossamer as gs
import pytest
from gossamer import _core
from tasks import settle

uvloop = pytest.importorskip("uvloop")


def run(main, *args):
    """Runs a coroutine function on uvloop on an ordinary thread."""
    with gs.blocking_in_tasks("park"):
        loop = uvloop.new_event_loop()
        try:
            return loop.run_until_complete(main(*args))
        finally:
            loop.close()


def test_tasks_wait_for_each_other():
    async def main():
        gate = queue.SimpleQueue()

        async def getter():
            return gate.get()

        task = asyncio.create_task(getter())
        await settle()
        gate.put("given")
        return await task

    assert "given" == run(main)


def test_sleeping_tasks_are_woken_while_their_loop_waits():
    async def main():
        async def sleeper(order, log):
            time.sleep(0.001 * order)
            log.append(order)

        log = []
        await asyncio.gather(*(sleeper(order, log) for order in (30, 10, 20)))
        return log

    assert [10, 20, 30] == run(main)


def test_a_socket_that_becomes_readable_wakes_a_task():
    async def main():
        left, right = socket.socketpair()

        async def reader():
            return left.recv(5)

        with left, right:
            task = asyncio.create_task(reader())
            await settle()
            asyncio.get_running_loop().call_later(0.001, right.sendall, b"hello")
            return await task

    assert b"hello" == run(main)


def test_another_os_thread_wakes_a_task():
    async def main():
        gate = queue.SimpleQueue()

        async def getter():
            return gate.get()

        task = asyncio.create_task(getter())
        await settle()
        threading.Timer(0.001, gate.put, ["given"]).start()
        return await task

    assert "given" == run(main)


def test_virtual_threads_run_while_the_loop_waits():
    async def main():
        gate, back = queue.SimpleQueue(), queue.SimpleQueue()

        async def getter():
            return back.get()

        with gs.scope() as scope:
            scope.spawn(lambda: back.put(gate.get()))
            task = asyncio.create_task(getter())
            await settle()
            asyncio.get_running_loop().call_soon(gate.put, "through a virtual thread")
            return await task

    assert "through a virtual thread" == run(main)


def test_a_cancelled_task_ends():
    async def main():
        async def getter():
            queue.SimpleQueue().get()

        task = asyncio.create_task(getter())
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)


def test_blocking_is_an_error_where_it_is_asked_for():
    async def main():
        with pytest.raises(RuntimeError, match=r"time.sleep would block"):
            time.sleep(10)

    with gs.blocking_in_tasks("error"):
        loop = uvloop.new_event_loop()
        loop.run_until_complete(main())
        loop.close()


def run_inside(main):
    """Runs a coroutine function on uvloop in the main virtual thread."""
    return gs.run(lambda: asyncio.run(main(), loop_factory=uvloop.new_event_loop))


@pytest.mark.parametrize("run", [run, run_inside])
def test_a_virtual_thread_that_gives_way_is_continued(run):
    """The loop slept while one was ready: only those that were unparked made it look."""

    async def main():
        def count():
            for _ in range(200):
                gs.checkpoint()
            return "counted"

        with gs.scope() as scope:
            task = scope.spawn(count)
        return task.result()

    assert "counted" == run(main)


@pytest.mark.parametrize("run", [run, run_inside])
def test_a_deadline_that_a_virtual_thread_set_while_a_callback_blocked_comes(run):
    """The loop's timer stands in for the hub's, and nobody had looked whether there was a new one."""

    async def main():
        gate = threading.Event()

        def sleep():
            gate.wait()
            time.sleep(0.01)
            return "slept"

        def block():
            gate.set()
            time.sleep(0.001)

        asyncio.get_running_loop().call_soon(block)
        with gs.scope() as scope:
            task = scope.spawn(sleep)
        return task.result()

    assert "slept" == run(main)


@pytest.mark.parametrize("run", [run, run_inside])
def test_virtual_threads_run_where_no_task_has_parked_yet(run):
    async def main():
        return await _core.spawn(lambda: time.sleep(0.001) or "ran")

    assert "ran" == run(main)
