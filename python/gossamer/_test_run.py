# SPDX-License-Identifier: Apache-2.0
"""What the pytest plugin and `gossamer.testing.TestCase` share: a hub and a loop to test in, and a watch for what a
test leaves behind.

An `Environment` makes the calling OS thread a carrier, so that tests and fixtures run in its main virtual thread, with
one asyncio loop, made when first needed. Coroutines run on the loop in that virtual thread; while plain code of a test
runs, another virtual thread keeps the loop going. A `Watch` compares what is alive before and after.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from gossamer import _core, _hub_loops, _origins, _run, testing
from gossamer._contexts import adopt_variables, lent_context
from gossamer._dump import ThreadSnapshot, snapshot, wait_of_task
from gossamer._errors import DeadlockError
from gossamer._event_loop import new_event_loop

GRACE = 5.0  # seconds that virtual threads which a test left behind get to clean up


class Environment:
    """The hub and the loop that tests run in; entered by the calling OS thread."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self._keeper: _core.Task[None] | None = None  # runs the loop beside plain code
        self._is_running = False  # the code of a test
        self._own_descriptors: dict[int, str] = {}
        self.losses: list[str] = []  # what nobody took, for people
        self.origins = _origins.Origins()

    def enter(self) -> None:
        """Make the calling OS thread a carrier."""
        _run.enter(virtual_threads=False)
        _core.track_coroutine_origins(1)
        _hub_loops.lenders[_core.hub_ident()] = self._lend_loop

    def leave(self) -> None:
        """Close the loop, end what is left, and make the OS thread an ordinary one."""
        hook = threading.excepthook

        def report_all_but_cancellations(args: threading.ExceptHookArgs) -> None:
            if not issubclass(args.exc_type, asyncio.CancelledError):  # we asked for them
                hook(args)

        threading.excepthook = report_all_but_cancellations
        del _hub_loops.lenders[_core.hub_ident()]
        try:
            self.close_loop()
        finally:
            _run.leave(GRACE)
            threading.excepthook = hook

    def close_loop(self) -> None:
        """Cancel the loop's tasks and close it, if there is one."""
        self._stop_keeper()
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run a part of a test in the block: its threads are virtual, and the loop, if there is one, runs beside it."""
        _core.make_threads_virtual(True)
        self._is_running = True
        self._start_keeper()
        try:
            yield
        finally:
            self._is_running = False
            self._stop_keeper()
            _core.make_threads_virtual(False)

    def _start_keeper(self) -> None:
        if self._runner is not None and self._keeper is None:
            self._keeper = _core.spawn(self._runner.get_loop().run_forever)

    def _stop_keeper(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            loop = self.runner().get_loop()
            loop.call_soon_threadsafe(loop.stop)
            keeper.result()

    def _lend_loop(self) -> asyncio.AbstractEventLoop:
        """For a plain function that awaits: the loop of the fixtures, running."""
        loop = self.runner().get_loop()
        self._start_keeper()
        return loop

    def own_threads(self) -> set[int | None]:
        """The identities of the virtual threads that are the loop's: the one that runs it, those of its executor."""
        own: set[int | None] = set() if self._keeper is None else {self._keeper.ident}
        if self._runner is not None:
            executor: Any = self._runner.get_loop()._default_executor  # type: ignore[attr-defined]
            own |= {thread.ident for thread in getattr(executor, "_threads", ())}
        return own

    def own_descriptors(self) -> dict[int, str]:
        """The descriptors that the loop has opened for itself."""
        return self._own_descriptors

    def tasks(self) -> set[asyncio.Task[Any]]:
        """The loop's tasks that have not ended."""
        return set() if self._runner is None else asyncio.all_tasks(self._runner.get_loop())

    def run_coroutine[T](self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run ``coroutine`` on the loop; the context variables that it set are set afterwards.

        In a task of the loop (an ``async def`` test that asks for a fixture), that task awaits it.
        """
        __tracebackhide__ = True
        runner = self.runner()
        if asyncio._get_running_loop() is runner.get_loop():
            from gossamer._bridge import await_  # not before it is needed: it changes `asyncio.run`

            return await_(coroutine)
        self._stop_keeper()
        before = self.tasks()
        try:
            with lent_context() as context:
                return runner.run(coroutine, context=context)
        except DeadlockError as error:
            self._cancel(self.tasks() - before)  # they are what waits for ever, the coroutine's own among them
            raise error.with_traceback(None) from None  # of the loop's alone: the message has the lines
        except BaseException as error:
            for task in self.tasks() - before:
                if task.get_coro() is coroutine:  # it was interrupted: by a time-out, say
                    error.add_note(f"{task.get_name()} waits: {wait_of_task(task)}")
                    task.cancel()
            raise
        finally:
            if self._is_running:
                self._start_keeper()

    def _cancel(self, tasks: set[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            self.runner().run(_wait_for_all(tasks))

    def run_generator(self, generator: AsyncGenerator[Any]) -> Generator[Any]:
        """Run an async generator that yields once, in one task from its beginning to its end."""
        __tracebackhide__ = True
        context = contextvars.copy_context()
        may_end = asyncio.Event()

        async def drive(value: asyncio.Future[Any]) -> None:
            __tracebackhide__ = True
            try:
                async for item in generator:
                    if value.done():
                        raise RuntimeError("an async generator fixture must yield exactly once")
                    value.set_result(item)
                    await may_end.wait()
            except BaseException as error:
                if value.done():
                    raise
                value.set_exception(error)
                return
            if not value.done():
                value.set_exception(RuntimeError("an async generator fixture must yield"))

        async def begin() -> tuple[asyncio.Task[None], Any]:
            __tracebackhide__ = True
            loop = asyncio.get_running_loop()
            value = loop.create_future()
            return loop.create_task(drive(value), context=context), await value

        async def end() -> None:
            __tracebackhide__ = True
            may_end.set()
            await task

        task, item = self.run_coroutine(begin())
        adopt_variables(context)
        yield item
        for variable, setting in contextvars.copy_context().items():
            context.run(variable.set, setting)  # what the test has set
        self.run_coroutine(end())
        adopt_variables(context)

    def runner(self) -> asyncio.Runner:
        """What runs coroutines on the loop; makes both on the first call."""
        if self._runner is None:
            before = descriptors()
            self._runner = asyncio.Runner(loop_factory=new_event_loop)
            self._runner.run(_park())  # the loop opens a descriptor for the first park of a task
            self._own_descriptors = _descriptors_beside(before)
            self._runner.get_loop().set_exception_handler(self._note_loop_error)
        return self._runner

    def _note_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        text = context.get("message", "an error in the loop")
        if error is not None:
            text += ":\n" + "".join(traceback.format_exception(error)).rstrip()
        self.losses.append(text)

    @contextmanager
    def test(self, *, clock: str, seed: int | None, may_leave: Collection[str] = ()) -> Iterator[Watch]:
        """Run one test in the block: on the clock that it wants, in an order of the seed's if it has one."""
        with ExitStack() as stack:
            stack.enter_context(self._noting_losses())
            if clock == "virtual":
                stack.enter_context(testing.virtual_clock())
            stack.enter_context(_in_order_of(seed))
            self.origins.forget()
            _origins.note_in(self.origins)
            stack.callback(_origins.note_in, None)
            yield Watch(self, may_leave)

    @contextmanager
    def _noting_losses(self) -> Iterator[None]:
        """Take what nobody else takes: exceptions of threads and coroutines that are never awaited."""
        hook, warn = threading.excepthook, warnings._warn_unawaited_coroutine  # type: ignore[attr-defined]
        threading.excepthook = self._note_thread_error
        # A partial of a C function, as the interpreter's own is: a Python frame more would change the line blamed.
        warnings._warn_unawaited_coroutine = functools.partial(self._note_unawaited, warn)  # type: ignore[attr-defined]
        try:
            yield
        finally:
            threading.excepthook = hook
            warnings._warn_unawaited_coroutine = warn  # type: ignore[attr-defined]

    def _note_thread_error(self, args: threading.ExceptHookArgs) -> None:
        if args.exc_type is SystemExit:
            return
        name = args.thread.name if args.thread is not None else "a thread"
        lines = traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback)
        self.losses.append(f"an exception that nobody took, in {name}:\n" + "".join(lines).rstrip())

    def _note_unawaited(self, warn: Callable[[Any], None], coroutine: Any) -> None:
        with warnings.catch_warnings(record=True) as shown:
            try:
                warn(coroutine)
            except RuntimeWarning as error:  # the program's filters turn it into one
                self.losses.append(str(error))
        self.losses += [str(warning.message) for warning in shown]


