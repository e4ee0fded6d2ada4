# SPDX-License-Identifier: Apache-2.0
"""Debuggers, profilers and coverage see in a virtual thread what they see in a thread: PITFALLS 11, 12, 50, 51."""

from __future__ import annotations

import cProfile
import io
import json
import os
import pdb
import pstats
import subprocess
import sys
import textwrap
import threading
import traceback
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import gossamer as gs
import pytest


def run_script(path: Path, program: str, *options: str, variables: dict[str, str] | None = None) -> Any:
    """The program, run as a script; the result of the child."""
    path.write_text(textwrap.dedent(program))
    return subprocess.run(
        [sys.executable, *options, path],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(variables or {})},
    )


# ---- faulthandler ----

DUMPED = """
import faulthandler, os, select, sys
import gossamer as gs

def inner():
    {body}

def outer():
    inner()

def main():
    with gs.scope() as scope:
        scope.spawn(gs.checkpoint)
        scope.spawn(outer)

gs.run(main)
"""


def stack_in(text: str) -> list[str]:
    """The names of the first stack in a dump, innermost first, as far as they are the program's."""
    lines = text.partition("most recent call first")[2].splitlines()[1:]
    return [line.rpartition(" in ")[2] for line in lines if "script.py" in line]


def test_faulthandler_dumps_the_stack_of_the_running_virtual_thread(tmp_path):
    program = DUMPED.format(body="faulthandler.dump_traceback(file=sys.stdout)")

    assert ["inner", "outer"] == stack_in(run_script(tmp_path / "script.py", program).stdout)


def test_a_crash_in_a_virtual_thread_prints_its_python_stack(tmp_path):
    program = DUMPED.format(body="faulthandler._sigsegv()")

    result = run_script(tmp_path / "script.py", program, "-X", "faulthandler")

    assert -11 == result.returncode
    assert ["inner", "outer"] == stack_in(result.stderr)


def test_a_late_dump_has_the_stack_of_the_virtual_thread_that_computes(tmp_path):
    program = DUMPED.format(
        body="""end, file = os.pipe()
    faulthandler.dump_traceback_later(0.001, file=file)
    while not select.select([end], [], [], 0)[0]:
        pass
    faulthandler.cancel_dump_traceback_later()
    os.set_blocking(end, False)
    text = b""
    while b"outer" not in text:
        text += os.read(end, 100_000)
    print(text.decode())"""
    )

    assert ["inner", "outer"] == stack_in(run_script(tmp_path / "script.py", program).stdout)


# ---- pdb ----


def debug(commands: list[str], function, *args, **options) -> str:
    """Call a function that stops in the debugger; what it printed."""
    printed = io.StringIO()
    debugger = pdb.Pdb(stdin=io.StringIO("\n".join(commands) + "\n"), stdout=printed, readrc=False, **options)
    debugger.use_rawinput = False
    debugger.prompt = ""
    function(debugger, *args)
    return printed.getvalue()


def debugged(debugger: pdb.Pdb) -> None:
    debugger.set_trace()
    first = 1
    gs.checkpoint()  # others run here
    second = first + 1
    third = second + 1
    assert third == 3


def others(rounds: int) -> None:
    for number in range(rounds):
        text = str(number)
        gs.checkpoint()
        assert text == str(number)


NEXTS = 4 if sys.version_info < (3, 13) else 5  # from there on set_trace() stops in its own line
BACKENDS = [{}, {"backend": "monitoring"}] if sys.version_info >= (3, 14) else [{}]


@pytest.mark.parametrize("options", BACKENDS, ids=lambda options: options.get("backend", "settrace"))
def test_pdb_steps_through_its_own_virtual_thread_only(options):
    def main() -> str:
        with gs.scope() as scope:
            for _ in range(3):
                scope.spawn(others, 20)
            task = scope.spawn(debug, ["next"] * NEXTS + ["print(second, third)", "continue"], debugged, **options)
            for _ in range(3):
                scope.spawn(others, 20)
        return task.result()

    printed = gs.run(main)

    lines = [line.removeprefix("-> ") for line in printed.splitlines() if line.startswith("-> ")]
    assert "gs.checkpoint()  # others run here" in lines
    assert ["second = first + 1", "third = second + 1", "assert third == 3"] == lines[-3:]
    assert "2 3" in printed
    assert not [line for line in printed.splitlines() if "others" in line and "#" not in line]


