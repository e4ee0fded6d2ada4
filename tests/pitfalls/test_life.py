# SPDX-License-Identifier: Apache-2.0
"""Lifetime, settings, objects made before, imports: PITFALLS 18, 31, 57, 58, 59, 61."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from time import sleep as bound_early

import gossamer as gs
import pytest
from virtual import in_virtual_thread, run_program

made_before = {
    "lock": threading.Lock(),
    "rlock": threading.RLock(),
    "event": threading.Event(),
    "condition": threading.Condition(),
    "queue": queue.Queue(),
    "simple_queue": queue.SimpleQueue(),
    "semaphore": threading.Semaphore(0),
}


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_million_spawns_and_finishes_leave_memory_descriptors_and_maps_flat() -> None:
    """Stacks, records, tasks and what belonged to the threads are used again or freed."""
    program = Path(__file__).with_name("million.py")
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", program], capture_output=True, text=True, timeout=300, check=False
    )

    assert (0, "") == (result.returncode, result.stderr)
    grown = {name: int(value) for name, _, value in (line.rpartition(" ") for line in result.stdout.splitlines())}
    assert 1_000_000 == grown.pop("finished")
    assert grown.pop("resident") < 2 << 20
    assert grown.pop("blocks") < 1_000
    assert {"maps": 0, "descriptors": 0, "OS threads": 0, "objects": 0, "virtual threads": 0} == {
        name: max(value, 0) for name, value in grown.items()
    }


@pytest.mark.skipif("GOSSAMER_MILLION_PARKED" not in os.environ, reason="takes 6 GB of memory: `make test-all`")
def test_a_million_parked_take_at_most_six_gibibytes() -> None:
    """Resident memory and page tables of the whole process."""
    bench = Path(__file__).resolve().parents[2] / "bench"
    command = [sys.executable, "-m", "gossamer", "run", str(bench / "ours" / "parked_memory.py"), "spawn", "1000000"]
    path = os.pathsep.join([str(bench), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, "PYTHONPATH": path}
    )

    assert (0, "") == (result.returncode, result.stderr)
    assert json.loads(result.stdout)["whole_bytes"] <= 6 << 30


@in_virtual_thread
def test_timed_waits_that_are_satisfied_leave_no_timer_behind() -> None:
    """A lock acquired with a time-out of a day; the run ends at once and memory stays flat."""
    lock = threading.Lock()

    def once() -> None:
        lock.acquire()
        with gs.scope() as scope:
            task = scope.spawn(lock.acquire, True, 86_400)
            gs.checkpoint()
            lock.release()
        assert task.result()
        lock.release()

    for _ in range(200):
        once()
    before = resident_bytes()
    for _ in range(5_000):
        once()
    assert resident_bytes() - before < 1 << 20


def test_objects_made_before_gossamer_starts_work() -> None:
    """Locks, queues, events and an early bound name."""

    def main() -> None:
        with gs.scope() as scope:
            made_before["lock"].acquire()
            waiting = [
                scope.spawn(made_before["lock"].acquire),
                scope.spawn(made_before["event"].wait),
                scope.spawn(made_before["queue"].get),
                scope.spawn(made_before["simple_queue"].get),
                scope.spawn(made_before["semaphore"].acquire),
                scope.spawn(bound_early, 0.001),
            ]
            gs.checkpoint()
            assert not any(task.done() for task in waiting)
            made_before["lock"].release()
            made_before["event"].set()
            made_before["queue"].put(1)
            made_before["simple_queue"].put(2)
            made_before["semaphore"].release()
        assert [True, True, 1, 2, True, None] == [task.result() for task in waiting]
        made_before["lock"].release()

    gs.run(main)


def test_import_and_run_leave_the_process_settings_alone() -> None:
    """Recursion limit, handlers, switch interval, hooks, descriptor flags."""

    def settings() -> tuple[object, ...]:
        return (
            sys.getrecursionlimit(),
            [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)],
            sys.getswitchinterval(),
            sys.excepthook,
            threading.excepthook,
            sys.unraisablehook,
            [os.get_blocking(descriptor) for descriptor in (0, 1, 2)],
        )

    before = settings()
    inside = gs.run(settings)

    assert before == inside == settings()


def test_a_hundred_thousand_are_parked_at_once() -> None:
    """More than the kernel allows mappings."""
    result = run_program(
        """
        import threading, gossamer as gs
        gate = threading.Lock(); gate.acquire()
        def wait():
            gate.acquire(); gate.release()
        with gs.scope() as scope:
            for _ in range(100_000):
                scope.spawn(wait)
            gs.checkpoint()
            gate.release()
        print("all ended")
        """
    )

    assert (0, "all ended\n", "") == (result.returncode, result.stdout, result.stderr)


def test_memory_that_runs_out_fails_the_spawn_and_leaves_the_others_running() -> None:
    """A spawn that finds no address space raises; what runs goes on."""
    result = run_program(
        """
        import resource, threading, gossamer as gs
        gate = threading.Lock(); gate.acquire()
        def wait():
            gate.acquire(); gate.release()
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + (700 << 20), resource.RLIM_INFINITY))
        ended = 0
        with gs.scope() as scope:
            try:
                for _ in range(100_000):
                    scope.spawn(wait)
            except (MemoryError, OSError) as error:
                print("refused")
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            gs.checkpoint()
            print(scope.live_tasks > 500)
            gate.release()
        print("all ended")
        """
    )

    assert (0, "refused\nTrue\nall ended\n", "") == (result.returncode, result.stdout, result.stderr)


def test_threads_that_import_the_same_modules_do_not_deadlock(tmp_path) -> None:
    """Two modules that import each other and wait at top level, imported by several threads at once."""
    (tmp_path / "first.py").write_text("import time\ntime.sleep(0.01)\nimport second\nvalue = 1\n")
    (tmp_path / "second.py").write_text("import time\ntime.sleep(0.01)\nimport first\nvalue = 2\n")
    result = run_program(
        """
        import sys, threading
        sys.path.insert(0, sys.argv[1])
        values = []
        def load(name):
            values.append(__import__(name).value)
        threads = [threading.Thread(target=load, args=(("first", "second")[n % 2],)) for n in range(10)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(sorted(values))
        """.replace("sys.argv[1]", repr(str(tmp_path)))
    )

    assert (0, f"{[1] * 5 + [2] * 5}\n", "") == (result.returncode, result.stdout, result.stderr)


def test_uninstalling_restores_every_function() -> None:
    """After the tables are put back a wait blocks as ever, and they can be swapped again."""
    result = run_program(
        """
        from gossamer import _core
        import time, threading
        _core.uninstall()
        time.sleep(0.001)
        lock = threading.Lock()
        print(lock.acquire(), lock.acquire(timeout=0.001))
        """
    )

    assert (0, "True False\n", "") == (result.returncode, result.stdout, result.stderr)


def test_outside_gossamer_nothing_changes() -> None:
    """An ordinary OS thread blocks as before, also while the tables are swapped."""
    left, right = socket.socketpair()
    results: list[object] = []

    def work() -> None:
        results.append(left.recv(1))
        time.sleep(0.001)
        results.append(threading.get_native_id() != threading.main_thread().native_id)

    def main() -> None:
        thread = threading.Thread(target=work)
        thread.start()
        right.send(b"x")
        thread.join()

    gs.run(main)
    left.close()
    right.close()
    assert [b"x", True] == results


def test_parking_in_hot_loops_with_the_jit_on() -> None:
    """Where the interpreter has a JIT, threads park inside its traces and go on right."""
    result = run_program(
        """
        import gossamer as gs
        def work(number):
            total = 0
            for step in range(20_000):
                total += step % 7
                if step % 50 == number:
                    gs.checkpoint()
            return total
        with gs.scope() as scope:
            tasks = [scope.spawn(work, number) for number in range(20)]
        print({task.result() for task in tasks} == {sum(step % 7 for step in range(20_000))})
        """,
        env={**os.environ, "PYTHON_JIT": "1"},
    )

    assert (0, "True\n", "") == (result.returncode, result.stdout, result.stderr)
