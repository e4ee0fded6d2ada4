# SPDX-License-Identifier: Apache-2.0
"""Preemption by events of sys.monitoring: what is its own; what both ways promise is in test_preemption.py."""

from __future__ import annotations

import pytest
from test_preemption import run_program


@pytest.fixture(autouse=True)
def by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOSSAMER_PREEMPTION", "monitoring")


def test_code_that_runs_once_only_is_preempted():
    """No armed code is ever come back to: C calls ever new code, of one line, so the events of all code are needed."""
    assert ["True"] == run_program("""
        import functools, itertools

        seen = []

        def main():
            with gs.scope() as scope:
                fresh_code = iter(functools.partial(compile, "bool(seen)", "<fresh>", "eval"), None)
                task = scope.spawn(any, map(eval, fresh_code, itertools.repeat(globals())))
                scope.spawn(seen.append, 1)
            print(task.result())

        gs.run(main)
        """)


def test_tool_identifier_is_given_back_by_the_last_carrier():
    assert ["gossamer", "gossamer", "None"] == run_program("""
        def main():
            with gs.scope() as scope:
                scope.spawn(len, "")
            print(sys.monitoring.get_tool(3))

        def beside():
            with gs.scope() as scope:
                scope.spawn(len, "")
            main_thread.start()
            main_thread.join()
            print(sys.monitoring.get_tool(3))

        main_thread = threading.Thread(target=gs.run, args=(main,))
        gs.run(beside)
        print(sys.monitoring.get_tool(3))
        """)


def test_where_every_tool_identifier_is_taken_there_is_no_preemption():
    lines = run_program("""
        def main():
            with gs.scope() as scope:
                scope.spawn(len, "")
            print(_core.preemption_status())

        sys.monitoring.use_tool_id(3, "one")
        gs.run(main)
        sys.monitoring.use_tool_id(4, "two")
        gs.run(main)
        print(sys.monitoring.get_tool(3), sys.monitoring.get_tool(4))
        """)

    assert lines[0].startswith("on, by sys.monitoring")
    assert lines[1].startswith("off: this interpreter keeps its pending calls elsewhere")
    assert "one two" == lines[2]


def test_program_that_takes_the_tool_identifier_away_runs_on():
    assert ["done"] == run_program("""
        def main():
            with gs.scope() as scope:
                scope.spawn(len, "")
                sys.monitoring.free_tool_id(3)
                end = time.thread_time() + 0.05
                spin_until(lambda: time.thread_time() > end)
            print("done")

        gs.run(main)
        """)


def test_nothing_stays_armed():
    """Once nothing computes any more no code has events of ours, so none runs slower."""
    assert ["0 0"] == run_program("""
        def hog(seen):
            while not seen:
                pass

        def main():
            seen = []
            with gs.scope() as scope:
                scope.spawn(hog, seen)
                scope.spawn(seen.append, 1)
            monitoring = sys.monitoring
            print(monitoring.get_events(3), monitoring.get_local_events(3, hog.__code__))

        gs.run(main)
        """)
