# SPDX-License-Identifier: Apache-2.0
"""`await_` in tasks of loops that Gossamer did not start: before its first use in the process, at it, and after it.

Each program runs in a process of its own.
"""

import asyncio
import subprocess
import sys
import textwrap

import pytest

START = """
import asyncio, contextvars, sys, threading, time
import gossamer as gs
from gossamer import _core
factory = asyncio.new_event_loop
if sys.argv[1] == "uvloop":
    import uvloop
    factory = uvloop.new_event_loop
VARIABLE = contextvars.ContextVar("VARIABLE", default=0)
def run(main):
    return asyncio.run(main(), loop_factory=factory)
"""


def outcome(program, loop="stock"):
    command = [sys.executable, "-X", "faulthandler", "-W", "error", "-c", START + textwrap.dedent(program), loop]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "" == result.stderr
    assert 0 == result.returncode
    return result.stdout.split()


both_loops = pytest.mark.parametrize("loop", ["stock", "uvloop"])


@pytest.fixture(autouse=True)
def uvloop_if_needed(request):
    if "loop" in request.fixturenames and request.getfixturevalue("loop") == "uvloop":
        pytest.importorskip("uvloop")


@both_loops
def test_a_program_that_never_uses_the_bridge_stays_on_ordinary_threads(loop):
    program = """
        async def main():
            print(_core.is_virtual(), "gossamer._bridge" in sys.modules)
        run(main)
    """

    assert ["False", "False"] == outcome(program, loop)


WAITS_FOR_ANOTHER_TASK = """
        def plain(event):
            gs.await_(event.wait())
            return "waited"

        async def main():
            event = asyncio.Event()
            async def other():
                event.set()
            task = asyncio.create_task(other())
            {before}
            print(plain(event))
        run(main)
        print(_core.is_virtual())
"""


def test_the_first_call_waits_for_another_task_of_its_loop():
    assert ["waited", "False"] == outcome(WAITS_FOR_ANOTHER_TASK.format(before="assert not _core.is_virtual()"))


@both_loops
def test_a_call_after_the_first_step_waits_for_another_task_of_its_loop(loop):
    before = "gs.await_(asyncio.sleep(0)); await asyncio.sleep(0)"

    assert ["waited", "False"] == outcome(WAITS_FOR_ANOTHER_TASK.format(before=before), loop)


@both_loops
def test_names_that_are_imported_before_make_every_call_the_task_s_own(loop):
    program = """
        from gossamer import await_
        async def main():
            task = asyncio.current_task()
            async def inner():
                await asyncio.sleep(0)
                return asyncio.current_task() is task
            print(await_(inner()), _core.is_virtual())
        run(main)
        print(_core.is_virtual())
    """

    assert ["True", "True", "False"] == outcome(program, loop)


@both_loops
def test_a_blocking_call_blocks_the_loop_as_ever(loop):
    program = """
        from gossamer import await_
        async def main():
            log = []
            async def other():
                log.append("other")
            task = asyncio.create_task(other())
            time.sleep(0.001)
            gate = threading.Lock()
            gate.acquire(timeout=0.001), gate.acquire(timeout=0.001)
            print(len(log))
            await_(task)
            print(*log)
        run(main)
    """

    assert ["0", "other"] == outcome(program, loop)


@both_loops
def test_asyncify_has_a_blocking_call_park_its_task(loop):
    program = """
        from gossamer import asyncify
        async def main():
            both = threading.Barrier(2)
            await asyncio.gather(asyncify(both.wait)(), asyncify(both.wait)())
            print("both")
        run(main)
        print(_core.is_virtual())
    """

    assert ["both", "False"] == outcome(program, loop)


def test_tasks_that_begin_during_the_first_call_do_not_come_to_lie_on_top_of_it():
    """Each waits for the one before: on one stack the first could not go on before the last has ended."""
    program = """
        async def main():
            events = [asyncio.Event() for _ in range(5)]
            log = []
            def plain(number):
                gs.await_(events[number].wait())
                log.append(number)
                if number + 1 < len(events):
                    events[number + 1].set()
            async def task(number):
                plain(number)
            tasks = [asyncio.create_task(task(number)) for number in range(5)]
            asyncio.get_running_loop().call_soon(events[0].set)
            await asyncio.gather(*tasks)
            print(*log)
        run(main)
    """

    assert [*"01234"] == outcome(program)


def test_the_first_call_takes_the_context_and_brings_it_back():
    program = """
        async def inner(token):
            VARIABLE.reset(token)
            await asyncio.sleep(0)
            print(VARIABLE.get())
            VARIABLE.set(2)
        async def main():
            gs.await_(inner(VARIABLE.set(1)))
            print(VARIABLE.get())
        run(main)
    """

    assert ["0", "2"] == outcome(program)