def test_pdb_waiting_for_its_user_lets_the_others_run():
    """Its standard input is a pipe; who writes to it is a virtual thread that runs while the debugger waits."""
    read_end, write_end = os.pipe()

    def stop_here(debugger: pdb.Pdb) -> int:
        answer = 41
        debugger.set_trace()
        return answer

    def user(is_waiting: threading.Event) -> None:
        is_waiting.wait()
        os.write(write_end, b"up\ndown\nanswer = 42\n")
        gs.checkpoint()
        os.write(write_end, b"continue\n")

    def main() -> int:
        is_waiting = threading.Event()
        with os.fdopen(read_end) as commands, gs.scope() as scope:
            debugger = pdb.Pdb(stdin=commands, stdout=io.StringIO(), readrc=False)
            debugger.use_rawinput = False
            task = scope.spawn(stop_here, debugger)
            scope.spawn(user, is_waiting)
            gs.checkpoint()
            is_waiting.set()
        return task.result()

    try:
        assert 42 == gs.run(main)
    finally:
        os.close(write_end)


# ---- coverage ----

COVERED = """
import threading
import gossamer as gs

def work(number):
    total = 0
    for item in range(3):
        gs.checkpoint()
        if number % 2:
            total += item
        else:
            total -= item
    try:
        raise ValueError(total)
    except ValueError as error:
        gs.checkpoint()
        return error.args[0]

def main():
    is_up = threading.Event()

    def wait():
        is_up.wait()
        return "up"

    with gs.scope() as scope:
        tasks = [scope.spawn(work, number) for number in range(4)]
        waiting = scope.spawn(wait)
        gs.checkpoint()
        thread = threading.Thread(target=is_up.set)
        thread.start()
        thread.join()
    print([task.result() for task in tasks], waiting.result())
    if waiting.result() != "up":
        print("never")

gs.run(main)
"""


