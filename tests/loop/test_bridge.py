# SPDX-License-Identifier: Apache-2.0
"""`await_`, `asyncify` and `syncify`: plain and async code call each other, wherever the call stands."""

import asyncio
import contextlib
import contextvars
import functools
import gc
import os
import queue
import signal
import sysconfig
import tempfile
import threading
import time
import traceback

import gossamer as gs
import pytest
from gossamer import asyncify, await_, syncify

VARIABLE = contextvars.ContextVar("VARIABLE", default=0)


async def add(left, right):
    await asyncio.sleep(0)
    VARIABLE.set(VARIABLE.get() + 1)
    return left + right


def add_plainly(left, right):
    return await_(add(left, right))


class Everywhere:
    """Awaits in each place where no `await` may stand."""

    died = queue.SimpleQueue()

    def __init__(self):
        self.number = await_(add(1, 2))

    def __getattr__(self, name):
        return await_(add(name, "!"))

    def __iter__(self):
        for number in range(3):
            yield await_(add(number, number))

    def __eq__(self, other):
        return await_(add(self.number, 0)) == other

    def __hash__(self):
        return add_plainly(self.number, 0)

    def __lt__(self, other):
        return add_plainly(self.number, 0) < add_plainly(other.number, 0)

    def __enter__(self):
        return add_plainly("en", "tered")

    def __exit__(self, kind, error, trace):
        return add_plainly(kind is ValueError, 0)

    def __format__(self, specification):
        return add_plainly("as ", specification)

    def __del__(self):
        self.died.put(add_plainly("dead ", self.number))

    @property
    def double(self):
        return add_plainly(self.number, self.number)


class Described:
    def __set_name__(self, owner, name):
        self.name = add_plainly(name, "!")

    def __get__(self, instance, owner):
        return add_plainly(self.name, self.name)


def use_everywhere():
    one, other = Everywhere(), Everywhere()
    with one as entered:
        raise ValueError
    described = type("Owner", (), {"attribute": Described()})().attribute
    by_key = sorted([2, 1], key=lambda number: add_plainly(number, 0))
    facts = [one.number, one.name, list(one), one == 3, one.double, {one: "found"}.get(one), sorted([one, other]) == []]
    facts += [entered, f"{one:text}", described, by_key, list(map(add_plainly, "ab", "cd")), VARIABLE.get()]
    one.number = "by its references"
    other.number, other.itself = "in a cycle", other
    del one
    gc.collect()
    facts.append(Everywhere.died.get())
    del other
    gc.collect()
    facts.append(Everywhere.died.get())
    return facts


EVERYWHERE = [3, "name!", [0, 2, 4], True, 6, "found", False, "entered", "as text", "attribute!attribute!", [1, 2]]
EVERYWHERE += [["ac", "bd"], 21, "dead by its references", "dead in a cycle"]


def in_virtual_thread(function):
    return gs.run(lambda: contextvars.copy_context().run(function))


def in_task_of_our_loop(function):
    async def main():
        return function()

    return gs.run(main)


def in_task_of_a_stock_loop(function):
    async def main():
        return await asyncify(function)()

    return asyncio.run(main())


def in_task_of_a_stock_loop_inside(function):
    async def main():
        return function()

    return gs.run(lambda: asyncio.run(main()))


def on_ordinary_thread(function):
    return contextvars.copy_context().run(function)


def in_task_of_uvloop(function):
    uvloop = pytest.importorskip("uvloop")

    async def main():
        return await asyncify(function)()

    return asyncio.run(main(), loop_factory=uvloop.new_event_loop)


def in_task_of_uvloop_inside(function):
    uvloop = pytest.importorskip("uvloop")

    async def main():
        return function()

    return gs.run(lambda: asyncio.run(main(), loop_factory=uvloop.new_event_loop))


def on_another_os_thread(function):
    outcomes = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: outcomes.put(function()), daemon=True)
    thread.start()
    thread.join()
    return outcomes.get(block=False)


async def call_in_callback(function):
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(lambda: future.set_result(function()))
    return await future


def in_callback(function):
    return gs.run(call_in_callback, function)


def in_callback_of_a_stock_loop(function):
    return asyncio.run(call_in_callback(function))


def in_callback_of_uvloop(function):
    uvloop = pytest.importorskip("uvloop")
    return asyncio.run(call_in_callback(function), loop_factory=uvloop.new_event_loop)


def in_generator(function):
    def generator():
        yield function()

    async def main():
        return next(generator())

    return gs.run(main)


def in_coroutine_driven_by_hand(function):
    async def drive():
        return function()

    def main():
        with pytest.raises(StopIteration) as caught:
            drive().send(None)
        return caught.value.value

    return gs.run(main)