def test_the_first_call_is_cancelled_with_its_task():
    program = """
        async def inner():
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0)
                print("inner", end=" ")
        async def plain():
            try:
                gs.await_(inner())
            except asyncio.CancelledError as error:
                print("plain", *error.args)
                raise
        async def main():
            task = asyncio.create_task(plain())
            asyncio.get_running_loop().call_later(0.001, task.cancel, "enough")
            await asyncio.wait([task])
            print(task.cancelled())
        run(main)
    """

    assert ["inner", "plain", "enough", "True"] == outcome(program)


def test_the_first_call_ends_with_the_run_of_its_loop():
    program = """
        async def plain():
            try:
                gs.await_(asyncio.sleep(3600))
            except asyncio.CancelledError:
                print("cancelled")
                raise
        async def main():
            task = asyncio.create_task(plain())
            await asyncio.sleep(0)
            print("over")
        run(main)
    """

    assert ["over", "cancelled"] == outcome(program)


def test_the_first_call_waits_for_a_future_of_its_loop():
    program = """
        async def main():
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            loop.call_soon(future.set_result, "future")
            for _ in range(3):
                loop.call_soon(int)
            print(gs.await_(future))
            await asyncio.sleep(0)
        run(main)
    """

    assert ["future"] == outcome(program)


def test_the_first_call_raises_what_it_awaited_raised():
    program = """
        async def fail():
            await asyncio.sleep(0)
            raise KeyError("here")
        async def main():
            try:
                gs.await_(fail())
            except KeyError as error:
                print(*error.args)
        run(main)
    """

    assert ["here"] == outcome(program)


@both_loops
def test_the_first_block_has_one_task(loop):
    program = """
        import contextlib
        @contextlib.asynccontextmanager
        async def limit(seconds):
            async with asyncio.timeout(seconds):
                yield asyncio.current_task()
        async def current_task():
            return asyncio.current_task()
        async def main():
            with gs.syncify(limit(None)) as task:
                print(gs.await_(current_task()) is task)
            try:
                with gs.syncify(limit(0.001)):
                    gs.await_(asyncio.sleep(3600))
            except TimeoutError:
                print("TimeoutError")
            await asyncio.sleep(0)
            print(task.done(), len(asyncio.all_tasks()))
        run(main)
    """

    assert ["True", "TimeoutError", "True", "1"] == outcome(program, loop)


def test_the_first_block_that_is_left_open_ends_with_the_run_of_its_loop():
    program = """
        import contextlib
        @contextlib.asynccontextmanager
        async def manager():
            yield
        async def main():
            gs.syncify(manager()).__enter__()
        run(main)
        print("over")
    """

    assert ["over"] == outcome(program)


def test_the_first_call_on_a_loop_in_c_runs_apart():
    pytest.importorskip("uvloop")
    program = """
        async def inner(outer):
            await asyncio.sleep(0)
            return asyncio.get_running_loop() is outer
        async def main():
            loop = asyncio.get_running_loop()
            print(gs.await_(inner(loop)))
            await asyncio.sleep(0)
            print(gs.await_(inner(loop)))
        run(main)
    """

    assert ["False", "True"] == outcome(program, "uvloop")


def test_the_first_call_on_a_loop_in_c_that_cannot_be_says_what_to_do():
    pytest.importorskip("uvloop")
    program = """
        async def main():
            future = asyncio.get_running_loop().create_future()
            try:
                gs.await_(future)
            except RuntimeError as error:
                print("import await_ before the loop runs" in str(error))
            asyncio.get_running_loop().call_soon(future.set_result, "result")
            await asyncio.sleep(0)
            print(gs.await_(future))
        run(main)
    """

    assert ["True", "result"] == outcome(program, "uvloop")


def test_each_thread_with_a_loop_is_a_carrier_while_it_runs_it():
    program = """
        from gossamer import await_
        async def inner():
            await asyncio.sleep(0)
            return _core.is_virtual()
        async def main():
            return await_(inner())
        seen = []
        def work():
            seen.append((run(main), _core.is_virtual()))
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(seen == 3 * [(True, False)])
    """

    assert ["True"] == outcome(program)


def test_a_loop_of_a_daemon_thread_that_runs_at_the_end_of_the_program():
    program = """
        from gossamer import await_
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        async def inner():
            return await_(asyncio.sleep(0, "daemon"))
        print(asyncio.run_coroutine_threadsafe(inner(), loop).result())
    """
    command = [sys.executable, "-c", START + textwrap.dedent(program), "stock"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert (0, "daemon\n", "") == (result.returncode, result.stdout, result.stderr)


def test_gossamer_run_inside_of_such_a_task():
    program = """
        from gossamer import await_
        async def main():
            def virtual():
                with gs.scope() as scope:
                    return scope.spawn(int, "7").result()
            print(gs.run(virtual))
            await asyncio.sleep(0)
            async def coroutine():
                return 8
            print(gs.run(coroutine))
        run(main)
        print(gs.run(int))
    """

    assert ["7", "8", "0"] == outcome(program)


def test_run_once_is_what_it_was_written_for():
    """The loop is run from within a step by its own `_run_once`, which takes as many handles as were there before."""
    source = asyncio.BaseEventLoop._run_once.__code__

    assert {"_ready", "popleft", "_cancelled"} <= set(source.co_names)
