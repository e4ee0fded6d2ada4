# SPDX-License-Identifier: Apache-2.0
"""Fixtures of every kind and scope work with each other; the loop of the asynchronous ones runs beside plain code."""

import pytest

MARKED = "import asyncio, socket, threading, time\npytestmark = pytest.mark.gossamer\n"
SERVER = """
async def answer(reader, writer):
    writer.write(await reader.readline())
    writer.close()
    await writer.wait_closed()
@pytest.fixture
async def server(): return await asyncio.start_server(answer, "127.0.0.1", 0)  # leaves no task
def ask(server):
    with socket.create_connection(server.sockets[0].getsockname()) as connection:
        connection.sendall(b"hello\\n")
        return connection.recv(100)
@pytest.fixture
def answer_to_fixture(server):
    yield ask(server)
    assert b"hello\\n" == ask(server)
    server.close()
"""


@pytest.mark.parametrize("scope", ["function", "class", "module", "package", "session"])
def test_fixtures_of_different_kinds_depend_on_each_other_and_end_in_reverse(run_tests, scope):
    source = (
        MARKED
        + f"""
log = []
@pytest.fixture(scope={scope!r})
async def first(): await asyncio.sleep(0); log.append("+first"); yield 1; await asyncio.sleep(0); log.append("-first")
@pytest.fixture(scope={scope!r})
def second(first): time.sleep(0); log.append("+second"); yield first + 1; time.sleep(0); log.append("-second")
@pytest.fixture(scope={scope!r})
async def third(second): log.append("+third"); yield second + 1; log.append("-third")
@pytest.fixture(scope={scope!r})
def fourth(third): return third + 1
class TestOne:
    def test_plain(self, fourth): assert 4 == fourth
class TestOther:
    async def test_coroutine(self, fourth): assert 4 == fourth
@pytest.fixture(scope="session", autouse=True)
def check():
    yield
    once = ["+first", "+second", "+third", "-third", "-second", "-first"]
    assert log in (once, once * 2)
"""
    )

    result = run_tests(source)

    assert {"passed": 2} == result.outcomes, result.output


@pytest.mark.parametrize("test", ["def", "async def"])
@pytest.mark.parametrize("name", ["plain", "coroutine", "generator", "async_generator"])
def test_a_test_asks_for_a_fixture_while_it_runs(run_tests, test, name):
    source = (
        MARKED
        + f"""
@pytest.fixture
def plain(): return 1
@pytest.fixture
async def coroutine(): await asyncio.sleep(0); return 1
@pytest.fixture
def generator(): yield 1
@pytest.fixture
async def async_generator(): await asyncio.sleep(0); yield 1; await asyncio.sleep(0)
@pytest.fixture(autouse=True)
async def beside(): yield
{test} test_it(request): assert 1 == request.getfixturevalue({name!r})
"""
    )

    result = run_tests(source)

    assert {"passed": 1} == result.outcomes, result.output


def test_plain_fixtures_and_tests_talk_to_the_server_of_an_async_fixture(run_tests):
    source = MARKED + SERVER + "def test_it(server, answer_to_fixture): assert b'hello\\n' == ask(server)\n"

    result = run_tests(source, "-o", "faulthandler_timeout=30", "-o", "faulthandler_exit_on_timeout=true")

    assert {"passed": 1} == result.outcomes, result.output


def test_what_a_plain_test_awaits_runs_on_the_loop_of_the_fixtures(run_tests):
    source = (
        MARKED
        + """
@pytest.fixture
async def channel(): channel = asyncio.Queue(); await channel.put(asyncio.get_running_loop()); return channel
async def loop(): return asyncio.get_running_loop()
def test_it(channel): assert gossamer.await_(channel.get()) is gossamer.await_(loop())
def test_without_a_fixture(): gossamer.await_(asyncio.sleep(0))
"""
    )

    result = run_tests(source)

    assert {"passed": 2} == result.outcomes, result.output


def test_parametrised_and_autouse_async_fixtures(run_tests):
    source = (
        MARKED
        + """
seen = []
@pytest.fixture(params=["a", "b"], scope="module")
async def letter(request): yield request.param
@pytest.fixture(autouse=True)
async def note(letter): seen.append(letter); yield
def test_one(letter): assert seen == [letter] or seen == ["a", "a", letter]
async def test_two(letter): assert seen[-1] == letter
"""
    )

    result = run_tests(source, "-v")

    assert {"passed": 4} == result.outcomes, result.output
    assert "test_one[a]" in result.output


@pytest.mark.parametrize(
    ("fixture", "message"),
    [
        ("async def bad(): yield; raise ValueError('at the end')", "ValueError: at the end"),
        ("async def bad(): raise ValueError('at the start')", "ValueError: at the start"),
        ("async def bad(): yield 1; yield 2", "must yield exactly once"),
        ("async def bad():\n    if False: yield", "must yield"),
    ],
)
def test_errors_of_async_fixtures_are_those_of_the_test_that_uses_them(run_tests, fixture, message):
    source = MARKED + f"@pytest.fixture\n{fixture}\ndef test_bad(bad): pass\ndef test_good(): pass\n"

    result = run_tests(source)

    assert message in result.output
    assert 1 == result.outcomes["error"]
    assert "test_it.py::test_bad" in result.output.partition("short test summary")[2]


def test_a_plain_session_fixture_does_not_keep_other_tests_inside_gossamer(run_tests):
    source = """
@pytest.fixture(scope="session")
def number(): return 1
@pytest.mark.gossamer
def test_marked(number, tmp_path): assert gossamer._core.is_virtual()
def test_unmarked(): assert not gossamer._core.is_virtual()
"""

    assert {"passed": 2} == run_tests(source).outcomes


def test_threads_of_an_unmarked_test_are_ordinary_though_a_fixture_keeps_the_hub(run_tests):
    source = """
import threading
@pytest.fixture(scope="session")
async def held(): yield
@pytest.mark.gossamer
def test_marked(held): pass
def test_unmarked():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(gossamer._core.is_virtual()))
    thread.start()
    thread.join()
    assert [False] == seen
"""

    assert {"passed": 2} == run_tests(source).outcomes