PLACES = [
    in_virtual_thread,
    in_task_of_our_loop,
    in_task_of_a_stock_loop,
    in_task_of_a_stock_loop_inside,
    in_task_of_uvloop,
    in_task_of_uvloop_inside,
    on_ordinary_thread,
    on_another_os_thread,
    in_callback,
    in_callback_of_a_stock_loop,
    in_callback_of_uvloop,
    in_generator,
    in_coroutine_driven_by_hand,
]


@pytest.mark.parametrize("place", PLACES)
def test_a_plain_function_awaits_wherever_it_is_called(place):
    assert EVERYWHERE == place(use_everywhere)


@pytest.mark.parametrize("place", PLACES)
def test_what_the_awaitable_raises_is_raised_with_both_sides_in_its_traceback(place):
    async def fail():
        await asyncio.sleep(0)
        raise KeyError("here")

    def call():
        try:
            await_(fail())
        except KeyError as error:
            return [frame.name for frame in traceback.extract_tb(error.__traceback__)]

    names = place(call)

    assert "call" == names[0]
    assert "fail" == names[-1]


@pytest.mark.parametrize("place", PLACES)
def test_what_cannot_be_awaited_is_a_type_error(place):
    def call():
        with pytest.raises(TypeError, match="can't be used in 'await' expression"):
            await_(7)
        return True

    assert place(call)


@pytest.mark.parametrize("place", PLACES)
def test_asyncio_run_runs_apart_wherever_it_is_called(place):
    async def tasks():
        return len(asyncio.all_tasks())

    def call():
        return asyncio.run(tasks()), asyncio.run(add(1, 2))

    assert (1, 3) == place(call)


@pytest.mark.parametrize("place", [place for place in PLACES if "callback" not in place.__name__])
def test_a_nesting_of_two_hundred(place):
    def plain(depth):
        return depth and 1 + await_(coroutine(depth - 1))

    async def coroutine(depth):
        return depth and 1 + await asyncify(plain)(depth - 1)

    # Free-threaded 3.13 specialises nothing, so a crossing takes twice as much of the C stack.
    depth = 100 if sysconfig.get_config_var("Py_GIL_DISABLED") else 200

    assert depth == place(functools.partial(plain, depth))


def test_other_tasks_run_while_one_awaits_in_a_plain_function():
    async def main():
        gate = asyncio.Event()

        def wait():
            await_(gate.wait())
            return "opened"

        async def open_gate():
            gate.set()

        return await asyncio.gather(asyncify(wait)(), open_gate())

    assert ["opened", None] == gs.run(main)
    assert ["opened", None] == asyncio.run(main())


def run_on_uvloop(main):
    uvloop = pytest.importorskip("uvloop")
    return asyncio.run(main(), loop_factory=uvloop.new_event_loop)


@pytest.mark.parametrize("run", [gs.run, lambda main: asyncio.run(main()), run_on_uvloop])
def test_a_cancellation_crosses_into_the_awaitable_and_back(run):
    seen, began = [], None

    async def wait():
        began.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError as error:
            seen.append(("coroutine", error.args))
            await asyncio.sleep(0)
            raise

    def plain():
        try:
            await_(wait())
        except asyncio.CancelledError as error:
            seen.append(("plain", error.args))
            raise

    async def main():
        nonlocal began
        began = asyncio.Event()
        task = asyncio.create_task(asyncify(plain)())
        await began.wait()
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)

    assert [("coroutine", ("enough",)), ("plain", ("enough",))] == seen


def test_a_cancelled_virtual_thread_cancels_what_it_awaits():
    seen = []

    async def wait():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    def main():
        with gs.scope() as scope:
            task = scope.spawn(lambda: await_(wait()))
            for _ in range(20):
                gs.checkpoint()
            task.cancel()
        return task.cancelled()

    assert gs.run(main)
    assert ["cleaned up"] == seen


def test_a_run_apart_cleans_up_however_often_it_is_cancelled():
    """The second cancellation ended the closing of its loop, and left that loop's tasks behind."""
    began, cleaning, may_end, seen = threading.Event(), threading.Event(), threading.Event(), []

    async def child():
        try:
            await asyncio.sleep(3600)
        finally:
            cleaning.set()
            await asyncio.to_thread(may_end.wait)
            seen.append("cleaned up")

    async def apart():
        children = [asyncio.create_task(child()) for _ in range(2)]
        await asyncio.sleep(0)
        began.set()
        await asyncio.wait(children)

    async def main():
        task = asyncio.create_task(asyncify(lambda: asyncio.run(apart()))())
        await asyncify(began.wait)()
        task.cancel()
        await asyncify(cleaning.wait)()
        task.cancel()
        for _ in range(10):
            gs.checkpoint()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    gs.run(main)

    assert ["cleaned up", "cleaned up"] == seen


