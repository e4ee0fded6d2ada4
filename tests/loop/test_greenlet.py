# SPDX-License-Identifier: Apache-2.0
"""Greenlets on fibers: what greenlet's documentation says, beside virtual threads and inside of asyncio tasks."""

import asyncio
import contextvars
import gc
import os
import subprocess
import sys
import threading
import time
import weakref

import gossamer as gs
import pytest


def inside(function):
    """Run a test in Gossamer, with the module as its argument."""

    def test():
        def main():
            import greenlet

            return function(greenlet)

        gs.run(main)

    test.__name__ = function.__name__
    return test


@inside
def test_two_greenlets_take_turns(greenlet):
    """The first example of the documentation."""
    log = []

    def first():
        log.append(12)
        second_one.switch()
        log.append(34)

    def second():
        log.append(56)
        first_one.switch()
        log.append(78)

    first_one, second_one = greenlet.greenlet(first), greenlet.greenlet(second)
    first_one.switch()

    assert [12, 56, 34] == log
    assert (True, False) == (first_one.dead, second_one.dead)


@inside
def test_values_go_both_ways(greenlet):
    def add(left, right):
        number = greenlet.getcurrent().parent.switch(left + right)
        return number * 2

    one = greenlet.greenlet(add)

    assert 3 == one.switch(1, right=2)
    assert 42 == one.switch(21)
    assert ((1, 2), {"name": 3}) == greenlet.greenlet(lambda *args, **names: (args, names)).switch(1, 2, name=3)


@inside
def test_an_exception_reaches_the_parent_and_a_thrown_one_the_greenlet(greenlet):
    def wait():
        try:
            greenlet.getcurrent().parent.switch()
        except KeyError as error:
            return error

    one = greenlet.greenlet(wait)
    one.switch()
    error = KeyError("thrown")

    assert error is one.throw(error)
    with pytest.raises(ZeroDivisionError):
        greenlet.greenlet(lambda: 1 / 0).switch()


@inside
def test_a_greenlet_that_nobody_wants_ends_by_greenlet_exit(greenlet):
    ended = []

    def wait():
        try:
            greenlet.getcurrent().parent.switch()
        except greenlet.GreenletExit:
            ended.append(True)
            raise

    one = greenlet.greenlet(wait)
    one.switch()
    del one

    assert [True] == ended


@inside
def test_each_greenlet_has_a_context_of_its_own(greenlet):
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(1)

    def change():
        before = variable.get()
        variable.set(2)
        greenlet.getcurrent().parent.switch(before)
        return variable.get()

    fresh, given = greenlet.greenlet(change), greenlet.greenlet(change)
    given.gr_context = contextvars.copy_context()

    assert [0, 1] == [fresh.switch(), given.switch()]
    assert [2, 2] == [fresh.switch(), given.switch()]
    assert 1 == variable.get()


@inside
def test_a_wait_in_a_greenlet_parks_its_virtual_thread(greenlet):
    order = []

    def work(number):
        def sleep():
            order.append(("sleeps", number))
            gs.checkpoint()
            return greenlet.getcurrent()

        one = greenlet.greenlet(sleep)
        assert one is one.switch()
        order.append(("slept", number))

    with gs.scope() as scope:
        for number in range(2):
            scope.spawn(work, number)

    assert [("sleeps", 0), ("sleeps", 1), ("slept", 0), ("slept", 1)] == order


@inside
def test_recursion_has_the_same_limit_in_a_greenlet(greenlet):
    def depth(level=0):
        try:
            return depth(level + 1)
        except RecursionError:
            return level

    assert depth() == pytest.approx(greenlet.greenlet(depth).switch(), abs=60)


@inside
def test_a_greenlet_of_another_thread_is_refused(greenlet):
    one = greenlet.greenlet(lambda: None)

    def switch():
        with pytest.raises(greenlet.error, match="different thread"):
            one.switch()

    with gs.scope() as scope:
        scope.spawn(switch)


def test_greenlets_work_on_an_ordinary_thread():
    results = []

    def switch():
        import greenlet

        one = greenlet.greenlet(lambda number: greenlet.getcurrent().parent.switch(number) + 1)
        results.append((one.switch(5), one.switch(7)))

    def main():
        thread = threading.Thread(target=switch)
        thread.start()
        thread.join()
        switch()

    gs.run(main)
    switch()

    assert [(5, 8)] * 3 == results


def await_only(greenlet, awaitable):
    """As SQLAlchemy's: leaves the greenlet, and the task awaits for it."""
    return greenlet.getcurrent().parent.switch(awaitable)


async def greenlet_spawn(greenlet, function, *args):
    """As SQLAlchemy's: runs ``function`` in a greenlet, and awaits what it hands out."""
    one = greenlet.greenlet(function, greenlet.getcurrent())
    one.gr_context = greenlet.getcurrent().gr_context
    result = one.switch(*args)
    while not one.dead:
        try:
            value = await result
        except BaseException:
            result = one.throw(*sys.exc_info())
        else:
            result = one.switch(value)
    return result


