# SPDX-License-Identifier: Apache-2.0
"""The plugin runs tests inside Gossamer when asked to, and fails a test for what it leaves behind."""

import importlib.util

import pytest

MARKED = "pytestmark = pytest.mark.gossamer\n"
IN_GOSSAMER = "def test(): assert gossamer._core.is_virtual()\n"


def needs(module):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


# --- Who runs where ---


@pytest.mark.parametrize("arguments", [["--gossamer"], ["-o", "gossamer_mode=auto"]])
def test_all_tests_run_inside_gossamer_when_an_option_asks_for_it(run_tests, arguments):
    assert {"passed": 1} == run_tests(IN_GOSSAMER, *arguments).outcomes


def test_a_marked_test_runs_inside_gossamer_and_its_neighbour_does_not(run_tests):
    source = """
@pytest.mark.gossamer
def test_marked(): assert gossamer._core.is_virtual()
def test_unmarked(): assert not gossamer._core.is_virtual()
def test_nests(): assert 7 == gossamer.run(lambda: 7)
"""

    assert {"passed": 3} == run_tests(source).outcomes


def test_coroutine_tests_run_on_the_loop(run_tests):
    source = """
import asyncio, time
@pytest.mark.gossamer
async def test_it():
    assert "gossamer" in type(asyncio.get_running_loop()).__module__
    await asyncio.sleep(0)
"""

    assert {"passed": 1} == run_tests(source).outcomes


def test_threads_that_a_test_starts_are_virtual(run_tests):
    source = """
import threading
@pytest.mark.gossamer
def test_it():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(gossamer._core.is_virtual()))
    thread.start()
    thread.join()
    assert [True] == seen
"""

    assert {"passed": 1} == run_tests(source).outcomes


def test_a_wrong_setting_is_told_before_a_test_runs(run_tests):
    with pytest.raises(AssertionError, match="gossamer_mode = always: one of auto, marked is expected"):
        run_tests(IN_GOSSAMER, "-o", "gossamer_mode=always")
    with pytest.raises(AssertionError, match="'real' or 'virtual' is expected"):
        run_tests("@pytest.mark.gossamer(clock='fast')\ndef test(): pass\n")


# --- Fixtures ---


def test_fixtures_of_every_kind_and_scope(run_tests):
    source = (
        MARKED
        + """
import asyncio, time
log = []
@pytest.fixture
def plain(): time.sleep(0); return 1
@pytest.fixture
async def coroutine(): await asyncio.sleep(0); return 2
@pytest.fixture
def generator(): yield 3; time.sleep(0); log.append("generator")
@pytest.fixture(scope="module")
async def async_generator(): await asyncio.sleep(0); yield 4; await asyncio.sleep(0); log.append("async generator")
@pytest.fixture(scope="session")
async def of_session(): yield 5; await asyncio.sleep(0)
class TestClass:
    @pytest.fixture
    async def method(self): self.number = 6; yield self.number
    async def test_it(self, plain, coroutine, generator, async_generator, of_session, method):
        assert [1, 2, 3, 4, 5, 6, 6] == [plain, coroutine, generator, async_generator, of_session, method, self.number]
    def test_again(self, plain, coroutine, generator, async_generator, of_session, method):
        assert ["generator"] == log
        assert [1, 2, 3, 4, 5, 6] == [plain, coroutine, generator, async_generator, of_session, method]
"""
    )

    assert {"passed": 2} == run_tests(source).outcomes


def test_a_server_of_an_async_fixture_answers_a_plain_test(run_tests):
    source = (
        MARKED
        + """
import asyncio, socket
@pytest.fixture(scope="module")
async def address():
    async def answer(reader, writer):
        writer.write(await reader.readline())
        writer.close()
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()
@pytest.mark.parametrize("number", range(3))
def test_it(address, number):
    with socket.create_connection(address) as connection:
        connection.sendall(b"hello\\n")
        assert b"hello\\n" == connection.recv(100)
"""
    )

    assert {"passed": 3} == run_tests(source).outcomes


def test_an_async_generator_fixture_lives_in_one_task(run_tests):
    source = (
        MARKED
        + """
import asyncio
@pytest.fixture
async def group():
    async with asyncio.TaskGroup() as group:
        yield group
async def test_it(group):
    group.create_task(asyncio.sleep(0))
"""
    )

    assert {"passed": 1} == run_tests(source).outcomes


def test_context_variables_of_async_fixtures_reach_the_test(run_tests):
    source = (
        MARKED
        + """
import contextvars
variable = contextvars.ContextVar("variable")
@pytest.fixture
async def setting():
    variable.set("set")
    yield
    assert "changed" == variable.get()
def test_plain(setting): assert "set" == variable.get(); variable.set("changed")
async def test_coroutine(setting): assert "set" == variable.get(); variable.set("changed")
"""
    )

    result = run_tests(source)

    assert {"passed": 2} == result.outcomes, result.output


