# SPDX-License-Identifier: Apache-2.0
"""A program has `threading` when it asks for it, and then as if it had been there from the start."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

LATE = "import sys; assert 'threading' not in sys.modules\n"


def run_program(source: str) -> tuple[int, str, str]:
    """Run ``source`` under ``gossamer run``."""
    command = [sys.executable, "-m", "gossamer", "run", "-c", LATE + textwrap.dedent(source)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return result.returncode, result.stdout, result.stderr


def test_a_program_that_does_not_import_threading_does_not_have_it() -> None:
    """Nor what takes as long: start-up is every child's."""
    program = """
    import _thread, gossamer
    gossamer.sleep(0.001)
    _thread.start_new_thread(gossamer.checkpoint, ())
    gossamer.checkpoint()
    late = ["threading", "queue", "concurrent.futures", "asyncio", "typing", "dataclasses", "traceback"]
    print([name for name in late if name in sys.modules])
    """

    assert (0, "[]\n", "") == run_program(program)


@pytest.mark.parametrize(
    "importing",
    ["import threading", "gossamer.checkpoint(); import concurrent.futures", "__import__('threading')"],
)
def test_a_task_that_imports_threading_has_an_object_of_its_own(importing: str) -> None:
    """The class that stands for a task is in place when the import is over."""
    program = f"""
    import gossamer
    def work():
        {importing}
        thread = sys.modules["threading"].current_thread()
        return thread.name, thread.is_alive()
    with gossamer.scope() as scope:
        task = scope.spawn(work)
    print(*task.result())
    """

    assert (0, "Task-1 (work) True\n", "") == run_program(program)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="3.12 takes the thread that imports threading for the main one")
def test_an_os_thread_that_imports_threading_first_is_not_the_main_thread() -> None:
    """Nor is nobody: the interpreter's own word for it changes as virtual threads are switched."""
    program = """
    import _thread, gossamer
    def work():
        import threading
        done.release()
    done = _thread.allocate_lock()
    done.acquire()
    from gossamer import _core
    _core.make_threads_virtual(False)
    _thread.start_new_thread(work, ())
    done.acquire()
    import threading
    print(threading.current_thread() is threading.main_thread())
    with gossamer.scope() as scope:
        print(scope.spawn(lambda: threading.current_thread().name).result())
    """

    assert (0, "True\nTask-1 (<lambda>)\n", "") == run_program(program)


def test_a_trace_function_that_is_set_after_a_late_import_is_each_new_task_s() -> None:
    """threading.settrace() is asked at each start."""
    program = """
    import gossamer
    def traced():
        return 1
    def trace(frame, event, argument):
        if frame.f_code is traced.__code__:
            print(event)
    with gossamer.scope() as scope:
        scope.spawn(traced)
    import threading
    threading.settrace(trace)
    with gossamer.scope() as scope:
        scope.spawn(traced)
    """

    assert (0, "call\n", "") == run_program(program)


def test_a_program_forked_in_a_thread_without_threading_ends_normally() -> None:
    """The hook in the child finds no main thread to end."""
    program = """
    import _thread, os, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of fork() with threads
    def work():
        pid = os.fork()
        if pid == 0:
            print("threading" in sys.modules, flush=True)
            os._exit(0)
        print(os.waitpid(pid, 0)[1], flush=True)
        done.release()
    done = _thread.allocate_lock()
    done.acquire()
    _thread.start_new_thread(work, ())
    done.acquire()
    """

    assert (0, "False\n0\n", "") == run_program(program)
