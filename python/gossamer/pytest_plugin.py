# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin: tests and fixtures in virtual threads and on Gossamer's loop. Off until it is asked for.

A test runs inside Gossamer if it is marked ``@pytest.mark.gossamer``, or if ``--gossamer`` or ``gossamer_mode = auto``
asks for all that no other plugin runs. Then a ``def`` test runs in a virtual thread and an ``async def`` test on
Gossamer's loop; every ``threading.Thread`` that it starts is virtual; and it fails if it leaves behind a coroutine that
was never awaited, an exception that nobody took, an asyncio task, a virtual thread or a descriptor, or if it deadlocks.

Options::

    gossamer_mode = auto                       # ini: as --gossamer
    gossamer_clock = virtual                   # ini: sleeps of hours take no time
    @pytest.mark.gossamer(clock="virtual")     # the same for one test; clock="real" for the contrary
    @pytest.mark.gossamer(seeds=20)            # runs it under 20 schedules
    --gossamer-seeds 100                       # every test under 100 schedules, until one fails
    --gossamer-seed 7                          # every test under schedule 7
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.runner import runtestprotocol

if TYPE_CHECKING:
    from gossamer._test_run import Environment, Watch  # at run time only once a test wants it: it imports asyncio

_OTHERS = ("asyncio", "anyio", "trio", "twisted")  # markers of plugins that run coroutine tests themselves


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and the settings of the ini file."""
    group = parser.getgroup("gossamer", "virtual threads")
    group.addoption("--gossamer", action="store_true", help="run every test inside Gossamer")
    group.addoption(
        "--gossamer-seeds", type=int, metavar="N", help="run each test under N schedules, and tell the seed that fails"
    )
    group.addoption("--gossamer-seed", type=int, metavar="SEED", help="run each test under the schedule of this seed")
    parser.addini(
        "gossamer_mode", "'auto' runs every test inside Gossamer, 'marked' those that are marked", default="marked"
    )
    parser.addini("gossamer_clock", "the clock of tests inside Gossamer: 'real' or 'virtual'", default="real")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and check the settings."""
    config.addinivalue_line(
        "markers", "gossamer(clock='real', seeds=None): run the test in a virtual thread or on Gossamer's event loop"
    )
    for setting, choices in (("gossamer_mode", ("auto", "marked")), ("gossamer_clock", ("real", "virtual"))):
        if config.getini(setting) not in choices:
            raise pytest.UsageError(f"{setting} = {config.getini(setting)}: one of {', '.join(choices)} is expected")
    config.pluginmanager.register(_Plugin(), "gossamer-runner")


class _Settings:
    """What the markers and options say of one test."""

    def __init__(self, item: pytest.Item) -> None:
        config = item.config
        self.clock: str = config.getini("gossamer_clock")
        self.seeds: range | list[int | None] = [None]
        if config.option.gossamer_seed is not None:
            self.seeds = [config.option.gossamer_seed]
        elif config.option.gossamer_seeds:
            self.seeds = range(config.option.gossamer_seeds)
        for marker in item.iter_markers("gossamer"):
            self._take(**marker.kwargs)
            break

    def _take(self, *, clock: str | None = None, seeds: int | None = None) -> None:
        if clock not in (None, "real", "virtual"):
            raise pytest.UsageError(f"pytest.mark.gossamer(clock={clock!r}): 'real' or 'virtual' is expected")
        self.clock = clock or self.clock
        if seeds is not None and self.seeds == [None]:
            self.seeds = range(seeds)


