# SPDX-License-Identifier: Apache-2.0
"""gossamer.testing.TestCase: where its methods run, its clock, its seeds, and what fails a test of it."""

import asyncio
import contextvars
import gc
import queue
import socket
import subprocess
import sys
import textwrap
import threading
import time
import unittest

import gossamer as gs
import pytest
from gossamer.testing import TestCase

HOUR = 3600.0
kept = []


def run(case, method=None):
    """Run the tests of a class, or one; returns the result."""
    result = unittest.TestResult()
    if method is not None:
        case = type(case.__name__, (case,), {"test": method})
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    return result


def problems(result):
    return [text for _test, text in result.failures + result.errors]


def test_methods_of_both_kinds_run_inside_gossamer_in_the_order_of_unittest():
    log = []

    class Tests(TestCase):
        def setUp(self):
            assert gs.current() is None and gs._core.is_virtual()
            log.append("setUp")

        async def asyncSetUp(self):
            await asyncio.sleep(0)
            log.append("asyncSetUp")
            self.addAsyncCleanup(self.clean_up, "async")
            self.addCleanup(log.append, "cleanup")

        async def clean_up(self, kind):
            await asyncio.sleep(0)
            log.append(f"cleanup {kind}")

        async def test_coroutine(self):
            assert "gossamer" in type(asyncio.get_running_loop()).__module__
            log.append("test")

        def test_plain(self):
            thread = threading.Thread(target=lambda: log.append(("test", gs._core.is_virtual())))
            thread.start()
            thread.join()

        async def asyncTearDown(self):
            log.append("asyncTearDown")

        def tearDown(self):
            log.append("tearDown")

    result = run(Tests)

    assert [] == problems(result)
    before, after = ["setUp", "asyncSetUp"], ["asyncTearDown", "tearDown", "cleanup", "cleanup async"]
    assert [*before, "test", *after, *before, ("test", True), *after] == log


def test_a_plain_test_talks_to_a_server_that_its_loop_runs():
    class Tests(TestCase):
        async def asyncSetUp(self):
            self.server = await asyncio.start_server(self.answer, "127.0.0.1", 0)

        async def answer(self, reader, writer):
            writer.write(await reader.readline())
            writer.close()
            await writer.wait_closed()

        def test_it(self):
            with socket.create_connection(self.server.sockets[0].getsockname()) as connection:
                connection.sendall(b"hello\n")
                assert connection.recv(100) == b"hello\n"

        async def asyncTearDown(self):
            self.server.close()
            await self.server.wait_closed()

    assert [] == problems(run(Tests))


def test_context_variables_reach_from_one_method_to_the_next():
    variable = contextvars.ContextVar("variable")

    class Tests(TestCase):
        def setUp(self):
            variable.set("plain")

        async def asyncSetUp(self):
            assert variable.get() == "plain"
            variable.set("coroutine")

        def test_it(self):
            assert variable.get() == "coroutine"

    assert [] == problems(run(Tests))


def test_hours_take_no_time_on_the_virtual_clock():
    class Tests(TestCase):
        clock = "virtual"

        def setUp(self):
            self.start = time.monotonic()

        def test_plain(self):
            time.sleep(HOUR)

        async def test_coroutine(self):
            await asyncio.sleep(HOUR)

        def tearDown(self):
            assert time.monotonic() - self.start == pytest.approx(HOUR)

    assert [] == problems(run(Tests))


async def never_awaited():
    pass


async def fail():
    raise ValueError("lost")


async def lose_an_exception(_self):
    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    del task
    await asyncio.sleep(0)


async def leak_a_task(_self):
    kept.append(asyncio.create_task(asyncio.sleep(999)))


LEFT_BEHIND = {
    "coroutine": (lambda _self: never_awaited() and None, "coroutine 'never_awaited' was never awaited"),
    "thread error": (lambda _self: threading.Thread(target=lambda: 1 / 0).start(), "ZeroDivisionError"),
    "task error": (lose_an_exception, "ValueError: lost"),
    "task": (leak_a_task, "an asyncio task that has not ended"),
    "thread": (lambda _self: threading.Thread(target=time.sleep, args=(999,)).start(), "a thread that has not ended"),
    "descriptor": (lambda _self: kept.append(open("/dev/null")), "is open: /dev/null"),
    "deadlock": (lambda _self: queue.Queue().get(), "every virtual thread waits, and nothing can wake one"),
}


@pytest.mark.parametrize("what", LEFT_BEHIND)
def test_what_a_test_leaves_behind_fails_it(what):
    method, message = LEFT_BEHIND[what]

    result = run(TestCase, method)
    while kept and hasattr(kept[-1], "close"):
        kept.pop().close()
    kept.clear()
    gc.collect()

    [told] = problems(result)
    assert message in told


def test_a_test_may_be_allowed_to_leave_something():
    class Tests(TestCase):
        may_leave = ("descriptors",)

    result = run(Tests, LEFT_BEHIND["descriptor"][0])
    kept.pop().close()

    assert [] == problems(result)


def test_seeds_run_one_test_in_many_orders_which_counts_once():
    orders = set()

    class Tests(TestCase):
        seeds = 20

        def test_it(self):
            order = []
            with gs.scope() as scope:
                for number in range(4):
                    scope.spawn(order.append, number)
            orders.add(tuple(order))

    result = run(Tests)

    assert 1 == result.testsRun
    assert [] == problems(result)
    assert len(orders) > 5


def test_the_first_seed_that_fails_ends_the_test_and_is_told(capsys, monkeypatch):
    runs = []

    class Tests(TestCase):
        seeds = 100

        def test_it(self):
            runs.append(True)
            order = []
            with gs.scope() as scope:
                scope.spawn(order.append, 1)
                scope.spawn(order.append, 2)
            assert order == [1, 2]

    result = run(Tests)

    assert 1 == result.testsRun == len(result.failures)
    assert len(runs) < 100
    seed = capsys.readouterr().out.partition("GOSSAMER_SEED=")[2].partition(" ")[0]
    monkeypatch.setenv("GOSSAMER_SEED", seed)
    assert 1 == len(run(Tests).failures)


def test_a_test_that_is_skipped_or_expected_to_fail_runs_under_one_seed():
    class Tests(TestCase):
        seeds = 10

        def test_skip(self):
            self.skipTest("today")

        @unittest.expectedFailure
        def test_failure(self):
            self.fail()

    result = run(Tests)

    assert (1, 1, 2) == (len(result.skipped), len(result.expectedFailures), result.testsRun)


@pytest.mark.parametrize("arguments", [["-m", "unittest", "-v"], ["-m", "pytest", "-q", "-p", "no:cacheprovider"]])
def test_the_runners_run_it(tmp_path, arguments):
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent("""
            import asyncio, time
            from gossamer.testing import TestCase
            class Tests(TestCase):
                clock, seeds = "virtual", 3
                def test_plain(self): time.sleep(3600)
                async def test_coroutine(self):
                    for number in range(2):
                        with self.subTest(number=number):
                            await asyncio.sleep(3600)
        """)
    )

    done = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )

    assert 0 == done.returncode, done.stdout + done.stderr
    assert "Ran 2 tests" in done.stderr or "2 passed" in done.stdout