@pytest.mark.parametrize("place", [in_virtual_thread, on_ordinary_thread])
@pytest.mark.parametrize("is_in_block", [False, True])
def test_an_interrupt_cancels_what_is_awaited_and_is_raised(place, is_in_block):
    seen = []

    @contextlib.asynccontextmanager
    async def manager():
        yield

    async def wait():
        signal.raise_signal(signal.SIGINT)
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    def main():
        with pytest.raises(KeyboardInterrupt), syncify(manager()) if is_in_block else contextlib.nullcontext():
            await_(wait())

    place(main)

    assert ["cleaned up"] == seen


def test_a_cancelled_virtual_thread_in_a_callback_waits_for_the_end_of_what_it_awaits():
    seen = []

    async def wait():
        seen.append("began")
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    def main():
        loop = asyncio.new_event_loop()

        def call():
            with pytest.raises(asyncio.CancelledError):
                await_(wait())
            seen.append("cancelled")
            loop.stop()

        loop.call_soon(call)
        with gs.scope() as scope:
            task = scope.spawn(loop.run_forever)
            while not seen:
                gs.checkpoint()
            task.cancel()
        loop.close()

    gs.run(main)

    assert ["began", "cleaned up", "cancelled"] == seen


def test_a_future_of_another_loop_is_waited_for():
    def main():
        made, result = queue.Queue(), queue.Queue()

        async def serve():
            future = asyncio.get_running_loop().create_future()
            made.put(future)
            asyncio.get_running_loop().call_later(0.001, future.set_result, "result")
            await future
            result.get()

        with gs.scope() as scope:
            scope.spawn(serve)
            value = await_(made.get())
            result.put(None)
        return value

    assert "result" == gs.run(main)


def test_a_future_of_the_running_loop_is_refused_in_its_callback():
    async def main():
        loop = asyncio.get_running_loop()
        future, answer = loop.create_future(), loop.create_future()

        def call():
            with pytest.raises(RuntimeError, match="belongs to the running loop"):
                await_(future)
            answer.set_result(True)

        loop.call_soon(call)
        return await answer

    assert gs.run(main)


def test_virtual_threads_of_a_hub_share_a_loop():
    async def loop():
        return asyncio.get_running_loop()

    def main():
        with gs.scope() as scope:
            tasks = [scope.spawn(lambda: await_(loop())) for _ in range(3)]
        return len({id(task.result()) for task in tasks})

    assert 1 == gs.run(main)


def test_the_other_colour_of_iterators_and_context_managers():
    class AsyncManager:
        async def __aenter__(self):
            await asyncio.sleep(0)
            return "entered"

        async def __aexit__(self, kind, error, trace):
            await asyncio.sleep(0)
            return kind is ValueError

    async def count():
        for number in range(3):
            await asyncio.sleep(0)
            yield number

    class Bound:
        async def method(self, number):
            await asyncio.sleep(0)
            return number

        def plain(self, number):
            return await_(self.method(number))

    async def main():
        with syncify(AsyncManager()) as value:
            assert "entered" == value
        with syncify(AsyncManager()):
            raise ValueError
        assert [0, 1, 2] == list(syncify(count)())
        assert [0, 1, 2] == list(syncify(count()))
        assert [1, 2] == [number async for number in asyncify(iter([1, 2]))]
        lock = threading.Lock()
        async with asyncify(lock):
            assert lock.locked()
        assert not lock.locked()
        return await asyncify(Bound().plain)(1), syncify(Bound().method)(2)

    assert (1, 2) == gs.run(main)
    with pytest.raises(TypeError, match="needs a function"):
        asyncify(7)
    with pytest.raises(TypeError, match="needs a coroutine function"):
        syncify(7)


class Methods:
    @staticmethod
    async def double_static(number):
        return 2 * number

    @classmethod
    async def double_class(cls, number):
        return 2 * number

    async def __call__(self, number):
        return 2 * number

    @contextlib.asynccontextmanager
    async def managed(self, number):
        yield 2 * number

    async def numbers(self, number):
        yield 2 * number

    @syncify
    async def turned(self, number):
        return 2 * number

    @asyncify
    def turned_twice(self, number):
        return self.turned(number)


ASYNC_DOUBLES = [
    Methods.double_static,
    Methods().double_static,
    Methods.__dict__["double_static"],
    Methods.double_class,
    Methods().double_class,
    Methods(),
    functools.partial(Methods.double_class),
    functools.partial(Methods()),
    asyncify(Methods().turned),
    asyncify(functools.partial(Methods().turned)),
    Methods().turned_twice,
]


