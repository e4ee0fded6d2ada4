# SPDX-License-Identifier: Apache-2.0
"""Scopes: what leaving one waits for, cancels and raises. Case by case as asyncio.TaskGroup and asyncio.timeout do."""

import asyncio
import concurrent.futures
import gc
import queue
import threading

import gossamer as gs
import pytest
from virtually import settle, virtually


def wait_for_ever():
    queue.SimpleQueue().get()


def fail(error):
    raise error


@virtually
def test_leaving_waits_for_every_task():
    ended = []

    with gs.scope() as scope:
        for number in range(3):
            scope.spawn(lambda number=number: (gs.checkpoint(), ended.append(number)))
        assert 3 == scope.live_tasks

    assert [0, 1, 2] == ended
    assert 0 == scope.live_tasks


@virtually
def test_failure_of_a_task_cancels_the_others_and_the_body():
    seen = []

    def wait():
        try:
            wait_for_ever()
        except asyncio.CancelledError:
            seen.append("task")
            raise

    with pytest.raises(ExceptionGroup) as caught, gs.scope() as scope:
        scope.spawn(wait)
        scope.spawn(fail, ValueError("a"))
        try:
            wait_for_ever()
        except asyncio.CancelledError:
            seen.append("body")
            raise

    assert ["body", "task"] == sorted(seen)
    assert ["a"] == [str(error) for error in caught.value.exceptions]


@virtually
def test_single_failure_arrives_in_a_group():
    with pytest.raises(ExceptionGroup) as caught, gs.scope():
        raise KeyError("body")

    assert [KeyError] == [type(error) for error in caught.value.exceptions]
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@virtually
def test_failures_are_in_the_order_in_which_they_came():
    def fail_in_cleanup():
        try:
            wait_for_ever()
        finally:
            raise OSError("cleanup")

    with pytest.raises(ExceptionGroup) as caught, gs.scope() as scope:
        scope.spawn(fail_in_cleanup)
        gs.checkpoint()
        raise KeyError("body")

    assert [KeyError, OSError] == [type(error) for error in caught.value.exceptions]


@virtually
def test_cancelled_task_does_not_fail_its_scope():
    with gs.scope() as scope:
        task = scope.spawn(wait_for_ever)
        gs.checkpoint()
        task.cancel()

    assert task.cancelled()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_exit_of_the_body_or_of_a_task_comes_bare(error):
    def main(fails_in_task):
        with gs.scope() as scope:
            scope.spawn(wait_for_ever)
            gs.checkpoint()
            if fails_in_task:
                scope.spawn(fail, error("x"))
                wait_for_ever()
            raise error("x")

    for fails_in_task in (False, True):
        with pytest.raises(error):
            gs.run(main, fails_in_task)


@virtually
def test_base_exception_that_is_no_exit_is_grouped():
    class Odd(BaseException):
        pass

    with pytest.raises(BaseExceptionGroup) as caught, gs.scope() as scope:
        scope.spawn(fail, Odd())

    assert [Odd] == [type(error) for error in caught.value.exceptions]


@virtually
def test_cancel_of_the_scope_ends_its_body_and_tasks_and_raises_nothing():
    reached_end = False

    with gs.scope() as scope:
        task = scope.spawn(wait_for_ever)
        gs.checkpoint()
        scope.cancel()
        wait_for_ever()
        reached_end = True

    assert not reached_end
    assert task.cancelled()
    assert scope.cancelled
    gs.checkpoint()  # nothing is pending after it


@virtually
def test_body_that_never_waits_again_is_not_cancelled_after_the_scope():
    with gs.scope() as scope:
        scope.cancel()

    gs.checkpoint()
    gs.sleep(0)


@virtually
def test_body_that_swallows_the_cancellation_still_raises_the_failure():
    with pytest.raises(ExceptionGroup), gs.scope() as scope:
        scope.spawn(fail, ValueError())
        try:
            wait_for_ever()
        except asyncio.CancelledError:
            pass
        gs.checkpoint()  # cancelled once, not for ever