# --- The clock ---


@pytest.mark.parametrize("how", ["marker", "ini"])
def test_hours_take_no_time_on_the_virtual_clock(run_tests, how):
    marker = "@pytest.mark.gossamer(clock='virtual')" if how == "marker" else "@pytest.mark.gossamer"
    source = f"""
import asyncio, time
@pytest.fixture
def start(): time.sleep(3600); return time.monotonic()
{marker}
def test_plain(start): time.sleep(3600); assert 3600 == pytest.approx(time.monotonic() - start)
{marker}
async def test_coroutine(start): await asyncio.sleep(3600); assert 3600 == pytest.approx(time.monotonic() - start)
@pytest.mark.gossamer(clock="real")
def test_real(): time.sleep(0)
"""

    result = run_tests(source, *(["-o", "gossamer_clock=virtual"] if how == "ini" else []))

    assert {"passed": 3} == result.outcomes, result.output


# --- Orders ---

RACE = """
import threading
@pytest.mark.gossamer
def test_it():
    order = []
    threads = [threading.Thread(target=lambda n=n: (gossamer.checkpoint(), order.append(n))) for n in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert [0, 1, 2, 3] == order
"""


def test_a_seed_that_fails_is_told_and_fails_again(run_tests):
    result = run_tests(RACE, "--gossamer-seeds", "100")

    assert {"failed": 1} == result.outcomes
    seed = result.output.partition("failed with --gossamer-seed ")[2].partition(",")[0]
    assert {"failed": 1} == run_tests(RACE, "--gossamer-seed", seed).outcomes
    assert {"passed": 1} == run_tests(RACE).outcomes


def test_fixtures_of_the_test_are_made_anew_for_each_seed(run_tests):
    source = """
made = []
@pytest.fixture(scope="module")
def once(): made.append("once"); yield; made.append("end")
@pytest.fixture
def anew(): made.append("anew"); return []
@pytest.mark.gossamer(seeds=3)
def test_it(anew, once): assert [] == anew; anew.append(1)
def test_after(once): assert ["once", "anew", "anew", "anew"] == sorted(made, reverse=True)
"""

    result = run_tests(source)

    assert {"passed": 2} == result.outcomes, result.output


# --- What a test leaves behind ---

LEFT_BEHIND = {
    "coroutine": ("async def work(): pass\ndef test_bad(): work()", "coroutine 'work' was never awaited"),
    "origin": ("async def work(): pass\ndef test_bad(): work()", "in test_bad\n    def test_bad(): work()"),
    "thread error": (
        "def test_bad():\n    thread = threading.Thread(target=lambda: 1 / 0)\n    thread.start()\n    thread.join()",
        "ZeroDivisionError",
    ),
    "task error": (
        "async def fail(): raise ValueError('lost')\n"
        "async def test_bad():\n    asyncio.create_task(fail())\n    for _ in range(2): await asyncio.sleep(0)",
        "Task exception was never retrieved",
    ),
    "task": ("async def test_bad(): kept.append(asyncio.create_task(asyncio.sleep(999)))", "task that has not ended"),
    "thread": (
        "def test_bad(): threading.Thread(target=time.sleep, args=(999,), daemon=True).start()",
        "a thread that has not ended",
    ),
    "descriptor": ("def test_bad(): kept.append(open('/dev/null'))", "is open: /dev/null"),
    "line of a file": (
        "import pathlib\ndef test_bad(): kept.append(pathlib.Path('test_it.py').open())",
        "test_it.py:6 in test_bad",
    ),
    "line of a socket": ("def test_bad(): kept.append(socket.socket())", "test_it.py:5 in test_bad"),
    "line of an accepted socket": (
        "def test_bad():\n    with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "        with socket.create_connection(server.getsockname()):\n            kept.append(server.accept()[0])",
        "test_it.py:8 in test_bad",
    ),
    "line of a thread": ("def test_bad(): threading.Timer(999, print).start()", "started at "),
    "future error": (
        "async def test_bad(): asyncio.get_running_loop().create_future().set_exception(ValueError('lost'))",
        "Future exception was never retrieved",
    ),
    "error kept by an old cycle": (
        "async def fail(): raise ValueError('lost')\n"
        "async def test_bad():\n    box = [asyncio.create_task(fail())]\n    box.append(box)\n"
        "    await asyncio.sleep(0)\n    await asyncio.sleep(0)\n    gc.collect()",
        "Task exception was never retrieved",
    ),
    "error of a virtual thread": (
        "def test_bad(): gossamer._core.spawn(lambda: 1 / 0); gossamer.checkpoint()",
        "an exception that nobody took",
    ),
    "blocking task": (
        "async def wait(): time.sleep(999)\n"
        "async def test_bad(): kept.append(asyncio.create_task(wait())); await asyncio.sleep(0)",
        "in wait: async def wait(): time.sleep(999)",
    ),
    "timer": ("def test_bad(): threading.Timer(999, print).start()", "a thread that has not ended"),
    "deadlock of a task": (
        "async def test_bad(): await asyncio.get_running_loop().create_future()",
        "in test_bad: async def test_bad(): await asyncio.get_running_loop().create_future()",
    ),
    "deadlock of a blocking task": (
        "async def test_bad(): queue.Queue().get()",
        "in test_bad: async def test_bad(): queue.Queue().get()",
    ),
    "deadlock beside a loop": (
        "@pytest.fixture\nasync def beside(): yield\ndef test_bad(beside): queue.Queue().get()",
        "in test_bad: def test_bad(beside): queue.Queue().get()",
    ),
    "deadlock": ("def test_bad(): queue.Queue().get()", "every virtual thread waits, and nothing can wake one"),
}


