# SPDX-License-Identifier: Apache-2.0
"""The ends of parked tasks: closed loops, the end of the program, forks, other threads, uninstalling."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.machinery
import io
import os
import queue
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import gossamer as gs
import pytest
from gossamer import _core
from loops import new_loop
from tasks import in_task, settle


def run_program(source: str, *, plain: bool = False) -> subprocess.CompletedProcess[str]:
    runner = ["-c"] if plain else ["-m", "gossamer", "run", "-c"]
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", *runner, textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONWARNINGS": "ignore::DeprecationWarning"},
    )


def park_three_tasks_and_close_their_loop(log: list[str], messages: list[str]) -> list[weakref.ref]:
    gate = queue.SimpleQueue()

    async def getter() -> None:
        try:
            gate.get()
        except BaseException as error:
            log.append(type(error).__name__)
            raise

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, context: messages.append(context["message"]))
    tasks = [loop.create_task(getter()) for _ in range(3)]
    loop.run_until_complete(settle())
    loop.close()
    return [weakref.ref(task) for task in tasks] + [weakref.ref(task.get_coro()) for task in tasks]


def test_a_closed_loop_leaves_its_parked_tasks_to_the_garbage_collector():
    """As on plain asyncio: "Task was destroyed", and the coroutine is closed where it waits."""
    log: list[str] = []
    messages: list[str] = []

    def main() -> None:
        gone = park_three_tasks_and_close_their_loop(log, messages)
        gc.collect()
        gc.collect()
        assert [None] * 6 == [reference() for reference in gone]
        assert 0 == _core.statistics()["parked_steps"]

    gs.run(main)

    assert ["GeneratorExit"] * 3 == log
    assert ["Task was destroyed but it is pending!"] * 3 == messages


def test_a_task_that_sleeps_lives_though_nobody_refers_to_it():
    log = []

    async def sleeper() -> None:
        await asyncio.sleep(0)
        threading.Event().wait(0.001)
        log.append("woken")

    async def main() -> None:
        asyncio.create_task(sleeper())  # noqa: RUF006 - that nobody keeps it is what this is about
        await settle()
        gc.collect()
        while not log:
            await asyncio.sleep(0)

    gs.run(main)


def test_asyncio_run_cancels_parked_tasks_whose_clean_up_may_wait():
    log = []
    gate = queue.SimpleQueue()

    async def getter() -> None:
        try:
            gate.get()
        finally:
            gs.checkpoint()
            log.append("cleaned up")

    async def main() -> None:
        tasks.append(asyncio.create_task(getter()))
        tasks.append(asyncio.create_task(getter()))
        await settle()

    tasks: list[asyncio.Task] = []
    gs.run(main)

    assert ["cleaned up"] * 2 == log


def test_asyncio_run_on_a_loop_of_ours_cancels_parked_tasks_whose_clean_up_may_wait():
    """An ordinary thread used to stop being a carrier between the two runs, which closed what was parked."""
    log = []
    gate = queue.SimpleQueue()

    async def getter() -> None:
        try:
            gate.get()
        except asyncio.CancelledError:
            time.sleep(0.001)
            log.append("cancelled")
            raise

    async def main() -> None:
        tasks.append(asyncio.create_task(getter()))
        await settle()

    tasks: list[asyncio.Task] = []
    asyncio.run(main(), loop_factory=gs.new_event_loop)

    assert ["cancelled"] == log
    assert tasks[0].cancelled()
    assert not _core.is_virtual()


@pytest.mark.parametrize("make_loop", [gs.new_event_loop, lambda: gs.EventLoopPolicy().new_event_loop()])
@pytest.mark.filterwarnings("ignore:.*EventLoopPolicy.*:DeprecationWarning")
def test_a_task_that_is_parked_when_its_loop_stops_goes_on_in_the_next_run(make_loop):
    gate = queue.SimpleQueue()

    async def getter() -> list[int]:
        return [gate.get(), gate.get()]

    with contextlib.closing(make_loop()) as loop:
        task = loop.create_task(getter())
        loop.run_until_complete(settle())
        gate.put(1)
        loop.run_until_complete(settle())
        parked = task.done()
        gate.put(2)

        assert [1, 2] == loop.run_until_complete(task)

    assert not parked
    assert not _core.is_virtual()


def test_between_two_runs_the_thread_can_do_what_it_likes():
    gate = queue.SimpleQueue()

    async def getter() -> int:
        return gate.get()

    async def sleep() -> str:
        time.sleep(0.001)
        return "slept"

    with new_loop() as loop:
        task = loop.create_task(getter())
        loop.run_until_complete(settle())
        results = [
            gs.run(lambda: time.sleep(0.001)),
            gs.run(sleep),
            asyncio.run(sleep(), loop_factory=gs.new_event_loop),
        ]
        thread = threading.Thread(target=gate.put, args=[3])
        thread.start()
        thread.join()

        assert 3 == loop.run_until_complete(task)

    assert [None, "slept", "slept"] == results
    assert not _core.is_virtual()


def test_closing_a_loop_closes_its_parked_tasks_and_leaves_those_of_others():
    """On an ordinary thread, which is one again when nothing is left to go on."""
    log = []
    gate = queue.SimpleQueue()

    async def getter(name: str, gate: queue.SimpleQueue) -> None:
        try:
            log.append((name, gate.get()))
        except GeneratorExit:
            log.append((name, "closed"))
            raise

    with new_loop() as other:
        with new_loop() as loop:
            kept = loop.create_task(getter("one", queue.SimpleQueue()))
            kept._log_destroy_pending = False
            task = other.create_task(getter("other", gate))
            for each in (loop, other, loop):
                each.run_until_complete(settle())
        assert _core.is_virtual()
        gate.put(1)
        other.run_until_complete(task)

    assert [("other", 1), ("one", "closed")] == log
    assert not kept.done()
    assert not _core.is_virtual()


@pytest.mark.parametrize("make_loop", [gs.new_event_loop, asyncio.new_event_loop])
def test_a_task_that_gave_way_may_outlive_its_loop(make_loop):
    """It used to keep the address of what joined it to its loop, which a dump then read."""
    tasks = []

    async def give_way() -> None:
        gs.checkpoint()

    def main() -> None:
        for _ in range(3):
            loop = make_loop()
            tasks.append(loop.create_task(give_way()))
            tasks[-1]._log_destroy_pending = False
            loop.call_soon(loop.stop)
            loop.run_forever()
            loop.close()
        del loop
        gc.collect()
        gs.dump(file=output)

    output = io.StringIO()
    gs.run(main)

    assert 3 == output.getvalue().count("give_way): parked in a checkpoint")


def test_closing_a_loop_closes_its_tasks_that_gave_way():
    async def give_way() -> None:
        gs.checkpoint()

    with new_loop() as loop:
        kept = loop.create_task(give_way())
        kept._log_destroy_pending = False
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert _core.is_virtual()

    assert kept.get_coro().cr_frame is None
    assert not _core.is_virtual()


def test_a_thread_that_closed_its_loop_leaves_no_task_parked():
    def run_and_close() -> None:
        with new_loop() as loop:
            tasks.append(loop.create_task(getter()))
            tasks[-1]._log_destroy_pending = False
            loop.run_until_complete(settle())
        assert not _core.is_virtual()
        log.append("closed")

    async def getter() -> None:
        queue.SimpleQueue().get()

    tasks: list[asyncio.Task] = []
    log: list[str] = []
    thread = threading.Thread(target=run_and_close)
    thread.start()
    thread.join()

    assert ["closed"] == log
    _core.uninstall()  # refused while a task is parked anywhere


def test_a_program_may_end_with_a_parked_task_of_a_loop_that_ran_on_an_ordinary_thread():
    result = run_program(
        """
        import asyncio, queue, gossamer
        async def getter():
            try: queue.SimpleQueue().get()
            finally: print("closed")
        async def settle():
            for _ in range(5): await asyncio.sleep(0)
        loop = gossamer.new_event_loop()
        loop.set_exception_handler(lambda *_: None)
        task = loop.create_task(getter())
        loop.run_until_complete(settle())
        print("end")
        """,
        plain=True,
    )

    assert (0, "end\nclosed\n", "") == (result.returncode, result.stdout, result.stderr)


def test_what_is_parked_when_run_ends_is_closed():
    log = []
    gate = queue.SimpleQueue()

    async def getter() -> None:
        try:
            gate.get()
        finally:
            log.append("closed")

    def main() -> asyncio.Task:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)
        task = loop.create_task(getter())
        loop.run_until_complete(settle())
        return task

    task = gs.run(main)
    assert ["closed"] == log
    task.get_loop().close()


def test_a_coroutine_that_waits_while_it_is_closed_blocks_until_it_is_done():
    log = []
    gate = queue.SimpleQueue()

    async def getter() -> None:
        try:
            gate.get()
        finally:
            threading.Thread(target=gate.put, args=["last"]).start()
            log.append(gate.get())

    def main() -> asyncio.Task:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)
        task = loop.create_task(getter())
        loop.run_until_complete(settle())
        return task

    task = gs.run(main)
    assert ["last"] == log
    task.get_loop().close()


def test_a_program_may_end_with_a_parked_task_in_a_global():
    result = run_program("""
        import asyncio, queue
        async def getter():
            try: queue.SimpleQueue().get()
            finally: print("closed")
        async def settle():
            for _ in range(5): await asyncio.sleep(0)
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)
        task = loop.create_task(getter())
        loop.run_until_complete(settle())
        print("end")
    """)

    assert (0, "end\nclosed\n") == (result.returncode, result.stdout)


def test_a_parked_coroutine_that_another_thread_finds_dead_is_closed_by_its_own():
    log: list[str] = []

    def main() -> None:
        gone = park_three_tasks_and_close_their_loop(log, [])
        collector = threading.Thread(target=gc.collect)
        collector.start()
        collector.join()
        asyncio.run(park_once())
        gc.collect()
        assert [None] * 6 == [reference() for reference in gone]

    async def park_once() -> None:
        gate = queue.SimpleQueue()

        async def getter() -> None:
            gate.get()

        task = asyncio.create_task(getter())
        await settle()
        gate.put(None)
        await task

    gc.disable()
    try:
        gs.run(main)
    finally:
        gc.enable()

    assert ["GeneratorExit"] * 3 == log


def test_a_loop_continued_on_another_thread_is_refused():
    """A stack stays on its thread."""
    errors = []
    gate = queue.SimpleQueue()

    async def getter() -> None:
        gate.get()

    def main() -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(getter())
        loop.run_until_complete(settle())
        gate.put(None)

        def go_on() -> None:
            try:
                loop.run_until_complete(task)
            except RuntimeError as error:
                errors.append(str(error))

        thread = threading.Thread(target=go_on)
        thread.start()
        thread.join()
        loop.close()

    gs.run(main)

    assert ["the coroutine is parked in a blocking call on another thread"] == errors


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@in_task
async def test_a_child_forked_in_a_task_and_its_parent_go_on():
    gate = queue.SimpleQueue()

    async def getter() -> str:
        return gate.get()

    async def forker() -> int:
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    task = asyncio.create_task(getter())
    await settle()

    assert 7 == await asyncio.create_task(forker())
    gate.put("given")
    assert "given" == await task


def test_a_forked_child_may_run_a_loop_of_its_own():
    result = run_program("""
        import asyncio, gc, os, queue
        gate = queue.SimpleQueue()
        async def getter(): return gate.get()
        async def tasks():
            task = asyncio.create_task(getter())
            await asyncio.sleep(0)
            gate.put("given")
            return await task
        async def main():
            parked = asyncio.create_task(getter())
            await asyncio.sleep(0)
            pid = os.fork()
            if pid == 0:
                del parked
                gc.collect()
                asyncio.events._set_running_loop(None)
                os._exit(0 if child() == "given" else 1)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            gate.put("parent")
            print(await parked)
        def child():
            import threading
            results = []
            thread = threading.Thread(target=lambda: results.append(asyncio.run(tasks())))
            thread.start()
            thread.join()
            return results[0]
        asyncio.run(main())
    """)

    assert (0, "0\nparent\n") == (result.returncode, result.stdout), result.stderr


def test_uninstalling_is_refused_while_a_task_is_parked():
    async def main() -> None:
        gate = queue.SimpleQueue()

        async def getter() -> None:
            gate.get()

        task = asyncio.create_task(getter())
        await settle()
        with pytest.raises(RuntimeError, match="1 tasks are parked"):
            _core.uninstall()
        gate.put(None)
        await task

    gs.run(main)


def test_uninstalling_restores_every_entry_of_coroutines():
    result = run_program(
        """
        import ctypes, sys
        async def coroutine(): pass
        kind = type(coroutine.__code__ and (c := coroutine())); c.close()
        def words():
            # tp_as_async, tp_methods with its three entries, and tp_finalize.
            pointers = ctypes.cast(id(kind) + object.__basicsize__, ctypes.POINTER(ctypes.c_void_p))
            slots = ctypes.cast(pointers[8], ctypes.POINTER(ctypes.c_void_p))[0:4]
            table = ctypes.cast(pointers[27], ctypes.POINTER(ctypes.c_void_p))[0:12]
            return slots, table, pointers[47]
        import asyncio
        before = words()
        import gossamer as gs
        from gossamer import _core
        inside = gs.run(words)
        _core.uninstall()
        print(before != inside, before == words())
        """,
        plain=True,
    )

    assert (0, "True True\n") == (result.returncode, result.stdout), result.stderr


def test_a_program_without_asyncio_imports_none_and_keeps_its_coroutines_entries():
    result = run_program("""
        import sys
        from gossamer import _core
        async def coroutine(): return 1
        try: coroutine().send(None)
        except StopIteration as stop: print(stop.value)
        print("asyncio" in sys.modules, _core.statistics()["steps"])
    """)

    assert (0, "1\nFalse 0\n") == (result.returncode, result.stdout), result.stderr


def test_tasks_stay_off_fibers_once_the_greenlet_extension_is_loaded():
    """It copies slices of the C stack: two of its greenlets on two of our stacks would overwrite each other."""
    if importlib.machinery.PathFinder.find_spec("greenlet") is None:  # not imported here: the other tests park
        pytest.skip("needs the greenlet package")
    result = run_program("""
        import asyncio, queue, sys, threading
        sys.meta_path = [finder for finder in sys.meta_path if "gossamer" not in type(finder).__module__]
        import greenlet
        from gossamer import _core
        log = []
        async def getter(gate):
            threading.Timer(0.01, gate.put, [1]).start()
            gate.get()
            log.append("getter")
        async def other(): log.append("other")
        async def main(): await asyncio.gather(getter(queue.SimpleQueue()), other())
        asyncio.run(main())
        asyncio.run(main())
        print(log, _core.statistics()["steps"])
    """)

    assert (0, "['getter', 'other', 'getter', 'other'] 0\n") == (result.returncode, result.stdout), result.stderr
    assert 1 == result.stderr.count("greenlet extension is loaded")


INTERPRETER = """
import asyncio, queue
async def main():
    gate = queue.SimpleQueue()
    async def getter(): return gate.get()
    tasks = [asyncio.create_task(getter()) for _ in range(5)]
    for _ in range(5): await asyncio.sleep(0)
    for number in range(5): gate.put(number)
    return await asyncio.gather(*tasks)
import gossamer as gs
assert gs.run(main) == list(range(5))
"""


@pytest.mark.skipif(sys.version_info < (3, 13), reason="plain 3.12 crashes with asyncio in two interpreters")
def test_tasks_park_in_interpreters_with_a_gil_of_their_own():
    from own_gil import create, interpreters, run

    import_path = f"import sys; sys.path[:] = {sys.path!r}\n"
    results = []

    def run_in_one() -> None:
        interpreter = create()
        try:
            results.append(run(interpreter, import_path + INTERPRETER))
        finally:
            interpreters.destroy(interpreter)

    threads = [threading.Thread(target=run_in_one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [None, None] == results