@virtually
def test_task_that_refuses_to_end_is_waited_for():
    gate = queue.SimpleQueue()
    ended = []

    def refuse():
        try:
            wait_for_ever()
        except asyncio.CancelledError:
            pass
        gate.get()
        ended.append(True)

    def let_go():
        gs.checkpoint()
        gate.put(None)

    with gs.scope() as outside:
        with gs.scope() as scope:
            scope.spawn(refuse)
            gs.checkpoint()
            scope.cancel()
            outside.spawn(let_go)
        assert [True] == ended


@virtually
def test_cancellation_from_outside_while_joining_cancels_the_tasks_and_is_raised():
    order = []

    def inner():
        try:
            wait_for_ever()
        finally:
            order.append("inner ended")

    def owner():
        try:
            with gs.scope() as scope:
                scope.spawn(inner)
        finally:
            order.append("scope left")

    with gs.scope() as scope:
        task = scope.spawn(owner)
        settle()
        task.cancel()

    assert task.cancelled()
    assert ["inner ended", "scope left"] == order


@virtually
def test_cancellation_from_outside_is_not_lost_when_a_failure_takes_its_place():
    """As asyncio.TaskGroup of 3.13: the group is raised, and the cancellation again at the next wait."""
    seen = []

    def fail_in_cleanup():
        try:
            wait_for_ever()
        finally:
            raise OSError

    def owner():
        try:
            with gs.scope() as scope:
                scope.spawn(fail_in_cleanup)
        except* OSError:
            seen.append("group")
        gs.checkpoint()
        seen.append("went on")

    with gs.scope() as scope:
        task = scope.spawn(owner)
        settle()
        task.cancel()

    assert ["group"] == seen
    assert task.cancelled()


@virtually
def test_failure_of_an_outer_scope_passes_through_an_inner_one():
    seen = []

    with pytest.raises(ExceptionGroup) as caught, gs.scope() as outer:
        outer.spawn(fail, ValueError("outer"))
        try:
            with gs.scope() as inner:
                inner.spawn(wait_for_ever)
                wait_for_ever()
        except asyncio.CancelledError:
            seen.append("through")
            raise

    assert ["through"] == seen
    assert ["outer"] == [str(error) for error in caught.value.exceptions]


@virtually
def test_cancellation_of_outer_and_inner_scope_at_once_ends_both():
    """One exception tells of both requests; the inner scope must not take it for its own alone."""
    reached = []

    with gs.scope() as outer:
        with gs.scope() as inner:
            inner.cancel()
            outer.cancel()
            wait_for_ever()
        reached.append("between")

    assert [] == reached
    gs.checkpoint()


@virtually
def test_inner_scope_that_swallowed_its_own_cancellation_does_not_take_the_outer_one():
    reached = []

    with gs.scope() as outer:
        with gs.scope() as inner:
            inner.cancel()
            try:
                wait_for_ever()
            except asyncio.CancelledError:
                pass
            outer.cancel()
            wait_for_ever()
        reached.append("between")

    assert [] == reached


@virtually
def test_task_of_the_scope_can_spawn_in_it():
    seen = []

    with gs.scope() as scope:
        scope.spawn(lambda: scope.spawn(lambda: scope.spawn(seen.append, "third")))

    assert ["third"] == seen


@virtually
def test_spawning_in_a_scope_that_is_not_open_is_an_error():
    scope = gs.scope()
    with pytest.raises(RuntimeError, match="not open"):
        scope.spawn(print)

    with scope:
        pass

    with pytest.raises(RuntimeError, match="has been left"):
        scope.spawn(print)
    with pytest.raises(RuntimeError, match="entered before"), scope:
        pass


@virtually
def test_task_spawned_in_a_cancelled_scope_never_begins():
    with gs.scope() as scope:
        scope.cancel()
        task = scope.spawn(fail, ValueError())

    assert task.cancelled()


@virtually
def test_spawn_takes_what_python_would_call():
    with gs.scope() as scope:
        task = scope.spawn(dict, [("a", 1)], b=2)
        with pytest.raises(TypeError):
            scope.spawn()
        with pytest.raises(TypeError, match="callable"):
            scope.spawn(3)

    assert {"a": 1, "b": 2} == task.result()


@virtually
def test_spawn_runs_a_coroutine_function():
    async def add(left, right):
        await asyncio.sleep(0)
        return left + right

    with gs.scope() as scope:
        task = scope.spawn(add, 1, right=2)

    assert 3 == task.result()