@pytest.mark.parametrize("what", LEFT_BEHIND)
def test_what_a_test_leaves_behind_fails_it_alone(run_tests, what):
    source, message = LEFT_BEHIND[what]
    prelude = "import asyncio, gc, queue, socket, threading, time\nkept = []\n" + MARKED
    good = "\ndef test_good(): time.sleep(0)\nasync def test_good_too(): await asyncio.sleep(0)\n"

    result = run_tests(prelude + source + good)

    assert message in result.output
    assert 1 == result.outcomes.get("failed", 0) + result.outcomes.get("error", 0)
    assert "test_it.py::test_bad" in result.output.partition("short test summary")[2]


def test_what_the_loop_needs_for_itself_is_not_left_behind(run_tests):
    source = (
        MARKED
        + """
import asyncio, threading, time
async def test_blocking_call(): time.sleep(0.001)
async def test_thread_of_the_executor(): assert 3 == await asyncio.to_thread(lambda: 3)
async def test_resolver(): await asyncio.get_running_loop().getaddrinfo("localhost", 80)
async def test_child(): await (await asyncio.create_subprocess_exec("true")).wait()
def test_loop_of_its_own(): asyncio.run(asyncio.to_thread(time.sleep, 0.001))
"""
    )

    result = run_tests(source)

    assert {"passed": 5} == result.outcomes, result.output


def test_what_was_told_to_end_is_not_left_behind(run_tests):
    source = (
        MARKED
        + """
import asyncio, threading
async def test_task():
    task = asyncio.create_task(asyncio.sleep(999))
    await asyncio.sleep(0)
    task.cancel()
def test_thread():
    stop = threading.Event()
    threading.Thread(target=stop.wait).start()
    stop.set()
"""
    )

    assert {"passed": 2} == run_tests(source).outcomes


def test_a_leak_of_a_test_whose_fixture_fails_is_told_with_it_and_not_of_the_next_test(run_tests):
    source = (
        MARKED
        + """
async def work(): pass
@pytest.fixture(scope="module")
async def held(): yield
@pytest.fixture
def broken(held): yield; raise ValueError("broken")
def test_bad(broken): work()
def test_good(held): pass
"""
    )

    result = run_tests(source)

    assert {"passed": 2, "error": 1} == result.outcomes, result.output
    assert "ValueError: broken" in result.output
    assert "coroutine 'work' was never awaited" in result.output


def test_what_a_fixture_of_a_wider_scope_holds_is_not_left_behind(run_tests):
    source = (
        MARKED
        + """
import asyncio, threading
@pytest.fixture(scope="module")
def helper():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    with open("/dev/null"):
        yield
    stop.set()
    thread.join()
@pytest.fixture(scope="module")
async def background():
    task = asyncio.create_task(asyncio.sleep(999))
    yield
    task.cancel()
def test_one(helper, background): pass
def test_two(helper, background): pass
"""
    )

    result = run_tests(source)

    assert {"passed": 2} == result.outcomes, result.output


# --- Other plugins ---


@needs("pytest_asyncio")
def test_a_test_of_pytest_asyncio_stays_its_own(run_tests):
    source = """
import asyncio
@pytest.mark.asyncio
async def test_theirs(): assert not gossamer._core.is_virtual(); await asyncio.sleep(0)
async def test_ours(): assert gossamer._core.is_virtual(); await asyncio.sleep(0)
"""
    options = ["-p", "pytest_asyncio.plugin", "-o", "asyncio_default_fixture_loop_scope=function", "--gossamer"]

    assert {"passed": 2} == run_tests(source, *options).outcomes


