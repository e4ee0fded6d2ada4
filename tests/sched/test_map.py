# SPDX-License-Identifier: Apache-2.0
"""`map`, `wait`, `as_completed`, `race`: order, limits, and that the rest has ended on the way out."""

import asyncio
import gc
import queue
import threading

import gossamer as gs
import pytest
from virtually import settle, virtually


@virtually
def test_map_yields_results_in_the_order_of_the_input():
    gates = [queue.SimpleQueue() for _ in range(3)]

    def work(number):
        gates[number].get()
        if number:
            gates[number - 1].put(None)  # the last ends first
        return number

    gates[2].put(None)

    assert [0, 1, 2] == list(gs.map(work, range(3)))


@virtually
def test_map_as_completed_yields_results_as_they_arrive():
    gates = [queue.SimpleQueue() for _ in range(3)]

    def work(number):
        gates[number].get()
        if number:
            gates[number - 1].put(None)
        return number

    gates[2].put(None)

    assert [2, 1, 0] == list(gs.map(work, range(3), as_completed=True))


@pytest.mark.parametrize("as_completed", [False, True])
@virtually
def test_map_runs_at_most_limit_calls_and_pulls_no_more_input(as_completed):
    pulled = []
    running = set()
    most = []

    def items():
        for number in range(20):
            pulled.append(number)
            yield number

    def work(number):
        running.add(number)
        most.append(len(running))
        gs.checkpoint()
        running.discard(number)
        return number

    results = gs.map(work, items(), limit=3, as_completed=as_completed)
    assert [] == pulled
    for taken, _result in enumerate(results, 1):
        assert len(pulled) <= taken + 3

    assert 20 == len(pulled)
    assert 3 == max(most)


@pytest.mark.parametrize("as_completed", [False, True])
@virtually
def test_map_raises_the_bare_failure_and_ends_the_rest(as_completed):
    ended = []

    def work(number):
        if number == 2:
            raise KeyError(number)
        try:
            if number > 2:
                gs.sleep(1000)
        finally:
            ended.append(number)

    with pytest.raises(KeyError):
        list(gs.map(work, range(6), as_completed=as_completed))

    assert [0, 1, 3, 4, 5] == sorted(ended)


@virtually
def test_map_tells_in_a_note_of_other_calls_that_failed():
    def work(number):
        raise ValueError(number)

    with pytest.raises(ValueError) as caught:
        list(gs.map(work, range(3)))

    assert [
        "another call failed too: ValueError(1)",
        "another call failed too: ValueError(2)",
    ] == caught.value.__notes__


@pytest.mark.parametrize("as_completed", [False, True])
@virtually
def test_leaving_map_early_cancels_the_rest_and_waits_for_it(as_completed):
    ended = []

    def work(number):
        if number:
            try:
                gs.sleep(1000)
            finally:
                with gs.shield():
                    gs.checkpoint()
                ended.append(number)

    for _result in gs.map(work, range(4), as_completed=as_completed):
        break

    assert {1, 2, 3} == set(ended)


@virtually
def test_failure_of_a_call_whose_result_was_never_taken_is_not_lost(monkeypatch):
    lost = []
    monkeypatch.setattr(threading, "excepthook", lambda args: lost.append(args.exc_value))

    def work(number):
        if number:
            raise KeyError(number)

    for _result in gs.map(work, range(2)):
        settle()
        break
    gc.collect()

    assert [KeyError] == [type(error) for error in lost]


@virtually
def test_cancelling_who_takes_from_map_ends_the_calls():
    ended = []

    def work(_number):
        try:
            gs.sleep(1000)
        finally:
            ended.append(True)

    with gs.scope() as scope:
        task = scope.spawn(lambda: list(gs.map(work, range(3))))
        settle()
        task.cancel()

    assert task.cancelled()
    assert 3 == len(ended)


@virtually
def test_failure_of_a_call_does_not_interrupt_the_body_of_the_loop():
    seen = []

    def work(number):
        if number:
            raise KeyError

    with pytest.raises(KeyError):
        for _result in gs.map(work, range(2)):
            settle()
            seen.append("undisturbed")

    assert ["undisturbed"] == seen