def importable(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("core", ["ctrace", "pytrace", "sysmon"])
@pytest.mark.parametrize("way", ["gossamer.run", "gossamer run"])
def test_coverage_counts_the_lines_of_virtual_threads_across_parks(core, way, tmp_path):
    pytest.importorskip("coverage")
    if core == "ctrace" and not importable("coverage.tracer"):
        pytest.skip("coverage has no tracer in C for this Python")
    script = tmp_path / "script.py"
    launcher = ["-m", "gossamer", "run"] if way == "gossamer run" else []
    program = COVERED.replace("gs.run(main)", "main()") if launcher else COVERED
    data = f"--data-file={tmp_path / 'data'}"

    result = run_script(script, program, *launcher, "-m", "coverage", "run", data, variables={"COVERAGE_CORE": core})
    command = [sys.executable, "-m", "coverage", "json", "-q", data, "-o", "-"]
    report = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert "[-3, 3, -3, 3] up" in result.stdout, result.stderr
    (of_script,) = [value for name, value in json.loads(report.stdout)["files"].items() if name.endswith("script.py")]
    never = 1 + script.read_text().splitlines().index('        print("never")')
    assert [never] == of_script["missing_lines"]


# ---- sys.monitoring, sys.settrace, sys.setprofile ----

monitoring = sys.monitoring
TOOL = monitoring.DEBUGGER_ID


@pytest.fixture
def tool():
    monitoring.use_tool_id(TOOL, "test")
    yield TOOL
    monitoring.set_events(TOOL, 0)
    monitoring.free_tool_id(TOOL)


def parks_in_a_loop(gate: threading.Event, rounds: int = 3) -> int:
    total = 0
    for number in range(rounds):
        gate.wait()
        total += number
    return total


def test_monitoring_counts_lines_across_parks_and_switches(tool):
    lines: Counter[int] = Counter()

    def note(code: CodeType, line: int) -> None:
        if code is parks_in_a_loop.__code__:
            lines[line - code.co_firstlineno] += 1

    monitoring.register_callback(tool, monitoring.events.LINE, note)
    monitoring.set_events(tool, monitoring.events.LINE)

    def main() -> None:
        gate = threading.Event()
        with gs.scope() as scope:
            for _ in range(5):
                scope.spawn(parks_in_a_loop, gate)
            gs.checkpoint()
            gate.set()

    gs.run(main)

    assert {1: 5, 2: 20, 3: 15, 4: 15, 5: 5} == lines


def test_a_monitoring_callback_may_wait_and_the_others_are_monitored_meanwhile(tool):
    gate = threading.Event()
    seen = []

    def first() -> None:
        pass

    def second() -> None:
        pass

    def note(code: CodeType, _offset: int) -> None:
        if code is first.__code__:
            seen.append("first waits")
            gate.wait()
            seen.append("first goes on")
        elif code is second.__code__:
            seen.append("second")

    def main() -> None:
        with gs.scope() as scope:
            scope.spawn(first)
            scope.spawn(second)
            gs.checkpoint()
            gate.set()

    monitoring.register_callback(tool, monitoring.events.PY_START, note)
    monitoring.set_events(tool, monitoring.events.PY_START)
    gs.run(main)

    assert ["first waits", "second", "first goes on"] == seen


def test_events_that_are_turned_on_while_a_thread_is_parked_reach_its_running_frames(tool):
    """An OS thread that waits in a function is monitored in it from then on; so is a virtual thread."""
    lines: Counter[int] = Counter()

    def note(code: CodeType, line: int) -> None:
        if code is parks_in_a_loop.__code__:
            lines[line - code.co_firstlineno] += 1

    def main() -> None:
        gate = threading.Event()
        with gs.scope() as scope:
            scope.spawn(parks_in_a_loop, gate)
            gs.checkpoint()
            monitoring.register_callback(tool, monitoring.events.LINE, note)
            monitoring.set_events(tool, monitoring.events.LINE)
            gate.set()

    gs.run(main)

    assert {2: 3, 3: 2, 4: 3, 5: 1} == lines


def test_a_profile_function_for_all_threads_sees_calls_of_frames_that_were_parked():
    called = []

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call" and frame.f_code is body.__code__:
            called.append(argument.__name__)

    def body(gate: threading.Event) -> None:
        gate.wait()
        len("")

    def main() -> None:
        gate = threading.Event()
        with gs.scope() as scope:
            scope.spawn(body, gate)
            gs.checkpoint()
            threading.setprofile_all_threads(profile)
            gate.set()
            gs.checkpoint()
            threading.setprofile_all_threads(None)

    gs.run(main)

    assert ["len"] == called


def test_a_trace_function_follows_its_virtual_thread_across_parks():
    events: list[tuple[str, int]] = []

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if frame.f_code is not parks_in_a_loop.__code__:
            return None
        events.append((event, frame.f_lineno - frame.f_code.co_firstlineno))
        return trace

    def traced(gate: threading.Event) -> None:
        sys.settrace(trace)
        parks_in_a_loop(gate, 2)
        sys.settrace(None)

    def main() -> None:
        gate = threading.Event()
        with gs.scope() as scope:
            scope.spawn(traced, gate)
            scope.spawn(parks_in_a_loop, gate, 2)
            gs.checkpoint()
            gate.set()

    gs.run(main)

    lines = [("line", line) for line in (1, 2, 3, 4, 2, 3, 4, 2, 5)]
    assert [("call", 0), *lines, ("return", 5)] == events


def test_profile_functions_of_threading_are_for_spawned_tasks_and_threads_too():
    names = []

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            names.append(frame.f_code.co_name)

    def in_task() -> None:
        threading.Event().is_set()

    def main() -> None:
        threading.setprofile(profile)
        try:
            with gs.scope() as scope:
                scope.spawn(in_task)
        finally:
            threading.setprofile(None)

    gs.run(main)

    assert ["in_task", "is_set"] == [name for name in names if name in ("in_task", "is_set", "main")]


# ---- cProfile ----


def called_by_profiled() -> None:
    called_inside()


def called_inside() -> None:
    gs.checkpoint()


def called_by_another() -> None:
    for _ in range(10):
        gs.checkpoint()
        len("")


def calls_of(profile: cProfile.Profile) -> dict[str, tuple[int, list[str]]]:
    """How often each function was called, and by whom."""
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    return {
        name: (calls, sorted(caller for _, _, caller in callers))
        for (_, _, name), (calls, _, _, _, callers) in stats.items()
    }


@pytest.mark.parametrize("where", ["task", "main"])
def test_cprofile_records_its_virtual_thread_alone_across_parks(where):
    def profiled() -> None:
        for _ in range(3):
            called_by_profiled()

    def profile_it() -> dict[str, tuple[int, list[str]]]:
        profile = cProfile.Profile()
        profile.runcall(profiled)
        return calls_of(profile)

    def main() -> dict[str, tuple[int, list[str]]]:
        with gs.scope() as scope:
            scope.spawn(called_by_another)
            task = scope.spawn(profile_it) if where == "task" else None
            scope.spawn(called_by_another)
            result = None if task else profile_it()
        return task.result() if task else result

    calls = gs.run(main)

    assert (1, []) == calls["profiled"]
    assert (3, ["profiled"]) == calls["called_by_profiled"]
    assert (3, ["called_by_profiled"]) == calls["called_inside"]
    assert not {"called_by_another", "<built-in method builtins.len>"} & calls.keys()


def test_a_profiler_that_is_on_when_gossamer_is_entered_goes_on():
    profile = cProfile.Profile()
    profile.runcall(gs.run, called_by_profiled)

    assert (1, ["called_by_profiled"]) == calls_of(profile)["called_inside"]


# ---- tracebacks ----


def raise_after(gate: threading.Event) -> None:
    try:
        gate.wait()
        raise KeyError("inner")
    except KeyError:
        raise ValueError("outer") from None


def test_a_traceback_has_the_frames_of_its_virtual_thread_alone():
    def main() -> list[str]:
        gate = threading.Event()
        with gs.scope() as scope:
            tasks = [scope.spawn(in_task, gate) for _ in range(2)]
            gs.checkpoint()
            gate.set()
        return [task.result() for task in tasks]

    def in_task(gate: threading.Event) -> list[str]:
        try:
            raise_after(gate)
        except ValueError as error:
            return [frame.name for frame in traceback.extract_tb(error.__traceback__)] + [
                frame.name for frame in traceback.extract_stack()
            ]
        return []

    assert [["in_task", "raise_after", "in_task"]] * 2 == gs.run(main)


def test_recursion_ends_at_the_same_depth_as_on_a_thread(tmp_path):
    """Also after setrecursionlimit(), for threads that were parked when it was called."""
    program = """
        import sys, threading, _thread
        import gossamer as gs

        def depth(gate):
            gate.wait()

            def recurse(level):
                try:
                    return recurse(level + 1)
                except RecursionError:
                    return level

            depths.append(recurse(0))

        def on_thread(gate):
            ended = _thread.allocate_lock()
            ended.acquire()
            _thread.start_new_thread(lambda: (depth(gate), ended.release()), ())
            return ended

        depths = []
        for limit in (sys.getrecursionlimit(), 300, 2_000):
            gate = threading.Event()
            ended = on_thread(gate)
            sys.setrecursionlimit(limit)
            gate.set()
            ended.acquire()

        def main():
            for limit in (1_000, 300, 2_000):
                gate = threading.Event()
                with gs.scope() as scope:
                    scope.spawn(lambda: (depth(gate), None))
                    gs.checkpoint()
                    sys.setrecursionlimit(limit)
                    gate.set()

        sys.setrecursionlimit(1_000)
        gs.run(main)
        print(depths[:3] == depths[3:], depths)
        """

    assert "True" == run_script(tmp_path / "script.py", program).stdout.split()[0]
