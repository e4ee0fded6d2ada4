# SPDX-License-Identifier: Apache-2.0
"""The C stack and recursion: PITFALLS 1, 2, 3, 55."""

from __future__ import annotations

import json
import sys

import gossamer as gs
import pytest
from virtual import in_virtual_thread, run_program


class Nested:
    """Each repr() calls Python from C."""

    def __init__(self, inner: object) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"<{self.inner!r}>"


def nested(levels: int) -> object:
    value: object = None
    for _ in range(levels):
        value = Nested(value)
    return value


def recurse(level: int) -> int:
    return 1 + recurse(level + 1)


def deep_json() -> None:
    json.loads("[" * 200_000)


def assert_recursion_error_and_go_on() -> None:
    for _ in range(3):
        with pytest.raises(RecursionError):
            recurse(0)
        with pytest.raises(RecursionError):
            deep_json()
        with pytest.raises(RecursionError):
            repr(nested(100_000))
        assert "[1]" == json.dumps([1])


@in_virtual_thread
def test_a_virtual_thread_that_recurses_too_deep_gets_recursion_error() -> None:
    """Python recursion, C recursion and both together end in RecursionError, and the thread goes on."""
    assert_recursion_error_and_go_on()


def test_main_gets_recursion_error_before_inside_and_after_run() -> None:
    """The OS thread's own limits are in force again after run()."""
    assert_recursion_error_and_go_on()
    gs.run(assert_recursion_error_and_go_on)
    assert_recursion_error_and_go_on()


@in_virtual_thread
def test_levels_of_c_that_calls_python_are_as_many_as_promised() -> None:
    """400 levels on 3.14 and later, 80 before."""
    levels = 400 if sys.version_info >= (3, 14) else 80

    assert repr(nested(levels)).count("<") == levels


@in_virtual_thread
def test_python_code_has_the_limit_of_a_thread() -> None:
    """Python calling Python is limited by sys.getrecursionlimit() alone."""

    def down(levels: int) -> int:
        return 0 if levels == 0 else 1 + down(levels - 1)

    assert down(sys.getrecursionlimit() - 100) == sys.getrecursionlimit() - 100


@in_virtual_thread
def test_an_error_while_an_error_is_reported_does_not_lose_the_joiner() -> None:
    """A task that ends in RecursionError at the limit still wakes who waits for it."""

    def fail() -> None:
        try:
            recurse(0)
        except RecursionError:
            recurse(0)

    with pytest.raises(BaseExceptionGroup) as caught, gs.scope() as scope:
        scope.spawn(fail)
    assert isinstance(caught.value.exceptions[0], RecursionError)


def test_the_first_python_call_of_a_process_may_be_on_a_virtual_thread() -> None:
    """A child whose program recurses at once, in a thread, ends well."""
    result = run_program(
        """
        import threading
        def recurse(): return recurse()
        def work():
            try: recurse()
            except RecursionError: print("caught")
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        """
    )

    assert (0, "caught\n", "") == (result.returncode, result.stdout, result.stderr)
