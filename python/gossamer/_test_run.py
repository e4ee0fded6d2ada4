# SPDX-License-Identifier: Apache-2.0
"""What the pytest plugin and `gossamer.testing.TestCase` share: a hub and a loop to test in, and a watch for what a
test leaves behind.

An `Environment` makes the calling OS thread a carrier, so that tests and fixtures run in its main virtual thread, with
one asyncio loop, made when first needed. Coroutines run on the loop in that virtual thread; while plain code runs and
the loop has tasks, another virtual thread keeps it going. A `Watch` compares what is alive before and after.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import os
import threading
import traceback
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from gossamer import _core, _run, testing
from gossamer._contexts import adopt_variables, lent_context
from gossamer._dump import snapshot
from gossamer._event_loop import new_event_loop

GRACE = 5.0  # seconds that virtual threads which a test left behind get to clean up


class Environment:
    """The hub and the loop that tests run in; entered by the calling OS thread."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self.losses: list[str] = []  # what nobody took, for people

    def enter(self) -> None:
        """Make the calling OS thread a carrier whose ``threading.Thread`` are virtual."""
        _run.enter(virtual_threads=True)
        _core.track_coroutine_origins(1)

    def leave(self) -> None:
        """Close the loop, end what is left, and make the OS thread an ordinary one."""
        hook = threading.excepthook

        def report_all_but_cancellations(args: threading.ExceptHookArgs) -> None:
            if not issubclass(args.exc_type, asyncio.CancelledError):  # we asked for them
                hook(args)

        threading.excepthook = report_all_but_cancellations
        try:
            self.close_loop()
        finally:
            _run.leave(GRACE)
            threading.excepthook = hook

    def close_loop(self) -> None:
        """Cancel the loop's tasks and close it, if there is one."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()

    def tasks(self) -> set[asyncio.Task[Any]]:
        """The loop's tasks that have not ended."""
        return set() if self._runner is None else asyncio.all_tasks(self._runner.get_loop())

    def run_coroutine[T](self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run ``coroutine`` on the loop; the context variables that it set are set afterwards."""
        with lent_context() as context:
            return self.runner().run(coroutine, context=context)

    def run_generator(self, generator: AsyncGenerator[Any]) -> Generator[Any]:
        """Run an async generator that yields once, in one task from its beginning to its end."""
        loop = self.runner().get_loop()
        context = contextvars.copy_context()
        value: asyncio.Future[Any] = loop.create_future()
        may_end = asyncio.Event()

        async def drive() -> None:
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

        async def wait_for(future: asyncio.Future[Any]) -> Any:
            return await future

        task = loop.create_task(drive(), context=context)
        result = self.run_coroutine(wait_for(value))
        adopt_variables(context)
        yield result
        for variable, setting in contextvars.copy_context().items():
            context.run(variable.set, setting)  # what the test has set
        may_end.set()
        self.run_coroutine(wait_for(task))
        adopt_variables(context)

    def run_plain[T](self, function: Callable[[], T]) -> T:
        """Call ``function`` in this virtual thread; meanwhile the loop runs in another one, if it has tasks."""
        if not self.tasks():
            return function()
        loop = self.runner().get_loop()
        keeper = _core.spawn(loop.run_forever)
        try:
            return function()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            keeper.result()

    def runner(self) -> asyncio.Runner:
        """What runs coroutines on the loop; makes both on the first call."""
        if self._runner is None:
            self._runner = asyncio.Runner(loop_factory=new_event_loop)
            self._runner.get_loop().set_exception_handler(self._note_loop_error)
        return self._runner

    def _note_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        text = context.get("message", "an error in the loop")
        if error is not None:
            text += ":\n" + "".join(traceback.format_exception(error)).rstrip()
        self.losses.append(text)

    @contextmanager
    def test(self, *, clock: str, seed: int | None) -> Iterator[Watch]:
        """Run one test in the block: on the clock that it wants, in an order of the seed's if it has one."""
        with ExitStack() as stack:
            stack.enter_context(self._noting_losses())
            if clock == "virtual":
                stack.enter_context(testing.virtual_clock())
            stack.enter_context(_in_order_of(seed))
            yield Watch(self)

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

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._descriptors: dict[int, str] = {}
        self._threads: set[int] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.accept_what_is_there()

    def accept_what_is_there(self) -> None:
        """What is alive now is nobody's fault."""
        self._descriptors |= _descriptors()
        self._threads |= {thread.ident for thread in snapshot()}
        self._tasks |= self._environment.tasks()

    @contextmanager
    def accepting(self) -> Iterator[None]:
        """What is made in the block may stay: a fixture of a wider scope makes it."""
        mine = Watch(self._environment)
        yield
        self._descriptors |= {
            number: target for number, target in _descriptors().items() if mine._descriptors.get(number) != target
        }
        self._threads |= {thread.ident for thread in snapshot()} - mine._threads
        self._tasks |= self._environment.tasks() - mine._tasks

    def problem(self) -> str | None:
        """Tell what was lost and what is new, or None.

        What is new is cancelled, but for descriptors, which may have got another owner.
        """
        gc.collect(1)
        problems, self._environment.losses = self._environment.losses, []
        tasks = self._environment.tasks() - self._tasks
        problems += [f"an asyncio task that has not ended: {_describe_task(task)}" for task in tasks]
        threads = [thread for thread in snapshot() if thread.ident not in self._threads]
        problems += [f"a thread that has not ended: {thread}" for thread in threads]
        for task in tasks:
            task.cancel()
        for thread in threads:
            _core.cancel_thread(thread.ident)
        problems += [
            f"descriptor {number} is open: {target}"
            for number, target in sorted(_descriptors().items())
            if self._descriptors.get(number) != target
        ]
        self.accept_what_is_there()
        if not problems:
            return None
        return "the test left behind\n" + "\n".join(f"- {problem}" for problem in problems)


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # that of the listing itself
    return found


def _describe_task(task: asyncio.Task[Any]) -> str:
    stack = task.get_stack()
    if not stack:
        return repr(task)
    frame = stack[-1]
    return f"{task!r}, at {frame.f_code.co_filename}:{frame.f_lineno}"


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