@needs("anyio")
def test_a_test_of_anyio_stays_its_own(run_tests):
    source = """
import anyio
@pytest.fixture
def anyio_backend(): return "asyncio"
@pytest.mark.anyio
async def test_theirs(): assert not gossamer._core.is_virtual(); await anyio.sleep(0)
async def test_ours(): assert gossamer._core.is_virtual(); await anyio.sleep(0)
"""

    assert {"passed": 2} == run_tests(source, "-p", "anyio.pytest_plugin", "--gossamer").outcomes


@needs("xdist")
def test_tests_may_be_spread_over_processes(run_tests):
    source = MARKED + "@pytest.mark.parametrize('number', range(8))\nasync def test_it(number): pass\n"

    assert {"passed": 8} == run_tests(source, "-p", "xdist.plugin", "-n", "2").outcomes


@pytest.mark.parametrize("mode", ["strict", "auto"])
@needs("pytest_asyncio")
def test_a_test_marked_for_gossamer_is_its_own_whatever_mode_another_plugin_is_in(run_tests, mode):
    source = """
import asyncio, pytest_asyncio
@pytest_asyncio.fixture
async def loop_of_fixture(): yield type(asyncio.get_running_loop()).__module__
@pytest.mark.gossamer
async def test_ours(loop_of_fixture):
    assert "gossamer._event_loop" == loop_of_fixture == type(asyncio.get_running_loop()).__module__
@pytest.mark.asyncio
async def test_theirs(loop_of_fixture):
    assert "asyncio.unix_events" == loop_of_fixture == type(asyncio.get_running_loop()).__module__
"""
    options = ["-p", "pytest_asyncio.plugin", "-o", "asyncio_default_fixture_loop_scope=function"]

    result = run_tests(source, *options, "-o", f"asyncio_mode={mode}")

    assert {"passed": 2} == result.outcomes, result.output


@needs("pytest_rerunfailures")
def test_a_test_may_be_run_again_by_another_plugin(run_tests):
    source = MARKED + "runs = []\nasync def test_it(): runs.append(1); assert len(runs) == 3\n"

    result = run_tests(source, "-p", "pytest_rerunfailures", "--reruns", "5")

    assert {"passed": 1} == result.outcomes, result.output
    assert "2 rerun" in result.output


HANGS = """
import asyncio, socket, time
def test_hangs():
    left, right = socket.socketpair()
    with left, right:
        left.recv(1)
"""


@needs("pytest_timeout")
@pytest.mark.parametrize("method", ["signal", "thread"])
@pytest.mark.parametrize("func_only", ["true", "false"])
def test_hours_on_the_virtual_clock_are_no_timeout(run_tests, method, func_only):
    source = """
import time
pytestmark = pytest.mark.gossamer(clock="virtual")
@pytest.fixture(scope="module")
async def held(): yield
def test_it(held): time.sleep(3600)
def test_after(held): time.sleep(3600)
"""
    options = ["-p", "pytest_timeout", "--timeout", "60", "--timeout-method", method]

    assert {"passed": 2} == run_tests(source, *options, "-o", f"timeout_func_only={func_only}").outcomes


@needs("pytest_timeout")
def test_a_timeout_of_a_coroutine_test_tells_where_it_waits_and_leaves_nothing(run_tests):
    source = (
        MARKED
        + """
import asyncio, socket
async def test_it():
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        await asyncio.get_running_loop().sock_recv(left, 1)
"""
    )

    result = run_tests(source, "-p", "pytest_timeout", "--timeout", "0.5")

    assert {"failed": 1} == result.outcomes, result.output
    assert "in test_it: await asyncio.get_running_loop().sock_recv(left, 1)" in result.output


@needs("pytest_timeout")
def test_the_thread_of_pytest_timeout_ends_a_test_that_hangs(run_tests):
    with pytest.raises(AssertionError) as caught:
        run_tests(MARKED + HANGS, "-p", "pytest_timeout", "--timeout", "0.5", "--timeout-method", "thread")

    assert "Timeout" in str(caught.value)
    assert "in test_hangs" in str(caught.value)


@needs("pytest_timeout")
def test_a_test_that_hangs_is_ended_by_pytest_timeout(run_tests):
    source = (
        MARKED
        + """
import socket
def test_it():
    left, right = socket.socketpair()
    with left, right:
        left.recv(1)
"""
    )

    result = run_tests(source, "-p", "pytest_timeout", "--timeout", "0.5")

    assert {"failed": 1} == result.outcomes
    assert "Timeout" in result.output
