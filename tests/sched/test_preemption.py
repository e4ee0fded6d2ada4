# SPDX-License-Identifier: Apache-2.0
"""A virtual thread that computes does not stop others, and nobody notices that it was parked.

Each program runs in a child, once for each way to park: in a pending call, and by events of sys.monitoring. Where one
spins until another has run, it ends only if preemption works; a child that hangs is ended by faulthandler with the
stacks in its errors.
"""

import os
import subprocess
import sys
import textwrap

import pytest


@pytest.fixture(autouse=True, params=["pending calls", "events"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a virtual thread that computes is parked."""
    if request.param == "events":
        monkeypatch.setenv("GOSSAMER_PREEMPTION", "monitoring")
    return request.param


PRELUDE = """
import faulthandler
faulthandler.dump_traceback_later(60, exit=True)
import sys, threading, time
import gossamer as gs
from gossamer import _core

def preemptions():
    return _core.statistics()["preemptions"]

def spin_until(condition):
    while not condition():
        pass
"""


def run_program(program: str, *, environment: dict[str, str] | None = None) -> list[str]:
    """The lines that the program prints; it must end with exit code 0."""
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(environment or {})},
    )
    assert 0 == result.returncode, result.stderr
    return result.stdout.splitlines()


FIRST_HOG_THEN_SETTER = """
seen = []

def hog():
    while not seen:
        pass
    return "ended"

def main():
    with gs.scope() as scope:
        task = scope.spawn(hog)
        scope.spawn(seen.append, 1)
    print(task.result())

gs.run(main)
"""


def test_a_plain_loop_lets_others_run():
    assert ["ended"] == run_program(FIRST_HOG_THEN_SETTER)


def test_a_plain_loop_lets_others_run_where_there_are_no_timers_on_cpu_clocks():
    assert ["ended"] == run_program(FIRST_HOG_THEN_SETTER, environment={"GOSSAMER_WATCH_CLOCK": "wall"})


def test_python_called_from_c_is_preempted():
    """A generator under ``sum`` and a sort key: the C function between is no reason to wait."""
    assert ["1", "[0, 1]"] == run_program("""
        seen = []

        def numbers():
            spin_until(lambda: seen)
            yield 1

        def key(item):
            spin_until(lambda: len(seen) > 1)
            return item

        def main():
            with gs.scope() as scope:
                total = scope.spawn(lambda: sum(numbers()))
                ordered = scope.spawn(lambda: sorted([1, 0], key=key))
                scope.spawn(seen.append, 1)
                scope.spawn(seen.append, 2)
            print(total.result())
            print(ordered.result())

        gs.run(main)
        """)


def test_the_main_virtual_thread_is_preempted():
    assert ["seen"] == run_program("""
        def main():
            seen = []
            with gs.scope() as scope:
                scope.spawn(seen.append, 1)
                spin_until(lambda: seen)
            print("seen")

        gs.run(main)
        """)


def test_a_carrier_that_is_not_the_main_thread_preempts():
    assert ["ended", "main goes on"] == run_program(f"""
        def work():
            exec({FIRST_HOG_THEN_SETTER!r}, globals())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        print("main goes on")
        """)


def test_two_carriers_of_one_interpreter_preempt_each_their_own():
    """A request may be popped by the other carrier's thread, which must leave it alone."""
    assert ["done"] == run_program("""
        def work():
            seen = []

            def main():
                for _ in range(20):
                    seen.clear()
                    with gs.scope() as scope:
                        scope.spawn(spin_until, lambda: seen)
                        scope.spawn(seen.append, 1)

            gs.run(main)

        _core.set_slice(0.002)
        threads = [threading.Thread(target=work) for _ in range(2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print("done")
        """)


def test_a_preempted_thread_is_not_starved_by_threads_that_wake_each_other():
    """The ready queue is never empty: two pairs hand items to and fro until the hog has ended."""
    assert ["hog ended"] == run_program("""
        import queue

        def main():
            log = []

            def pong(there, back):
                while (item := there.get()) is not None:
                    back.put(item)

            def ping(there, back):
                while not log:
                    there.put(1)
                    back.get()
                there.put(None)

            def hog():
                first = preemptions()
                spin_until(lambda: preemptions() > first + 3)
                log.append(1)
                print("hog ended")

            with gs.scope() as scope:
                scope.spawn(hog)
                for _ in range(2):
                    there, back = queue.SimpleQueue(), queue.SimpleQueue()
                    scope.spawn(pong, there, back)
                    scope.spawn(ping, there, back)

        gs.run(main)
        """)


def test_a_checkpoint_lets_a_preempted_thread_run():
    assert ["ended"] == run_program("""
        def main():
            log = []

            def hog():
                first = preemptions()
                spin_until(lambda: preemptions() > first)
                log.append(1)

            with gs.scope() as scope:
                scope.spawn(hog)
                while not log:
                    gs.checkpoint()
            print("ended")

        gs.run(main)
        """)


def test_ctrl_c_reaches_main_while_another_virtual_thread_computes():
    assert ["KeyboardInterrupt in join", "hog stopped"] == run_program("""
        import os, signal

        def main():
            stop = []

            def hog():
                os.kill(os.getpid(), signal.SIGINT)
                spin_until(lambda: stop)
                print("hog stopped")

            with gs.scope() as scope:
                task = scope.spawn(hog)
                try:
                    task.result()
                except KeyboardInterrupt:
                    print("KeyboardInterrupt in join")
                stop.append(1)

        gs.run(main)
        """)


def test_ctrl_c_reaches_main_that_was_preempted():
    """The signal comes while another one runs, and main spins: its handler runs at one of main's next bytecodes."""
    assert ["KeyboardInterrupt"] == run_program("""
        import os, signal

        def main():
            with gs.scope() as scope:
                scope.spawn(os.kill, os.getpid(), signal.SIGINT)
                try:
                    spin_until(lambda: False)
                except KeyboardInterrupt:
                    print("KeyboardInterrupt")

        gs.run(main)
        """)


def test_no_switch_keeps_a_computing_thread_on():
    """The other never runs inside the block, however long it is: here three slices of CPU time."""
    assert ["inside: 0", "after: 1"] == run_program("""
        def main():
            seen = []
            with gs.scope() as scope:
                scope.spawn(seen.append, 1)
                with gs.no_switch():
                    end = time.thread_time() + 0.03
                    spin_until(lambda: time.thread_time() > end)
                    print("inside:", len(seen))
                spin_until(lambda: seen)
                print("after:", len(seen))

        gs.run(main)
        """)


GUARDED = """
def main():
    seen = []

    def spin_three_slices(where):
        before = len(seen)
        end = time.thread_time() + 0.03
        spin_until(lambda: time.thread_time() > end)
        print(where, "was preempted" if len(seen) > before else "went on")

    def other():
        while not done:
            seen.append(1)
            gs.checkpoint()

    done = []

    def guarded():
        {body}
        spin_until(lambda: preemptions() > 1)
        done.append(1)

    with gs.scope() as scope:
        scope.spawn(guarded)
        scope.spawn(other)

gs.run(main)
"""


def run_guarded(body: str) -> list[str]:
    body = textwrap.indent(textwrap.dedent(body), " " * 8).strip()
    return run_program(GUARDED.replace("{body}", body))


def test_a_finaliser_inside_the_collector_is_not_preempted():
    assert ["finaliser went on"] == run_guarded("""
        import gc

        class Cycle:
            def __del__(self):
                spin_three_slices("finaliser")

        cycle = Cycle()
        cycle.me = cycle
        del cycle
        gc.collect()
        """)


def test_a_trace_function_is_not_preempted():
    assert ["trace function went on"] == run_guarded("""
        def trace(frame, event, argument):
            spin_three_slices("trace function")

        def nothing():
            pass

        sys.settrace(trace)
        nothing()
        sys.settrace(None)
        """)[:1]


def test_a_raw_file_inside_a_buffered_one_is_not_preempted():
    assert ["raw file went on"] == run_guarded("""
        import io

        class Raw(io.RawIOBase):
            def readable(self):
                return True

            def readinto(self, buffer):
                spin_three_slices("raw file")
                return 0

        io.BufferedReader(Raw()).read(1)
        """)


def test_code_under_the_import_lock_is_not_preempted():
    assert ["import lock went on"] == run_guarded("""
        import _imp

        _imp.acquire_lock()
        spin_three_slices("import lock")
        _imp.release_lock()
        """)


def test_a_signal_handler_is_not_preempted():
    assert ["handler went on", "seen"] == run_program("""
        import signal

        def main():
            seen = []

            def handler(number, frame):
                end = time.thread_time() + 0.03
                spin_until(lambda: time.thread_time() > end)
                print("handler", "was preempted" if seen else "went on")

            signal.signal(signal.SIGUSR1, handler)
            with gs.scope() as scope:
                scope.spawn(seen.append, 1)
                signal.raise_signal(signal.SIGUSR1)
                spin_until(lambda: seen)
                print("seen")

        gs.run(main)
        """)


def test_a_module_that_computes_while_it_is_imported_is_preempted(tmp_path):
    (tmp_path / "slow_module.py").write_text(
        "import __main__\nwhile not __main__.seen:\n    pass\nvalue = 1\n", encoding="utf-8"
    )
    assert ["1", "1"] == run_program(f"""
        sys.path.insert(0, {str(tmp_path)!r})
        seen = []

        def importer():
            import slow_module
            return slow_module.value

        def main():
            with gs.scope() as scope:
                tasks = [scope.spawn(importer) for _ in range(2)]
                scope.spawn(seen.append, 1)
            for task in tasks:
                print(task.result())

        gs.run(main)
        """)


PENDING = """
import ctypes
Function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
add_pending_call = ctypes.pythonapi.Py_AddPendingCall
add_pending_call.argtypes = [Function, ctypes.c_void_p]
"""


def test_calls_queued_by_others_run_once_and_in_order_beside_hogs():
    assert ["True"] == run_program(
        PENDING
        + """
called = []
note = Function(lambda number: called.append(number) or 0)

def main():
    def poster():
        for number in range(1, 501):
            while add_pending_call(note, number) != 0:
                time.sleep(0.001)
            if number % 20 == 0:
                time.sleep(0.001)

    threading.Thread(target=poster).start()
    with gs.scope() as scope:
        for _ in range(2):
            scope.spawn(spin_until, lambda: len(called) == 500)
        spin_until(lambda: len(called) == 500)
    print(called == list(range(1, 501)))

_core.set_slice(0.002)
gs.run(main)
"""
    )


def test_a_call_for_the_main_thread_is_not_lost_when_others_pass_it_over():
    """It is queued and passed over while main is parked; main runs it when it continues, preempted or not."""
    assert ["[7]"] == run_program(
        PENDING
        + """
called = []
note = Function(lambda number: called.append(number) or 0)

def main():
    def poster():
        assert add_pending_call(note, 7) == 0
        for _ in range(100):
            len("")

    with gs.scope() as scope:
        scope.spawn(poster)
    spin_until(lambda: called)
    print(called)

_core.set_slice(0)
gs.run(main)
"""
    )


def test_a_pending_call_that_parks_does_not_stop_preemption():
    """The call waits for what only a preempted hog makes room for."""
    assert ["parked call ended", "1"] == run_program(
        PENDING
        + """
def main():
    opened = threading.Event()
    seen = []

    def park(_):
        opened.wait()
        print("parked call ended")
        return 0

    call = Function(park)

    def hog():
        spin_until(lambda: seen)
        opened.set()

    with gs.scope() as scope:
        scope.spawn(hog)
        scope.spawn(lambda: (gs.checkpoint(), seen.append(1)))
        add_pending_call(call, None)
        spin_until(lambda: seen)
    print(len(seen))

gs.run(main)
"""
    )


def test_results_are_right_under_thousands_of_preemptions():
    lines = run_program("""
        import hashlib

        def digest(seed):
            state = hashlib.sha256(str(seed).encode())
            value = seed
            for number in range(30_000):
                try:
                    value = (value * 6364136223846793005 + number) % 2**64
                    if number % 1000 == 0:
                        raise ValueError(value)
                except ValueError as error:
                    state.update(str(sorted((error.args[0] >> shift for shift in range(20)),
                                            key=lambda item: -item)).encode())
                    assert sys.exception() is error
            state.update(str(sum(value ^ item for item in range(5_000))).encode())
            return state.hexdigest()

        def main():
            expected = [digest(seed) for seed in range(8)]
            while preemptions() < 3000:
                with gs.scope() as scope:
                    tasks = [scope.spawn(digest, seed) for seed in range(8)]
                assert [task.result() for task in tasks] == expected
            print("right")

        _core.set_slice(0.0002)
        gs.run(main)
        """)
    assert ["right"] == lines


def test_tracing_sees_the_same_lines_with_and_without_preemption():
    program = """
        def trace_of(function):
            events = []

            def trace(frame, event, argument):
                if frame.f_code is function.__code__:
                    events.append((event, frame.f_lineno))
                return trace

            sys.settrace(trace)
            function()
            sys.settrace(None)
            return events

        def work():
            x = 0
            for number in range(20_000):
                x += number
            return x

        def main():
            while preemptions() < 20:
                with gs.scope() as scope:
                    tasks = [scope.spawn(trace_of, work) for _ in range(3)]
                assert all(task.result() == expected for task in tasks)
            print("same")

        expected = trace_of(work)
        _core.set_slice(0.001)
        gs.run(main)
        """
    assert ["same"] == run_program(program)


def test_a_monitoring_tool_counts_the_same_with_and_without_preemption():
    assert ["same"] == run_program("""
        monitoring = sys.monitoring
        counts = {}

        def note(code, line):
            counts[line] = counts.get(line, 0) + 1

        def work():
            x = 0
            for number in range(20_000):
                x += number
            return x

        monitoring.use_tool_id(monitoring.COVERAGE_ID, "test")
        monitoring.register_callback(monitoring.COVERAGE_ID, monitoring.events.LINE, note)
        monitoring.set_local_events(monitoring.COVERAGE_ID, work.__code__, monitoring.events.LINE)
        work()
        once = dict(counts)

        def main():
            calls = 1
            while preemptions() < 20:
                with gs.scope() as scope:
                    for _ in range(3):
                        scope.spawn(work)
                calls += 3
            assert counts == {line: calls * count for line, count in once.items()}
            print("same")

        _core.set_slice(0.001)
        gs.run(main)
        """)


def test_a_forked_child_preempts():
    assert ["child 0"] == run_program("""
        import os

        def main():
            seen = []
            with gs.scope() as scope:
                scope.spawn(seen.append, 1)
                spin_until(lambda: seen)
            child = os.fork()
            if child == 0:
                seen.clear()
                with gs.scope() as scope:
                    scope.spawn(seen.append, 1)
                    spin_until(lambda: seen)
                os._exit(0)
            print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

        gs.run(main)
        """)


def test_carriers_come_and_go_while_requests_are_queued():
    assert ["50"] == run_program("""
        count = 0

        def main():
            global count
            seen = []
            with gs.scope() as scope:
                scope.spawn(seen.append, 1)
                spin_until(lambda: seen)
            count += 1

        _core.set_slice(0.0005)
        for _ in range(50):
            gs.run(main)
        print(count)
        """)


def test_a_slice_of_zero_turns_preemption_off():
    assert ["off: no slice is set", "0"] == run_program("""
        def main():
            with gs.scope() as scope:
                scope.spawn(len, "")
                end = time.thread_time() + 0.03
                spin_until(lambda: time.thread_time() > end)
            print(_core.preemption_status())
            print(preemptions())

        _core.set_slice(0)
        gs.run(main)
        """)


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_this_interpreter_passes_the_self_check(where, way):
    if way != "pending calls":
        pytest.skip("its failure is what the variable asks for")
    lines = run_program("""
        print("outside", _core.preemption_status())

        def main():
            with gs.scope() as scope:
                scope.spawn(len, "")
                print("inside", _core.preemption_status())

        gs.run(main)
        """)
    assert {"outside": "available", "inside": "on"}[where] == dict(line.split(" ", 1) for line in lines)[where]