def _is_ours(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    if item.get_closest_marker("gossamer"):
        return True
    wanted = item.config.option.gossamer or item.config.getini("gossamer_mode") == "auto"
    return wanted and not any(item.get_closest_marker(marker) for marker in _OTHERS)


class _Plugin:
    """The hub that tests run in, for as long as one needs it."""

    def __init__(self) -> None:
        self._environment: Environment | None = None
        self._wide_fixtures = 0  # that are set up and need the hub beyond one test
        self._watch: Watch | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Run a test of ours, under each of its seeds until one fails."""
        if not _is_ours(item):
            return None
        assert isinstance(item, pytest.Function)
        settings = _Settings(item)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for number, seed in enumerate(settings.seeds):
            is_last = number == len(settings.seeds) - 1
            if number > 0:
                item._initrequest()  # forgets the fixtures of the run before
            # What is torn down is what the next one does not need: between two runs the test's own fixtures alone.
            reports = self._run_once(item, nextitem if is_last else item.parent, settings, seed)
            has_failed = any(report.failed for report in reports)
            if has_failed and seed is not None:
                for report in reports:
                    report.sections.append(("gossamer", f"failed with --gossamer-seed {seed}, which runs it again"))
            if is_last or has_failed:
                for report in reports:
                    item.ihook.pytest_runtest_logreport(report=report)
            if has_failed:
                break
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _run_once(
        self, item: pytest.Function, nextitem: Any, settings: _Settings, seed: int | None
    ) -> list[pytest.TestReport]:
        from gossamer import _test_run

        environment = self._environment
        if environment is None:
            environment = self._environment = _test_run.Environment()
            environment.enter()
        try:
            with environment.test(clock=settings.clock, seed=seed) as self._watch:
                return runtestprotocol(item, nextitem=nextitem, log=False)
        finally:
            self._watch = None
            if self._wide_fixtures == 0:
                self._environment = None
                environment.leave()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Have a fixture that is a coroutine function or an async generator run on the loop."""
        environment, watch = self._environment, self._watch
        if environment is None or watch is None:
            return (yield)
        is_wide = fixturedef.scope != "function"
        function = fixturedef.func
        is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        if is_async:
            fixturedef.func = _as_plain(environment, function, request)  # type: ignore[misc]
        if is_wide:
            self._wide_fixtures += 1
            fixturedef.addfinalizer(self._wide_fixture_ends)
        try:
            if not is_wide:
                return (yield)
            with watch.accepting():
                return (yield)
        finally:
            if is_async:
                fixturedef.func = function  # type: ignore[misc]

    def _wide_fixture_ends(self) -> None:
        self._wide_fixtures -= 1

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        """Call the test."""
        environment = self._environment
        if environment is None or self._watch is None or not _is_ours(pyfuncitem):
            return None
        arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
        call = functools.partial(pyfuncitem.obj, **arguments)
        if inspect.iscoroutinefunction(pyfuncitem.obj):
            environment.run_coroutine(call())
        else:
            result = environment.run_plain(call)
            if inspect.iscoroutine(result):
                environment.run_coroutine(result)
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """Look for what the test and its fixtures left behind, once they are torn down."""
        result = yield
        if self._watch is not None:
            problem = self._watch.problem()
            if problem is not None:
                pytest.fail(problem, pytrace=False)
        return result

    def pytest_sessionfinish(self) -> None:
        """Leave the hub, should a fixture have kept it."""
        environment, self._environment = self._environment, None
        if environment is not None:
            environment.leave()


def _as_plain(
    environment: Environment, function: Callable[..., Any], request: pytest.FixtureRequest
) -> Callable[..., Any]:
    """A plain function, or a plain generator function, that does what the fixture's ``async def`` does."""
    instance = request.instance

    def bound() -> Callable[..., Any]:
        # As pytest does: a fixture of a class is a method of the instance that the test runs on.
        if instance is not None and inspect.ismethod(function) and isinstance(instance, type(function.__self__)):
            method: Callable[..., Any] = function.__func__.__get__(instance)
            return method
        return function

    if inspect.isasyncgenfunction(function):

        def generate(**arguments: Any) -> Generator[Any]:
            yield from environment.run_generator(bound()(**arguments))

        return generate

    def call(**arguments: Any) -> Any:
        return environment.run_coroutine(bound()(**arguments))

    return call
