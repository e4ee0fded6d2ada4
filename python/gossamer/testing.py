# SPDX-License-Identifier: Apache-2.0
"""For tests of concurrent code: a virtual clock, runs in many orders, a `unittest.TestCase` that runs inside Gossamer.

Example::

    def test_retries_for_a_minute():
        def main():
            with gossamer.testing.virtual_clock() as clock:
                fetch_with_retries(dead_server)
                assert clock.elapsed == 60

        gossamer.testing.explore(main, seeds=50)
"""

from __future__ import annotations

import inspect
import os
import sys
import time
import unittest
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

from gossamer import _core, _run

__all__ = ["TestCase", "VirtualClock", "explore", "settle", "virtual_clock"]


class VirtualClock:
    """The clock of a `virtual_clock` block."""

    def __init__(self) -> None:
        self._start = time.monotonic_ns()

    @property
    def elapsed(self) -> float:
        """Virtual seconds since the block was entered."""
        return (time.monotonic_ns() - self._start) / 1e9

    def advance(self, seconds: float) -> None:
        """Move the clock forward and let what is due then run until it waits again.

        Args:
            seconds: How far, 0 or more.

        Raises:
            ValueError: It is less than 0, or the block has been left.
        """
        _core.advance_virtual_clock(seconds)
        _core.checkpoint()  # makes ready what is due
        settle()


@contextmanager
def virtual_clock() -> Iterator[VirtualClock]:
    """Make time stand still in this OS thread's virtual threads, until all of them wait.

    Then the clock jumps to the earliest sleep or time-out, so that a test of an hour takes no time.
    `time.monotonic`, `time.time`, `time.perf_counter` and their ``_ns`` forms agree with it, however they were
    imported; `datetime` does not. A job on the OS-thread pool (a name look-up) is waited for in real time; what another
    process or an OS thread does is not, unless it has done it before all wait.

    Raises:
        RuntimeError: Outside of Gossamer, or inside of another such block.
    """
    _core.start_virtual_clock()
    try:
        yield VirtualClock()
    finally:
        _core.stop_virtual_clock()


def settle() -> None:
    """Let every other virtual thread run until it waits. Under `explore` too."""
    while any(status == "ready" for _ident, status, *_rest in _core.threads()):
        _core.checkpoint()


def _chosen(seeds: int | Iterable[int]) -> Iterable[int]:
    """The seeds to run: those that the test asks for, or the one in the environment."""
    only = os.environ.get("GOSSAMER_SEED")
    return [int(only)] if only else range(seeds) if isinstance(seeds, int) else seeds


def explore(test: Callable[[], Any], /, *, seeds: int | Iterable[int] = 100) -> None:
    """Run ``test`` once a seed, each time in a `gossamer.run` of its own, in which the seed orders the ready threads.

    The same seed gives the same order, as long as the test depends on nothing else. ``GOSSAMER_SEED=7`` in the
    environment runs that seed alone.

    Args:
        test: Called without arguments as the main virtual thread; it fails by raising.
        seeds: How many, from 0 on, or which.

    Raises:
        Exception: What the first run that failed raised, with a note that names its seed; the seed is printed too.
    """

    def run_with(seed: int) -> None:
        _core.shuffle(seed)
        test()

    for seed in _chosen(seeds):
        try:
            _run.run(run_with, seed)
        except BaseException as error:
            error.add_note(f"gossamer.testing.explore: seed {seed}; GOSSAMER_SEED={seed} runs it again")
            print(f"gossamer.testing.explore: failed with seed {seed}", file=sys.stderr)
            raise


