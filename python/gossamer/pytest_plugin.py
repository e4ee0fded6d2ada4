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
    @pytest.mark.gossamer(may_leave="descriptors")  # of a pool, say; also "tasks", "threads", or several
    gossamer_may_leave = descriptors           # ini: the same for all
    --gossamer-seeds 100                       # every test under 100 schedules, until one fails
    --gossamer-seed 7                          # every test under schedule 7
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.runner import runtestprotocol

if TYPE_CHECKING:
    from gossamer._test_run import Environment, Watch  # at run time only once a test wants it: it imports asyncio

_CLOCKS = ("real", "virtual")
_KINDS = ("descriptors", "tasks", "threads")  # of what a test may be allowed to leave behind


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
    parser.addini(
        "gossamer_may_leave",
        "what tests inside Gossamer may leave behind: 'descriptors', 'tasks', 'threads'",
        type="args",
        default=[],
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and check the settings."""
    config.addinivalue_line(
        "markers",
        "gossamer(clock='real', seeds=None, may_leave=()): run the test in a virtual thread or on Gossamer's loop",
    )
    for setting, choices in (
        ("gossamer_mode", ("auto", "marked")),
        ("gossamer_clock", _CLOCKS),
        ("gossamer_may_leave", _KINDS),
    ):
        given = config.getini(setting)
        for value in [given] if isinstance(given, str) else given:
            if value not in choices:
                raise pytest.UsageError(f"{setting} = {value}: one of {', '.join(choices)} is expected")
    if config.option.gossamer_seeds is not None and config.option.gossamer_seeds < 1:
        raise pytest.UsageError(f"--gossamer-seeds {config.option.gossamer_seeds}: 1 or more is expected")
    config.pluginmanager.register(_Plugin(), "gossamer-runner")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Check what the markers say, before a test runs."""
    for item in items:
        _Settings(item)


class _Settings:
    """What the markers and options say of one test; of two markers that say the same thing the closer one is right."""

    def __init__(self, item: pytest.Item) -> None:
        config = item.config
        self.clock: str = config.getini("gossamer_clock")
        self.may_leave: Collection[str] = config.getini("gossamer_may_leave")
        self.seeds: range | list[int | None] = [None]
        for marker in reversed(list(item.iter_markers("gossamer"))):
            try:
                self._take(*marker.args, **marker.kwargs)
            except (TypeError, ValueError) as error:
                arguments = [*map(repr, marker.args), *(f"{name}={value!r}" for name, value in marker.kwargs.items())]
                told = str(error).removeprefix("_Settings._take() ")
                raise pytest.UsageError(f"{item.nodeid}: gossamer({', '.join(arguments)}): {told}") from None
        if config.option.gossamer_seed is not None:
            self.seeds = [config.option.gossamer_seed]
        elif config.option.gossamer_seeds:
            self.seeds = range(config.option.gossamer_seeds)

    def _take(
        self, *, clock: str | None = None, seeds: int | None = None, may_leave: str | Collection[str] | None = None
    ) -> None:
        if clock is not None:
            if clock not in _CLOCKS:
                raise ValueError("'real' or 'virtual' is expected")
            self.clock = clock
        if seeds is not None:
            if seeds < 1:
                raise ValueError("1 seed or more is expected")
            self.seeds = range(seeds)
        if may_leave is not None:
            self.may_leave = [may_leave] if isinstance(may_leave, str) else may_leave
            if not set(self.may_leave) <= set(_KINDS):
                raise ValueError(f"may_leave: {', '.join(map(repr, _KINDS))} are expected")


def _is_ours(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function) or _runs_itself(item):
        return False
    if item.get_closest_marker("gossamer"):
        return True
    wanted = item.config.option.gossamer or item.config.getini("gossamer_mode") == "auto"
    return wanted and not _is_of_another_plugin(item)


def _runs_itself(item: pytest.Function) -> bool:
    """Whether the test is a `gossamer.testing.TestCase`'s."""
    testing = sys.modules.get("gossamer.testing")
    return testing is not None and item.cls is not None and issubclass(item.cls, testing.TestCase)


def _is_of_another_plugin(item: pytest.Function) -> bool:
    return "anyio_backend" in item.fixturenames or any(
        item.get_closest_marker(marker) for marker in ("asyncio", "anyio", "trio", "twisted")
    )


class _Plugin:
    """The hub that tests run in, for as long as one needs it."""

    def __init__(self) -> None:
        self._environment: Environment | None = None
        self._holders = 0  # fixtures of a wider scope that need the hub beyond one test
        self._watch: Watch | None = None  # while a test of ours runs
        self._seed: int | None = None
        self._function: Callable[..., Any] | None = None  # of the test that is called

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Keep a hub for a test of ours, inside of what other plugins do around it."""
        if not _is_ours(item):
            return (yield)
        from gossamer import _test_run

        environment = self._environment
        if environment is None:
            environment = self._environment = _test_run.Environment()
            environment.enter()
        try:
            settings = _Settings(item)
            if len(settings.seeds) > 1:
                return (yield)
            with self._watching(environment, settings, settings.seeds[0]):
                return (yield)
        finally:
            if self._holders == 0:
                self._environment = None
                environment.leave()

    @contextmanager
    def _watching(self, environment: Environment, settings: _Settings, seed: int | None) -> Iterator[None]:
        self._seed = seed
        try:
            with environment.test(clock=settings.clock, seed=seed, may_leave=settings.may_leave) as self._watch:
                yield
        finally:
            self._watch = self._seed = None

    @pytest.hookimpl(tryfirst=True, specname="pytest_runtest_protocol")
    def pytest_runtest_protocol_of_each_seed(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Run a test of ours under each of its seeds until one fails; with one or none the usual protocol does."""
        environment = self._environment
        if environment is None or not _is_ours(item):
            return None
        settings = _Settings(item)
        if len(settings.seeds) == 1:
            return None
        assert isinstance(item, pytest.Function)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for number, seed in enumerate(settings.seeds):
            is_last = number == len(settings.seeds) - 1
            if number > 0:
                _forget_run(item)
            # What is torn down is what the next one does not need: between two runs the test's own fixtures alone.
            after: Any = nextitem if is_last else item.parent
            with self._watching(environment, settings, seed):
                reports = runtestprotocol(item, nextitem=after, log=False)
            ends_here = is_last or any(report.failed or report.skipped for report in reports)
            if ends_here:
                for report in reports:
                    item.ihook.pytest_runtest_logreport(report=report)
                break
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Tell the seed of a failure."""
        report = yield
        if report.failed and self._seed is not None:
            told = f"failed with --gossamer-seed {self._seed}, which runs it again"
            report.sections.append(("gossamer", told))
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Have a fixture that is a coroutine function or an async generator run on the loop."""
        environment, watch = self._environment, self._watch
        if environment is None or watch is None or request.node.get_closest_marker("anyio"):
            return (yield)
        function = fixturedef.func
        is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        if is_async:
            fixturedef.func = _as_plain(environment, function, request)  # type: ignore[misc]
        try:
            if fixturedef.scope == "function":
                return (yield)
            with watch.accepting() as made:
                result = yield
                if is_async or made.new_threads() or made.new_tasks():
                    self._holders += 1
                    fixturedef.addfinalizer(self._holder_ends)
                return result
        finally:
            if is_async:
                fixturedef.func = function  # type: ignore[misc]

    def _holder_ends(self) -> None:
        self._holders -= 1

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Run a phase of a test in the block."""
        if self._environment is None or self._watch is None:
            yield
            return
        with self._environment.running():
            yield

    # Inside of what other plugins do around a phase: a timer that pytest-timeout starts is an ordinary OS thread.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_setup(self) -> Generator[None, object, object]:
        """Set up the test."""
        __tracebackhide__ = True
        with self._running():
            return (yield)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Run the test; its function as it is before another plugin makes a plain one of it."""
        __tracebackhide__ = True
        self._function = item.obj if isinstance(item, pytest.Function) else None
        try:
            with self._running():
                return (yield)
        finally:
            self._function = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        """Call the test."""
        __tracebackhide__ = True
        environment = self._environment
        if environment is None or self._watch is None or pyfuncitem.get_closest_marker("anyio"):
            return None
        function = self._function
        assert function is not None
        if not inspect.iscoroutinefunction(function):
            function = pyfuncitem.obj  # which a debugger may have wrapped
        _let_hypothesis_call(environment, function)
        arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
        result = function(**arguments)
        if inspect.iscoroutine(result):
            environment.run_coroutine(result)
        elif result is not None:
            warnings.warn(pytest.PytestReturnNotNoneWarning(f"{pyfuncitem.nodeid} returned {result!r}"), stacklevel=1)
        return True

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_teardown(self) -> Generator[None, object, object]:
        """Tear the test down."""
        __tracebackhide__ = True
        with self._running():
            return (yield)

    # Outside of what other plugins do: pytest has descriptors of its own for the output of a phase.
    @pytest.hookimpl(wrapper=True, tryfirst=True, specname="pytest_runtest_teardown")
    def pytest_runtest_teardown_was_complete(self) -> Generator[None, object, object]:
        """Look for what the test and its fixtures left behind, once they are torn down."""
        __tracebackhide__ = True
        try:
            result = yield
        except Exception as error:
            if (problem := self._problem()) is not None:
                error.add_note(problem)
            raise
        if (problem := self._problem()) is not None:
            pytest.fail(problem, pytrace=False)
        return result

    def _problem(self) -> str | None:
        if self._watch is None:
            return None
        with self._running():
            return self._watch.problem()

    def pytest_sessionfinish(self) -> None:
        """Leave the hub, should a fixture have kept it."""
        environment, self._environment = self._environment, None
        if environment is not None:
            environment.leave()


def _forget_run(item: pytest.Function) -> None:
    """Have the next run of ``item`` make its fixtures, and the instance of its class, anew."""
    if getattr(item, "_instance", None) is not None:
        del item._instance
        item._obj = None
    item._initrequest()


def _let_hypothesis_call(environment: Environment, function: Callable[..., Any]) -> None:
    """Have the examples of a test of Hypothesis' that is a coroutine function run on the loop."""
    inner = getattr(getattr(function, "hypothesis", None), "inner_test", None)
    if inspect.iscoroutinefunction(inner):

        @functools.wraps(inner)
        def run_example(**arguments: Any) -> None:
            environment.run_coroutine(inner(**arguments))

        function.hypothesis.inner_test = run_example  # type: ignore[attr-defined]


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
            __tracebackhide__ = True
            yield from environment.run_generator(bound()(**arguments))

        return generate

    def call(**arguments: Any) -> Any:
        __tracebackhide__ = True
        return environment.run_coroutine(bound()(**arguments))

    return call