@pytest.mark.parametrize("double", ASYNC_DOUBLES, ids=range(len(ASYNC_DOUBLES)))
@pytest.mark.parametrize("place", [in_virtual_thread, in_task_of_our_loop, on_ordinary_thread])
def test_the_other_colour_of_each_kind_of_callable(place, double):
    assert 4 == place(lambda: syncify(double)(2))


@pytest.mark.parametrize("place", [in_virtual_thread, in_task_of_our_loop, on_ordinary_thread])
def test_a_function_that_returns_a_manager_or_an_iterator_returns_its_plain_form(place):
    def use():
        with syncify(Methods().managed)(2) as number:
            pass
        return number, list(syncify(Methods().numbers)(2)), list(syncify(lambda: Methods().numbers(3))())

    assert (4, [4], [6]) == place(use)


class Cursor:
    """A context manager and iterator, as cursors, files and responses are."""

    def __init__(self):
        self.log, self.left = [], [2, 1]

    async def __aenter__(self):
        self.log.append("entered")
        return self

    async def __aexit__(self, *error):
        self.log.append("left")

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop()


@pytest.mark.parametrize("place", [in_virtual_thread, in_task_of_our_loop, on_ordinary_thread])
def test_what_is_a_manager_and_an_iterator_is_both_in_the_other_colour(place):
    def use():
        with syncify(Cursor()) as cursor:
            numbers = list(syncify(cursor))
        plain = syncify(Cursor())
        with plain:
            numbers += plain
        return numbers, cursor.log

    async def use_async(file):
        async with asyncify(file):
            return [line async for line in asyncify(file)]

    assert ([1, 2, 1, 2], ["entered", "left"]) == place(use)
    with tempfile.TemporaryFile("w+") as file:
        file.write("one\ntwo\n")
        file.seek(0)
        assert ["one\n", "two\n"] == place(lambda: await_(use_async(file)))
        assert file.closed


@pytest.mark.parametrize("place", [in_virtual_thread, in_task_of_our_loop, on_ordinary_thread])
def test_the_other_colour_of_what_can_only_be_iterated_over(place):
    class Numbers:
        async def __aiter__(self):
            yield 1
            yield 2

    async def use():
        return [number async for number in asyncify([1, 2])]

    assert [1, 2] == place(lambda: list(syncify(Numbers())))
    assert [1, 2] == place(lambda: await_(use()))


def os_threads():
    return set(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("place", PLACES)
def test_no_os_thread_is_started_for_a_crossing(place):
    """Not one of threading's, nor of ours: those that there are after the first crossing stay alone."""

    def cross():
        add_plainly(1, 2)
        before = os_threads()
        use_everywhere()
        asyncio.run(add(1, 2))
        return os_threads() - before

    assert set() == place(cross)


def test_no_os_thread_is_started_for_many_crossings_at_once():
    async def main():
        await asyncify(add_plainly)(1, 2)
        before = os_threads()
        results = await asyncio.gather(*(asyncify(add_plainly)(number, 1) for number in range(50)))
        return results == list(range(1, 51)), os_threads() - before

    assert (True, set()) == gs.run(main)


@pytest.mark.parametrize("place", [in_virtual_thread, in_callback])
def test_what_ends_a_program_ends_the_caller_and_no_loop_that_others_use(place):
    """It ended the loop of the hub, or never arrived when the awaitable raised it at once."""

    async def exit_at_once():
        raise SystemExit(3)

    async def interrupt_later():
        await asyncio.sleep(0)
        raise KeyboardInterrupt

    def call():
        with pytest.raises(SystemExit, match="3"):
            await_(exit_at_once())
        with pytest.raises(KeyboardInterrupt):
            await_(interrupt_later())
        return add_plainly(1, 2)

    assert 3 == place(call)


def test_another_await_of_the_hub_goes_on_when_one_exits():
    async def wait(event):
        await event.wait()
        return "waited"

    async def exit_later():
        await asyncio.sleep(0)
        raise SystemExit

    def main():
        event = asyncio.Event()
        with gs.scope() as scope:
            waiting = scope.spawn(lambda: await_(wait(event)))
            gs.checkpoint()
            with pytest.raises(SystemExit):
                await_(exit_later())
            event.set()
        return waiting.result()

    assert "waited" == gs.run(main)


def test_a_cancellation_of_a_virtual_thread_is_raised_once():
    """It was raised again where the code that cleans up waited next."""
    seen = []

    def work():
        try:
            await_(asyncio.sleep(3600))
        except asyncio.CancelledError:
            time.sleep(0)
            await_(asyncio.sleep(0))
            seen.append("cleaned up")
            raise

    def main():
        with gs.scope() as scope:
            task = scope.spawn(work)
            for _ in range(10):
                gs.checkpoint()
            task.cancel()
        return task.cancelled()

    assert gs.run(main)
    assert ["cleaned up"] == seen
