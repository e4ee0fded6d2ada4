# SPDX-License-Identifier: Apache-2.0
"""What a task sees around a park: contexts, exceptions, frames, recursion, tracing; and what others see of it."""

import asyncio
import collections
import contextvars
import gc
import inspect
import io
import logging
import queue
import sys
import threading
import weakref

import gossamer as gs
import pytest
from gossamer import _core
from tasks import blocking_get, in_task, settle

VARIABLE = contextvars.ContextVar("VARIABLE", default="unset")


class Value:
    """Something that can be referred to weakly."""


@in_task
async def test_the_context_of_the_step_that_parks_first_is_not_kept():
    """The loop gets a reader then, whose handle has a context for as long as the loop lives."""
    gate = queue.SimpleQueue()
    known = []

    async def worker():
        VARIABLE.set(value := Value())
        known.append(weakref.ref(value))
        gate.get()

    task = asyncio.create_task(worker())
    await settle()
    gate.put(None)
    await task
    del task
    await settle()  # the call that goes on here knows the task
    gc.collect()

    assert known[0]() is None


@in_task
async def test_a_context_variable_is_the_tasks_own_around_a_park():
    gate = queue.SimpleQueue()

    async def worker(name):
        VARIABLE.set(name)
        gate.get()
        return VARIABLE.get()

    tasks = [asyncio.create_task(worker(name)) for name in "ab"]
    await settle()
    gate.put(None)
    gate.put(None)

    assert ["a", "b"] == await asyncio.gather(*tasks)
    assert "unset" == VARIABLE.get()


@in_task
async def test_a_park_inside_context_run_keeps_that_context():
    gate = queue.SimpleQueue()

    async def worker(name):
        def in_other_context(levels):
            VARIABLE.set((name, levels))
            gate.get()
            if levels:
                contextvars.copy_context().run(in_other_context, levels - 1)
            gate.get()
            return VARIABLE.get()

        VARIABLE.set(name)
        inner = contextvars.copy_context().run(in_other_context, 2)
        await asyncio.sleep(0)
        return inner, VARIABLE.get()

    contexts = [contextvars.copy_context() for _ in range(3)]
    tasks = [asyncio.create_task(worker(number), context=context) for number, context in enumerate(contexts)]
    await settle()
    for _ in range(18):
        gate.put(None)
        await settle()

    assert [((number, 2), number) for number in range(3)] == await asyncio.gather(*tasks)
    assert [0, 1, 2] == [context.run(VARIABLE.get) for context in contexts], "no context is left entered"


@pytest.mark.skipif(not hasattr(sys, "getrefcount"), reason="needs reference counts")
@in_task
async def test_parks_inside_context_run_keep_no_reference():
    outer, inner = contextvars.copy_context(), contextvars.copy_context()

    async def worker():
        for _ in range(20):
            inner.run(gs.checkpoint)

    before = sys.getrefcount(outer), sys.getrefcount(inner)
    task = asyncio.create_task(worker(), context=outer)
    await task
    del task
    await settle()

    assert before == (sys.getrefcount(outer), sys.getrefcount(inner))


@in_task
async def test_a_task_killed_inside_context_run_gives_its_killer_its_context_back():
    gate = queue.SimpleQueue()

    async def worker():
        contextvars.copy_context().run(gate.get)

    coroutine = worker()
    task = asyncio.create_task(coroutine)
    await settle()
    VARIABLE.set("killer")
    coroutine.close()

    assert "killer" == VARIABLE.get()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@in_task
async def test_the_handled_exception_is_the_tasks_own():
    gate = queue.SimpleQueue()

    async def handling():
        try:
            raise KeyError
        except KeyError as error:
            gate.get()
            assert sys.exception() is error
        return sys.exception()

    async def not_handling():
        before = sys.exception()
        gate.get()
        return before, sys.exception()

    tasks = [asyncio.create_task(each()) for each in (handling, not_handling, handling)]
    await settle()
    for _ in tasks:
        gate.put(None)

    assert [None, (None, None), None] == await asyncio.gather(*tasks)


@in_task
async def test_an_exception_of_a_waiting_call_has_its_whole_traceback():
    gate = queue.SimpleQueue()

    def fail():
        raise ValueError(blocking_get(gate))

    async def inner():
        fail()

    async def outer():
        try:
            await inner()
        except ValueError as error:
            gate.get()
            raise KeyError from error

    task = asyncio.create_task(outer())
    await settle()
    gate.put("first")
    gate.put("second")
    with pytest.raises(KeyError) as caught:
        await task

    cause = caught.value.__cause__
    names = []
    traceback = cause.__traceback__
    while traceback:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert ["outer", "inner", "fail"] == names


