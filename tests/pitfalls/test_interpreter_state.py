# SPDX-License-Identifier: Apache-2.0
"""What belongs to one virtual thread is seen by no other: PITFALLS 4, 5, 6, 8, 11, 13, 15, 56, 60."""

from __future__ import annotations

import contextvars
import ctypes
import decimal
import gc
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator

import gossamer as gs
import pytest
from virtual import in_virtual_thread


def interleave(count: int, body: Callable[[int], None]) -> None:
    """Run ``body(0)`` to ``body(count - 1)`` in as many virtual threads."""
    with gs.scope() as scope:
        for number in range(count):
            scope.spawn(body, number)


@in_virtual_thread
def test_raise_without_argument_raises_ones_own_exception() -> None:
    """The exception being handled is exchanged with the thread, also through generators."""

    def generator(number: int) -> Iterator[None]:
        try:
            raise KeyError(number)
        except KeyError:
            while True:
                assert sys.exc_info()[1].args == (number,)
                yield

    def body(number: int) -> None:
        parked = generator(number)
        try:
            raise ValueError(number)
        except ValueError:
            for _ in range(20):
                next(parked)
                gs.checkpoint()
                assert sys.exc_info()[1].args == (number,)
            with pytest.raises(ValueError, match=str(number)):
                raise
        assert sys.exc_info()[1] is None

    interleave(10, body)


@in_virtual_thread
def test_a_generator_parked_in_except_may_be_continued_by_another_thread() -> None:
    """It has its own exception and leaves the other's alone."""

    def generator() -> Iterator[None]:
        try:
            raise KeyError("inside")
        except KeyError:
            yield
            assert sys.exc_info()[1].args == ("inside",)
            yield

    shared = generator()

    def begin() -> None:
        next(shared)

    def continue_it() -> None:
        try:
            raise ValueError("outside")
        except ValueError as error:
            next(shared)
            assert sys.exc_info()[1] is error

    with gs.scope() as scope:
        scope.spawn(begin)
        gs.checkpoint()
        scope.spawn(continue_it)


variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=-1)


@in_virtual_thread
def test_a_context_variable_set_in_one_thread_is_not_seen_in_another() -> None:
    """Also where its value was cached, and within nested Context.run()."""

    def nested(number: int) -> None:
        variable.set(1000 + number)
        for _ in range(5):
            gs.checkpoint()
            assert variable.get() == 1000 + number

    def body(number: int) -> None:
        assert variable.get() == 5
        variable.set(number)
        for _ in range(10):
            gs.checkpoint()
            assert variable.get() == number
        contextvars.copy_context().run(nested, number)
        assert variable.get() == number

    variable.set(5)
    interleave(10, body)
    assert variable.get() == 5


@in_virtual_thread
def test_thread_locals_decimal_warnings_and_errno_are_ones_own() -> None:
    """threading.local, decimal's context, warnings' filters inside a context, ctypes' errno."""
    local = threading.local()

    def body(number: int) -> None:
        local.value = number
        decimal.setcontext(decimal.Context(prec=10 + number))
        ident = threading.get_ident()
        thread = threading.current_thread()
        for _ in range(10):
            gs.checkpoint()
            assert local.value == number
            assert decimal.getcontext().prec == 10 + number
            assert threading.get_ident() == ident
            assert threading.current_thread() is thread

    interleave(10, body)


@in_virtual_thread
def test_switching_inside_c_code_that_calls_back_is_right() -> None:
    """A sort key, __eq__ in a dictionary, __hash__, __del__ and a comparison may park."""

    class Key:
        def __init__(self, value: int) -> None:
            self.value = value

        def __hash__(self) -> int:
            gs.checkpoint()
            return self.value % 3

        def __eq__(self, other: object) -> bool:
            gs.checkpoint()
            return isinstance(other, Key) and self.value == other.value

        def __lt__(self, other: Key) -> bool:
            gs.checkpoint()
            return self.value < other.value

    def key(value: int) -> int:
        gs.checkpoint()
        return -value

    def body(number: int) -> None:
        assert sorted(range(50), key=key) == list(range(49, -1, -1))
        table = {Key(value): value for value in range(20)}
        assert [table[Key(value)] for value in range(20)] == list(range(20))
        assert [item.value for item in sorted(map(Key, range(20, 0, -1)))] == list(range(1, 21))

    interleave(5, body)


@in_virtual_thread
def test_a_finaliser_may_park_also_deep_inside_a_deallocation() -> None:
    """A long chain is freed while each link's __del__ lets others run."""
    ended = []

    class Link:
        def __init__(self, number: int, following: Link | None) -> None:
            self.number, self.following = number, following

        def __del__(self) -> None:
            gs.checkpoint()
            ended.append(self.number)

    def body(number: int) -> None:
        chain = None
        for index in range(300):
            chain = Link(number * 1000 + index, chain)
        del chain

    interleave(3, body)
    gc.collect()
    assert len(ended) == 900


@in_virtual_thread
def test_collecting_all_the_time_while_threads_are_parked_frees_nothing_in_use() -> None:
    """gc thresholds of 1, gc.collect() and gc.freeze() beside parked frames; cycles with finalisers that wait."""
    before = gc.get_threshold()
    collected = []

    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            gs.checkpoint()
            collected.append(1)

    def body(number: int) -> None:
        held = [object() for _ in range(5)]
        names = {f"name{index}": held for index in range(5)}
        for _ in range(20):
            Cycle()
            try:
                raise ValueError(number)
            except ValueError as error:
                kept = error
                gs.checkpoint()
                assert kept.args == (number,)
        assert all(names[f"name{index}"] is held for index in range(5))

    gc.set_threshold(1, 1, 1)
    try:
        interleave(10, body)
        gc.freeze()
        gc.collect()
        gc.unfreeze()
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert len(collected) == 200


@in_virtual_thread
def test_every_parked_threads_stack_can_be_walked() -> None:
    """Frames of parked threads have the right lines and end where the thread began."""
    lock = threading.Lock()
    lock.acquire()

    def wait_here() -> None:
        with lock:
            pass

    with gs.scope() as scope:
        for _ in range(5):
            scope.spawn(wait_here)
        gs.checkpoint()
        from gossamer import _core

        stacks = [traceback.extract_stack(entry[-1]) for entry in _core.threads() if "Lock" in (entry[2] or "")]
        lock.release()
    assert [1] * 5 == [len([frame for frame in stack if frame.name == "wait_here"]) for stack in stacks]


@in_virtual_thread
def test_the_weak_references_of_a_finished_thread_are_dead() -> None:
    """Nothing keeps what a finished virtual thread referred to."""

    class Thing:
        pass

    alive: list[weakref.ref[Thing]] = []

    def body(number: int) -> None:
        thing = Thing()
        alive.append(weakref.ref(thing))
        gs.checkpoint()

    interleave(5, body)
    gc.collect()
    assert [None] * 5 == [reference() for reference in alive]


@in_virtual_thread
def test_ctypes_errno_belongs_to_the_thread() -> None:
    """ctypes keeps its copy of errno in thread-local data, which is exchanged."""

    def body(number: int) -> None:
        ctypes.set_errno(number + 1)
        for _ in range(5):
            gs.checkpoint()
            assert ctypes.get_errno() == number + 1

    interleave(5, body)


@in_virtual_thread
def test_warnings_that_are_caught_in_one_thread_leave_the_filters_as_they_were() -> None:
    """catch_warnings() around a whole scope is put back."""
    filters = list(warnings.filters)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interleave(3, lambda number: gs.checkpoint())

    assert filters == list(warnings.filters)
