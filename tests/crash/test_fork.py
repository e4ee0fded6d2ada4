# SPDX-License-Identifier: Apache-2.0
"""fork in a virtual thread, on the main thread and in an OS thread: the child can use Gossamer, the parent goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

USE_GOSSAMER = """
import os, queue, sys, threading, time

def use_gossamer():
    # Threads, locks, queues, sleeps, and the Thread object of the thread that forked.
    assert threading.current_thread().is_alive()
    assert threading.current_thread() is threading.main_thread()
    assert threading.enumerate() == [threading.current_thread()]
    channel = queue.Queue()
    threads = [threading.Thread(target=lambda: (time.sleep(0.001), channel.put(1))) for _ in range(5)]
    for thread in threads:
        thread.start()
    total = sum(channel.get() for _ in threads)
    for thread in threads:
        thread.join()
    assert total == 5
    lock = threading.RLock()
    with lock, lock:
        time.sleep(0)

def fork_and_wait():
    pid = os.fork()
    if pid == 0:
        try:
            use_gossamer()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@pytest.fixture
def run_to_end(run_program) -> Callable[..., None]:
    """Run a program's source under ``gossamer run``, which must get to its end and say nothing."""

    def run(source: str, **options: Any) -> None:
        result = run_program(source + "\nprint('ok')\n", **options)
        assert (0, "ok\n", "") == (result.returncode, result.stdout, result.stderr)

    return run


def test_fork_on_the_main_thread(run_to_end):
    run_to_end(USE_GOSSAMER + "assert fork_and_wait() == 0; use_gossamer()")


def test_fork_in_a_virtual_thread(run_to_end):
    run_to_end(
        USE_GOSSAMER
        + """
codes = []
thread = threading.Thread(target=lambda: codes.append(fork_and_wait()))
thread.start()
thread.join()
assert codes == [0]
use_gossamer()
"""
    )


def test_fork_in_an_os_thread(run_to_end):
    run_to_end(
        USE_GOSSAMER
        + """
codes = []
thread = threading.Thread(target=lambda: codes.append(fork_and_wait()))
thread.start()
thread.join()
assert codes == [0]
""",
        options=("--os-threads",),
    )


def test_fork_in_an_os_thread_and_run_in_the_child(run_to_end):
    run_to_end(
        """
import os, threading
import gossamer as gs

def child():
    with gs.scope() as scope:
        return scope.spawn(lambda: 7).result()

def fork_and_run():
    pid = os.fork()
    if pid == 0:
        os._exit(gs.run(child))
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

codes = []
thread = threading.Thread(target=fork_and_run)
thread.start()
thread.join()
assert codes == [7], codes
""",
        options=("--os-threads",),
    )


def test_fork_in_a_task_with_others_parked(run_to_end):
    run_to_end(
        """
import os, threading, time
import gossamer as gs

event = threading.Event()

def fork():
    held.acquire()
    pid = os.fork()
    if pid == 0:
        with gs.scope() as scope:
            code = scope.spawn(lambda: 9).result()
        os._exit(code)
    held.release()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

held = threading.Lock()
with gs.scope() as scope:
    others = [scope.spawn(event.wait) for _ in range(50)]
    sleepers = [scope.spawn(time.sleep, 0.001) for _ in range(50)]
    gs.checkpoint()
    assert scope.spawn(fork).result() == 9
    event.set()
"""
    )


def test_a_forked_child_that_returns_from_its_thread_ends(run_to_end):
    run_to_end(
        """
import os, threading

def fork():
    pids.append(os.fork())

pids = []
thread = threading.Thread(target=fork)
thread.start()
thread.join()
assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
"""
    )


@pytest.mark.parametrize("where", ["main", "thread"])
def test_multiprocessing_by_fork(run_to_end, where):
    call = "work()" if where == "main" else "t = threading.Thread(target=work); t.start(); t.join()"
    run_to_end(
        f"""
import multiprocessing, threading

def square(number):
    return number * number

def work():
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(square(6)))
    process.start()
    process.join()
    results.append((receiver.recv(), process.exitcode))

results = []
{call}
assert results == [(36, 0)], results
"""
    )


def test_locks_of_the_standard_library_are_free_in_the_child(run_to_end):
    run_to_end(
        """
import concurrent.futures, logging, os, queue, threading
import gossamer as gs

logging.basicConfig(level=logging.CRITICAL)
handler_lock = logging.getLogger().handlers[0].lock
event = threading.Event()

def hold():
    with handler_lock:
        event.wait()

with gs.scope() as scope:
    scope.spawn(hold)
    gs.checkpoint()
    pid = os.fork()
    if pid == 0:
        logging.getLogger().warning("not held here")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    event.set()
"""
    )


def test_the_main_thread_has_ended_in_the_child_of_a_virtual_thread(run_program):
    """Joining it in the child returns, as it does where an OS thread forked."""
    result = run_program(
        """
        import os, threading, warnings
        warnings.simplefilter("ignore")
        main = threading.current_thread()

        def work():
            child = os.fork()
            if child:
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            else:
                thread = threading.Thread(target=main.join)
                thread.start()
                thread.join()
                os._exit(7)

        threading.Thread(target=work).start()
        """
    )

    assert (0, "7\n", "") == (result.returncode, result.stdout, result.stderr)