class Watch:
    """Knows what was alive when it was made, and tells what is new since."""

    def __init__(self, environment: Environment, may_leave: Collection[str] = ()) -> None:
        self._environment = environment
        self._may_leave = may_leave
        self._collections = _collections()
        self._descriptors: dict[int, str] = {}
        self._threads: set[int] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.accept_what_is_there()

    def accept_what_is_there(self) -> None:
        """What is alive now is nobody's fault."""
        self._descriptors |= descriptors()
        self._threads |= {thread.ident for thread in snapshot()}
        self._tasks |= self._environment.tasks()

    @contextmanager
    def accepting(self) -> Iterator[Watch]:
        """What is made in the block may stay: a fixture of a wider scope makes it."""
        mine = Watch(self._environment)
        yield mine
        self._descriptors |= mine.new_descriptors()
        self._threads |= {thread.ident for thread in mine.new_threads()}
        self._tasks |= mine.new_tasks()

    def new_threads(self) -> list[ThreadSnapshot]:
        """The virtual threads that were not there, but for the one that keeps the loop."""
        known = self._threads | self._environment.own_threads()
        return [thread for thread in snapshot() if thread.ident not in known]

    def new_descriptors(self) -> dict[int, str]:
        """The descriptors that were not there, or lead elsewhere, but for the loop's own."""
        return _descriptors_beside(self._descriptors | self._environment.own_descriptors())

    def new_tasks(self) -> set[asyncio.Task[Any]]:
        """The asyncio tasks that were not there."""
        return self._environment.tasks() - self._tasks

    def problem(self) -> str | None:
        """Tell what was lost and what is new, or None.

        What is new is cancelled, but for descriptors, which may have got another owner.
        """
        _let_end_what_is_about_to()
        gc.collect(1 if _collections() == self._collections else 2)  # all that was made since, and not much more
        problems, self._environment.losses = self._environment.losses, []
        tasks = set() if "tasks" in self._may_leave else self.new_tasks()
        problems += [f"an asyncio task that has not ended: {_describe_task(task)}" for task in tasks]
        threads = [] if "threads" in self._may_leave else self.new_threads()
        origins = self._environment.origins
        for thread in threads:
            problems.append(f"a thread that has not ended: {thread}{_started(origins.of_thread(thread.ident))}")
        for task in tasks:
            task.cancel()
        for thread in threads:
            _core.cancel_thread(thread.ident)
        if "descriptors" not in self._may_leave:
            for number, target in self.new_descriptors().items():
                problems.append(
                    f"descriptor {number} is open: {target}{_opened(origins.of_descriptor(number, target))}"
                )
        self.accept_what_is_there()
        if not problems:
            return None
        return "the test left behind\n" + "\n".join(f"- {problem}" for problem in problems)