@in_task
async def test_identity_is_the_loops_thread():
    gate = queue.SimpleQueue()
    local = threading.local()
    local.value = "of the loop"

    async def worker():
        before = threading.get_ident(), threading.current_thread(), local.value, asyncio.current_task()
        gate.get()
        return before, (threading.get_ident(), threading.current_thread(), local.value, asyncio.current_task())

    task = asyncio.create_task(worker())
    await settle()
    gate.put(None)
    before, after = await task

    assert before == after == (threading.get_ident(), threading.current_thread(), "of the loop", task)


@in_task
async def test_the_stack_seen_inside_is_that_of_a_plain_call():
    gate = queue.SimpleQueue()

    def names():
        return [frame.function for frame in inspect.stack()]

    async def worker():
        before = names()
        gate.get()
        return before, names()

    task = asyncio.create_task(worker())
    await settle()
    gate.put(None)
    before, after = await task

    assert before == after
    assert "run_forever" in before


@in_task
async def test_what_others_see_of_a_parked_task():
    gate = queue.SimpleQueue()

    async def worker():
        return gate.get()

    coroutine = worker()
    task = asyncio.create_task(coroutine)
    await settle()
    stack = io.StringIO()
    task.print_stack(file=stack)
    line = inspect.getsourcelines(worker)[1] + 1

    assert task.get_coro() is coroutine
    assert [("worker", line)] == [(frame.f_code.co_name, frame.f_lineno) for frame in task.get_stack()]
    assert coroutine.cr_running
    assert coroutine.cr_await is None
    assert f"line {line}" in stack.getvalue()
    assert "wait_for=<Future pending" in repr(task)
    with pytest.raises(RuntimeError):
        task.get_stack()[0].clear()
    gate.put("given")
    assert "given" == await task


@in_task
async def test_dump_shows_a_parked_task_with_what_it_waits_for():
    gate = queue.SimpleQueue()

    async def worker():
        return blocking_get(gate)

    task = asyncio.create_task(worker(), name="the getter")
    await settle()
    shown = io.StringIO()
    gs.dump(file=shown)
    gate.put(None)
    await task

    assert "asyncio task ('the getter', test_dump" in shown.getvalue()
    assert "parked in SimpleQueue.get" in shown.getvalue()
    assert "return gate.get()" in shown.getvalue()


def test_dump_tells_of_tasks_that_are_parked_on_another_carrier():
    gate, parked = queue.SimpleQueue(), threading.Event()

    async def get():
        asyncio.get_running_loop().call_soon(parked.set)
        return gate.get()

    carrier = threading.Thread(target=gs.run, args=(get,))
    carrier.start()
    parked.wait()
    shown = io.StringIO()
    gs.dump(file=shown)
    gate.put("given")
    carrier.join()

    assert "test_dump_tells_of_tasks_that_are_parked_on_another_carrier.<locals>.get): parked in" in shown.getvalue()
    assert "return gate.get()" in shown.getvalue()


@in_task
async def test_frames_of_a_parked_task_are_kept_and_linked():
    gate = queue.SimpleQueue()
    kept = []

    async def worker():
        def inner():
            value = "local"
            kept.append(sys._getframe())
            gate.get()
            return value

        return inner()

    task = asyncio.create_task(worker())
    await settle()
    frame = kept[0]

    assert "local" == frame.f_locals["value"]
    assert "worker" == frame.f_back.f_code.co_name
    assert frame.f_back.f_back is None, "asyncio's frames are somebody else's meanwhile"
    gate.put(None)
    assert "local" == await task


@in_task
async def test_pure_python_recurses_as_deep_as_on_plain_asyncio():
    gate = queue.SimpleQueue()

    def depth():
        count = 0

        def deeper():
            nonlocal count
            count += 1
            deeper()

        try:
            deeper()
        except RecursionError:
            return count

    async def worker():
        before = depth()
        gate.get()
        return before, depth()

    task = asyncio.create_task(worker())
    await settle()
    gate.put(None)
    before, after = await task

    _core.block_in_tasks(1)
    plain = await asyncio.create_task(asyncio.to_thread(lambda: None)) or await asyncio.create_task(as_coroutine(depth))
    _core.block_in_tasks(0)
    assert before == after == plain