@virtually
def test_map_runs_a_coroutine_function():
    async def double(number):
        await asyncio.sleep(0)
        return 2 * number

    assert [0, 2, 4] == list(gs.map(double, range(3)))


def test_map_checks_its_arguments_at_once():
    with pytest.raises(TypeError):
        gs.map(3, [])
    with pytest.raises(TypeError):
        gs.map(int, 3)
    with pytest.raises(ValueError):
        gs.map(int, [], limit=0)


@virtually
def test_wait_returns_when_all_have_ended():
    with gs.scope() as scope:
        tasks = [scope.spawn(int) for _ in range(3)]

        assert (set(tasks), set()) == gs.wait(tasks)


@virtually
def test_wait_gives_up_after_its_time_out():
    gate = queue.SimpleQueue()
    with gs.scope() as scope:
        slow = scope.spawn(gate.get)
        fast = scope.spawn(int)

        assert ({fast}, {slow}) == gs.wait([slow, fast], timeout=0.001)
        gate.put(None)


@virtually
def test_wait_for_the_first():
    gate = queue.SimpleQueue()
    with gs.scope() as scope:
        slow = scope.spawn(gate.get)
        fast = scope.spawn(int)

        done, not_done = gs.wait([slow, fast], return_when="FIRST_COMPLETED")
        gate.put(None)

    assert ({fast}, {slow}) == (done, not_done)


@virtually
def test_wait_for_the_first_exception():
    gate = queue.SimpleQueue()
    with pytest.raises(ExceptionGroup), gs.scope() as scope, gs.shield():
        slow = scope.spawn(lambda: (gs.shield().__enter__(), gate.get()))
        fast = scope.spawn(int)
        failed = scope.spawn(int, "x")
        done, not_done = gs.wait([slow, fast, failed], return_when="FIRST_EXCEPTION")
        gate.put(None)

    assert ({fast, failed}, {slow}) == (done, not_done)


@virtually
def test_wait_leaves_no_callback_behind():
    gate = queue.SimpleQueue()
    with gs.scope() as scope:
        slow = scope.spawn(gate.get)
        for _ in range(3):
            gs.wait([slow], timeout=0)
        assert [] == [thing for thing in gc.get_referents(slow) if isinstance(thing, list) and thing]
        gate.put(None)


def test_wait_refuses_an_unknown_condition():
    with pytest.raises(ValueError):
        gs.wait([], return_when="SOMETIME")


@virtually
def test_as_completed_yields_tasks_as_they_end():
    gates = [queue.SimpleQueue() for _ in range(3)]
    with gs.scope() as scope:
        tasks = [scope.spawn(gate.get) for gate in gates]
        order = []
        gates[1].put(None)
        for task in gs.as_completed(tasks):
            order.append(tasks.index(task))
            for gate in gates:
                gate.put(None)

    assert 1 == order[0]
    assert [0, 1, 2] == sorted(order)


@virtually
def test_as_completed_raises_timeout_error_when_time_is_up():
    with gs.scope() as scope:
        slow = scope.spawn(gs.sleep, 1000)
        fast = scope.spawn(int)
        seen = []
        with pytest.raises(TimeoutError, match=r"1 \(of 2\)"):
            for task in gs.as_completed([slow, fast], timeout=0.001):
                seen.append(task)
        scope.cancel()

    assert [fast] == seen


@virtually
def test_race_returns_the_first_result_and_ends_the_others():
    ended = []

    def slow():
        try:
            gs.sleep(1000)
        finally:
            ended.append(True)

    assert 0 == gs.race(slow, int)
    assert [True] == ended


@virtually
def test_race_raises_the_bare_failure_of_the_first():
    with pytest.raises(ValueError):
        gs.race(lambda: gs.sleep(1000), lambda: int("x"))


@virtually
def test_race_of_nothing_is_an_error():
    with pytest.raises(TypeError):
        gs.race()