def _started(line: str) -> str:
    return f"\n  started at {line}" if line else ""


def _opened(line: str) -> str:
    return f", opened at {line}" if line else ""


def _let_end_what_is_about_to() -> None:
    """Give threads that were told to end, and tasks that were cancelled, a few turns to do so."""
    for _ in range(10):
        if not any(thread.state == "ready" for thread in snapshot()):
            return
        _core.checkpoint()


def _collections() -> list[int]:
    """How often the collector has moved objects into its oldest generation."""
    first = 0 if sys.version_info >= (3, 14) else 1  # 3.14 collects the oldest with every young one
    return [generation["collections"] for generation in gc.get_stats()[first:]]


async def _wait_for_all(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks)


async def _park() -> None:
    time.sleep(0)


def descriptors() -> dict[int, str]:
    """Where each open descriptor leads."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # that of the listing itself
    return found


def _descriptors_beside(known: dict[int, str]) -> dict[int, str]:
    """Those that were not known, or lead elsewhere."""
    return {number: target for number, target in sorted(descriptors().items()) if known.get(number) != target}


def _describe_task(task: asyncio.Task[Any]) -> str:
    return f"{task.get_name()}, in {wait_of_task(task)}"


@contextmanager
def _in_order_of(seed: int | None) -> Iterator[None]:
    """Run ready threads in an order of the seed's; None: in the usual one. A failure names the seed."""
    if seed is None:
        yield
        return
    _core.shuffle(seed)
    try:
        yield
    finally:
        _core.shuffle(None)


__all__ = ["Environment", "Watch"]