@inside
def test_greenlets_of_many_tasks_await_and_block(greenlet):
    """In each task a greenlet awaits, then blocks, then awaits again, and none comes back on another's stack."""

    def work(number):
        await_only(greenlet, asyncio.sleep(0))
        time.sleep(0.001 * (number % 3))
        inner = await_only(greenlet, greenlet_spawn(greenlet, nested, number))
        return number, inner

    def nested(number):
        time.sleep(0.001 * (number % 2))
        return await_only(greenlet, asyncio.sleep(0, number))

    async def main():
        return await asyncio.gather(*(greenlet_spawn(greenlet, work, number) for number in range(100)))

    assert [(number, number) for number in range(100)] == asyncio.run(main())


@inside
def test_a_cancellation_reaches_a_greenlet_in_a_task(greenlet):
    seen = []

    def work():
        try:
            time.sleep(3600)
        except asyncio.CancelledError:
            seen.append("sleep")
        try:
            await_only(greenlet, asyncio.sleep(3600))
        except asyncio.CancelledError:
            seen.append("await")
        return "ended"

    async def main():
        task = asyncio.create_task(greenlet_spawn(greenlet, work))
        for _ in range(2):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
        return await task

    assert "ended" == asyncio.run(main())
    assert ["sleep", "await"] == seen


def test_the_module_is_ours_only_inside_and_where_the_extension_was_not_loaded_first():
    program = """
import sys
from gossamer import _run
import gossamer as gs
def main():
    import greenlet
    return greenlet.__spec__.origin
print(gs.run(main).endswith("_greenlet.py"))
_run.uninstall()
print(any("gossamer" in type(finder).__module__ for finder in sys.meta_path))
"""

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert ["True", "False"] == result.stdout.split()


@inside
def test_the_main_greenlet_of_a_thread_that_has_ended_may_be_in_a_cycle(greenlet):
    """It refers to its greenlets, each of which keeps what its thread has, and so the main one."""
    main_greenlets = []

    def thread():
        main = greenlet.getcurrent()
        main_greenlets.append(weakref.ref(main))
        main.finished = greenlet.greenlet(lambda: None)
        main.finished.switch()

    started = threading.Thread(target=thread)
    started.start()
    started.join()
    gc.collect()

    assert main_greenlets[0]() is None


def leave_unfinished(greenlet, count, keep):
    """Returns what starts greenlets in a thread that ends without finishing them, and a list of their exits."""
    exits = []

    def wait():
        try:
            greenlet.getcurrent().parent.switch()
        except greenlet.GreenletExit:
            exits.append(True)

    def thread():
        for _ in range(count):
            one = greenlet.greenlet(wait)
            one.switch()
            keep.append(one)

    return thread, exits


def in_virtual_thread(function):
    with gs.scope() as scope:
        scope.spawn(function)


def in_os_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("place", [in_virtual_thread, in_os_thread])
def test_greenlets_that_outlive_their_thread_give_their_stacks_back(place):
    """Nobody can run them any more, so they end without GreenletExit, as the extension's do."""

    def main():
        import greenlet

        def once():
            keep = []
            thread, exits = leave_unfinished(greenlet, 500, keep)
            place(thread)
            states = {(bool(one), one.dead) for one in keep}
            with pytest.raises(greenlet.error, match="happens to have exited"):
                keep[0].switch()
            keep.clear()
            return states, exits

        once()
        before = resident_bytes()
        facts = [once() for _ in range(5)]
        assert 5 * [({(True, False)}, [])] == facts
        assert resident_bytes() - before < 8 * 1024 * 1024, "twice a page each, 2,500 are 20 MiB"

    gs.run(main)


@inside
def test_a_greenlet_that_outlives_its_thread_and_whose_frame_was_seen_keeps_it(greenlet):
    keep = []
    thread, exits = leave_unfinished(greenlet, 1, keep)
    in_os_thread(thread)
    frame = keep[0].gr_frame

    keep.clear()
    gc.collect()

    assert ("wait", True) == (frame.f_code.co_name, "exits" in frame.f_locals)
    assert [] == exits


@inside
def test_a_greenlet_that_dies_elsewhere_ends_in_its_own_thread_while_that_goes_on(greenlet):
    keep, seen = [], []
    started, dropped = threading.Event(), threading.Event()

    def thread():
        def wait():
            try:
                greenlet.getcurrent().parent.switch()
            except greenlet.GreenletExit:
                seen.append(threading.get_ident())

        one = greenlet.greenlet(wait)
        one.switch()
        keep.append(one)
        del one
        started.set()
        dropped.wait()
        greenlet.getcurrent()
        seen.append(threading.get_ident())

    worker = threading.Thread(target=thread)
    worker.start()
    started.wait()
    keep.clear()
    dropped.set()
    worker.join()

    assert 2 == len(seen)
    assert 1 == len(set(seen))