class TestCase(unittest.IsolatedAsyncioTestCase):
    """A `unittest.TestCase` whose tests run inside Gossamer.

    A ``def`` test runs in a virtual thread, an ``async def`` test on Gossamer's loop, so do `setUp`, `asyncSetUp` and
    their counterparts; every ``threading.Thread`` that they start is virtual, and while plain code runs the loop runs
    beside it. A test fails if it leaves behind a coroutine that was never awaited, an exception that nobody took, an
    asyncio task, a virtual thread or a descriptor. `setUpClass` and `setUpModule` run outside.

    Attributes:
        clock: "real", or "virtual": sleeps and time-outs take no time (see `virtual_clock`).
        seeds: How many orders of ready threads to run each test in, from seed 0 on; the first one that fails ends it
            and names its seed. ``GOSSAMER_SEED=7`` in the environment runs that one alone. None: the usual order.
        may_leave: What a test may leave behind: of "descriptors", "tasks", "threads".
    """

    clock: Literal["real", "virtual"] = "real"
    seeds: int | None = None
    may_leave: Collection[str] = ()

    def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
        """Run the test, once or once a seed, which is one test to ``result``."""
        if self.seeds is None:
            return self._run_with(None, result)
        is_whole_run = result is None
        told = self.defaultTestResult() if result is None else result
        if is_whole_run:
            told.startTestRun()
        told.startTest(self)
        try:
            for seed in _chosen(self.seeds):
                each = _ResultOfOneSeed(told)
                self._run_with(seed, cast("unittest.TestResult", each))
                if not each.has_passed:
                    if each.has_failed:
                        print(
                            f"gossamer.testing: {self.id()} failed with seed {seed}; GOSSAMER_SEED={seed} runs it again"
                        )
                    break
            else:
                told.addSuccess(self)
        finally:
            told.stopTest(self)
            if is_whole_run:
                told.stopTestRun()
        return told

    def _run_with(self, seed: int | None, result: unittest.TestResult | None) -> unittest.TestResult | None:
        from gossamer import _test_run

        self._environment = environment = _test_run.Environment()
        environment.enter()
        try:
            with (
                environment.test(clock=self.clock, seed=seed, may_leave=self.may_leave) as self._watch,
                environment.running(),
            ):
                self.addCleanup(self._fail_for_what_is_left)
                return super().run(result)
        finally:
            environment.leave()

    # unittest's own, and their names.
    def _setupAsyncioRunner(self) -> None:  # noqa: N802
        assert self._environment is not None
        self._asyncioRunner = self._environment.runner()

    def _tearDownAsyncioRunner(self) -> None:  # noqa: N802
        self._environment.close_loop()

    def _callAsync(self, func: Callable[..., Coroutine[Any, Any, Any]], /, *args: Any, **kwargs: Any) -> Any:  # noqa: N802
        return self._asyncioTestContext.run(self._environment.run_coroutine, func(*args, **kwargs))  # type: ignore[attr-defined]

    def _callMaybeAsync(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:  # noqa: N802
        if inspect.iscoroutinefunction(func):
            return self._callAsync(func, *args, **kwargs)
        return self._asyncioTestContext.run(func, *args, **kwargs)  # type: ignore[attr-defined]

    def _fail_for_what_is_left(self) -> None:
        problem = self._watch.problem()
        if problem is not None:
            self.fail(problem)


class _ResultOfOneSeed:
    """Tells a result what one run of a test says of itself, but not that it starts, passes and ends."""

    def __init__(self, result: unittest.TestResult) -> None:
        self._result = result
        self.has_failed = False
        self.has_passed = True  # so far

    def __getattr__(self, name: str) -> Any:
        return getattr(self._result, name)

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        pass

    stopTest = addSuccess = startTest  # noqa: N815

    def addError(self, *arguments: Any) -> None:  # noqa: N802
        self.has_failed, self.has_passed = True, False
        self._result.addError(*arguments)

    def addFailure(self, *arguments: Any) -> None:  # noqa: N802
        self.has_failed, self.has_passed = True, False
        self._result.addFailure(*arguments)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, error: Any) -> None:  # noqa: N802
        if error is not None:
            self.has_failed, self.has_passed = True, False
            self._result.addSubTest(test, subtest, error)

    def addUnexpectedSuccess(self, *arguments: Any) -> None:  # noqa: N802
        self.has_failed, self.has_passed = True, False
        self._result.addUnexpectedSuccess(*arguments)

    def addSkip(self, *arguments: Any) -> None:  # noqa: N802
        self.has_passed = False
        self._result.addSkip(*arguments)

    def addExpectedFailure(self, *arguments: Any) -> None:  # noqa: N802
        self.has_passed = False
        self._result.addExpectedFailure(*arguments)