async def as_coroutine(function):
    return function()


@in_task
async def test_c_recursion_in_a_task_is_an_error_not_a_crash():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    gate = queue.SimpleQueue()

    async def worker():
        gate.get()
        with pytest.raises(RecursionError):
            repr(nested)
        gate.get()
        with pytest.raises(RecursionError):
            repr(nested)

    task = asyncio.create_task(worker())
    await settle()
    gate.put(None)
    gate.put(None)
    await task


@in_task
async def test_c_recursion_is_an_error_also_where_a_coroutine_driven_by_hand_parked_its_task():
    """The task parks with two stacks; it goes on on the inner one, whose bounds are what counts."""
    nested = []
    for _ in range(100_000):
        nested = [nested]
    gate = queue.SimpleQueue()

    async def inner():
        gate.get()
        with pytest.raises(RecursionError):
            repr(nested)

    async def worker():
        with pytest.raises(StopIteration):
            inner().send(None)
        with pytest.raises(RecursionError):
            repr(nested)

    task = asyncio.create_task(worker())
    await settle()
    gate.put(None)
    await task


@in_task
async def test_a_trace_function_sees_a_task_that_parks():
    gate = queue.SimpleQueue()
    seen = collections.Counter()

    def trace(frame, event, argument):
        if frame.f_code.co_name == "worker":
            seen[event] += 1
        return trace

    async def worker():
        gate.get()
        return 1

    sys.settrace(trace)
    try:
        tasks = [asyncio.create_task(worker()) for _ in range(3)]
        await settle()
        for _ in tasks:
            gate.put(None)
        await asyncio.gather(*tasks)
    finally:
        sys.settrace(None)

    assert 3 == seen["call"]
    assert 6 == seen["line"]
    assert 3 == seen["return"]


@in_task
async def test_a_trace_function_may_wait():
    gate = queue.SimpleQueue()
    waited = []

    def trace(frame, event, argument):
        if frame.f_code.co_name == "traced" and event == "line" and not waited:
            waited.append(gate.get())
        return trace

    def traced():
        return 1

    async def worker():
        sys.settrace(trace)
        traced()
        sys.settrace(None)

    task = asyncio.create_task(worker())
    await settle()
    gate.put("waited")
    await task

    assert ["waited"] == waited


@in_task
async def test_handlers_of_logging_exclude_each_other():
    gate = queue.SimpleQueue()
    log = []

    class Waits(logging.Handler):
        def emit(self, record):
            log.append(("begin", record.getMessage()))
            gate.get()
            log.append(("end", record.getMessage()))

    logger = logging.Logger("waits")
    logger.addHandler(Waits())

    async def worker(name):
        logger.error(name)

    tasks = [asyncio.create_task(worker(name)) for name in "ab"]
    await settle()
    gate.put(None)
    gate.put(None)
    await asyncio.gather(*tasks)

    assert [("begin", "a"), ("end", "a"), ("begin", "b"), ("end", "b")] == log


@in_task
async def test_two_tasks_write_one_buffered_file(tmp_path):
    """A buffered file knows who is inside by OS thread; the parked task's call must not look like the other's own."""
    import os

    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    while True:
        try:
            os.write(write_end, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(write_end, True)
    file = open(write_end, "wb", buffering=16)

    async def writer(data):
        file.write(data)
        file.flush()

    tasks = [asyncio.create_task(writer(letter * 40)) for letter in (b"a", b"b")]
    await settle()
    assert not any(task.done() for task in tasks)
    got = b""
    while b"b" * 40 not in got or b"a" * 40 not in got:
        got += os.read(read_end, 65536)
        await settle()
    await asyncio.gather(*tasks)
    file.close()
    os.close(read_end)

    assert got.endswith((b"a" * 40 + b"b" * 40, b"b" * 40 + b"a" * 40))


@in_task
async def test_a_step_is_never_preempted_for_another_task_of_its_loop():
    """A plain virtual thread gets its turn; the loop's other tasks wait until the step ends."""
    log = []
    computing = threading.Event()
    ran = []

    async def computer():
        computing.set()
        while not ran:
            pass
        log.append("computed")

    async def other():
        log.append("other")

    with gs.scope() as scope:
        scope.spawn(lambda: (computing.wait(), ran.append(1)))
        await asyncio.gather(computer(), other())

    assert ["computed", "other"] == log