@virtually
def test_stack_size_gives_more_recursion_in_c():
    """repr() of nested lists recurses in C; the callable does not see the keyword."""

    def depth(**keywords):
        assert {} == keywords
        nested = []
        for reached in range(1, 200_000):
            nested = [nested]
            try:
                if reached % 50 == 0:
                    repr(nested)
            except RecursionError:
                while nested:  # deallocated from the inside: not a recursion of its own
                    nested = nested.pop()
                return reached
        raise AssertionError("no limit")

    with gs.scope() as scope:
        usual = scope.spawn(depth)
        large = scope.spawn(depth, stack_size=1024 * 1024)

    assert large.result() > usual.result() > 50


@pytest.mark.parametrize("size", [1, -1, 4096, 1 << 40, 1 << 70])
@virtually
def test_stack_size_out_of_range_is_refused_before_anything_is_spawned(size):
    with gs.scope() as scope:
        with pytest.raises(ValueError, match="stack_size"):
            scope.spawn(print, stack_size=size)
        assert 0 == scope.live_tasks


def test_scope_outside_of_gossamer_is_an_error():
    with pytest.raises(RuntimeError, match="gossamer run"), gs.scope():
        pass


@virtually
def test_scope_of_another_os_thread_cannot_be_spawned_in():
    errors = queue.SimpleQueue()

    with gs.scope() as scope:

        def spawn():
            try:
                scope.spawn(print)
            except RuntimeError as error:
                errors.put(str(error))

        threading.Thread(target=spawn).start()
        assert "another OS thread" in errors.get()


@virtually
def test_scope_can_be_cancelled_from_another_os_thread():
    with gs.scope() as scope:
        task = scope.spawn(wait_for_ever)
        gs.checkpoint()
        threading.Thread(target=scope.cancel).start()
        wait_for_ever()

    assert task.cancelled()


def in_os_thread(function):
    """Calls the function in an OS thread of its own; what it raises is raised here."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result()


@virtually
def test_scope_whose_owner_ended_inside_is_cancelled():
    """A generator that was suspended in a scope outlives the virtual thread that entered it."""
    tasks = []

    def body():
        with gs.scope() as scope:
            tasks.append(scope.spawn(wait_for_ever))
            yield

    generators = []

    def owner():
        generators.append(body())
        next(generators[0])

    with gs.scope() as scope:
        scope.spawn(owner)
    settle()

    assert tasks[0].cancelled()
    generators.pop().close()


def suspended_in_a_scope(kept):
    def body():
        with gs.scope(timeout=1000) as scope:
            scope.spawn(wait_for_ever)
            yield

    kept.append(body())
    next(kept[0])


@pytest.mark.parametrize("leave", [lambda call: call(), lambda call: gs.run(call), in_os_thread])
def test_scope_left_open_at_the_end_of_run_is_left_without_a_word(leave):
    kept = []
    gs.run(suspended_in_a_scope, kept)

    leave(kept.pop().close)
    gc.collect()


def test_error_in_a_scope_left_open_at_the_end_of_run_is_raised():
    kept = []
    gs.run(suspended_in_a_scope, kept)

    with pytest.raises(ExceptionGroup) as caught:
        kept.pop().throw(KeyError("late"))

    assert "(KeyError('late'),)" == repr(caught.value.exceptions)


def test_coroutine_that_is_dropped_after_its_run_in_a_scope():
    async def body():
        async with gs.scope() as scope:
            scope.spawn(wait_for_ever)
            await asyncio.Event().wait()

    async def main():
        kept.append(body())
        kept[0].send(None)

    kept = []
    gs.run(main)

    kept.clear()  # what it raises nobody can take: a warning, and so an error
    gc.collect()


@virtually
def test_closing_a_generator_inside_a_scope_is_no_failure():
    def body():
        with gs.scope() as scope:
            scope.spawn(wait_for_ever)
            yield 1

    generator = body()
    next(generator)

    generator.close()


@virtually
def test_scope_works_with_async_with():
    async def main():
        async with gs.scope() as scope:
            return scope.spawn(lambda: 3)

    assert 3 == asyncio.run(main()).result()


@virtually
def test_thousand_nested_scopes():
    def nest(depth):
        with gs.scope() as scope:
            if depth:
                scope.spawn(nest, depth - 1)

    nest(1000)
