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

import os
import sys
import time
import unittest
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

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
        """Move the clock forward and let what is due then run until it waits again."""
        _core.advance_virtual_clock(seconds)
        _core.checkpoint()  # makes ready what is due
        settle()


@contextmanager
def virtual_clock() -> Iterator[VirtualClock]:
    """Make time stand still in this OS thread's virtual threads, until all of them wait.

    Then the clock jumps to the earliest sleep or time-out, so that a test of an hour takes no time.
    `time.monotonic`, `time.time`, `time.perf_counter` and their ``_ns`` forms agree with it, however they were
    imported;
    `datetime` does not. A job on the OS-thread pool (a name look-up) is waited for in real time; what another
    process or
    an OS thread does is not, unless it has done it before all wait.

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
    """Run ``test`` once a seed, each time in a `gossamer.run` of its own whose ready threads run in an order of the
    seed's.

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
    their counterparts; every ``threading.Thread`` that they start is virtual. A test fails if it leaves behind a
    coroutine that was never awaited, an exception that nobody took, an asyncio task, a virtual thread or a descriptor.

    Attributes:
        clock: "real", or "virtual": sleeps and time-outs take no time (see `virtual_clock`).
        seeds: How many orders of ready threads to run each test in, from seed 0 on; the first one that fails ends it
            and names its seed. ``GOSSAMER_SEED=7`` in the environment runs that one alone. None: the usual order.
    """

    clock: Literal["real", "virtual"] = "real"
    seeds: int | None = None

    def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
        """Run the test, once or once a seed."""
        if self.seeds is None:
            return self._run_with(None, result)
        if result is None:
            raise TypeError("a test with seeds needs a result to report to")
        for seed in _chosen(self.seeds):
            before = len(result.failures) + len(result.errors)
            self._run_with(seed, result)
            if len(result.failures) + len(result.errors) > before:
                print(f"gossamer.testing: {self.id()} failed with seed {seed}; GOSSAMER_SEED={seed} runs it again")
                break
        return result

    def _run_with(self, seed: int | None, result: unittest.TestResult | None) -> unittest.TestResult | None:
        from gossamer import _test_run

        self._environment = environment = _test_run.Environment()
        environment.enter()
        try:
            with environment.test(clock=self.clock, seed=seed) as self._watch:
                self.addCleanup(self._fail_for_what_is_left)
                return super().run(result)
        finally:
            environment.leave()

    def _setupAsyncioRunner(self) -> None:  # noqa: N802 - unittest's name
        assert self._environment is not None
        self._asyncioRunner = self._environment.runner()

    def _fail_for_what_is_left(self) -> None:
        problem = self._watch.problem()
        if problem is not None:
            self.fail(problem)
