# SPDX-License-Identifier: Apache-2.0
"""VirtualThreadPoolExecutor: everything that `concurrent.futures` promises, from virtual threads and OS threads."""

import concurrent.futures
import os
import queue
import subprocess
import sys
import threading
from concurrent.futures.thread import BrokenThreadPool

import gossamer as gs
import pytest
from virtually import settle, virtually


@virtually
def test_submit_runs_the_call_and_the_future_has_its_result():
    with gs.VirtualThreadPoolExecutor() as executor:
        future = executor.submit(pow, 2, exp=5)

        assert 32 == future.result()


@virtually
def test_future_has_the_exception():
    with gs.VirtualThreadPoolExecutor() as executor, pytest.raises(ValueError):
        executor.submit(int, "x").result()


@virtually
def test_calls_run_at_the_same_time():
    barrier = threading.Barrier(100)
    with gs.VirtualThreadPoolExecutor() as executor:
        futures = [executor.submit(barrier.wait) for _ in range(100)]

    assert set(range(100)) == {future.result() for future in futures}


@virtually
def test_at_most_max_workers_calls_run():
    running = []
    most = []

    def work():
        running.append(1)
        most.append(len(running))
        gs.checkpoint()
        running.pop()

    with gs.VirtualThreadPoolExecutor(max_workers=2) as executor:
        for _ in range(10):
            executor.submit(work)

    assert 2 == max(most)
    assert 10 == len(most)


@virtually
def test_call_that_waits_for_its_turn_can_be_cancelled_and_one_that_runs_cannot():
    gate = queue.SimpleQueue()
    with gs.VirtualThreadPoolExecutor(max_workers=1) as executor:
        first = executor.submit(gate.get)
        second = executor.submit(int)
        settle()

        assert not first.cancel()
        assert second.cancel()
        gate.put(3)
        assert 3 == first.result()

    assert second.cancelled()


@virtually
def test_map_is_ordered_and_gives_up_after_its_time_out():
    with gs.VirtualThreadPoolExecutor() as executor:
        assert [1, 4, 9] == list(executor.map(pow, [1, 2, 3], [2, 2, 2], chunksize=2))
        gate = queue.SimpleQueue()
        with pytest.raises(TimeoutError):
            list(executor.map(lambda _: gate.get(), [0], timeout=0.001))
        gate.put(None)


@virtually
def test_works_with_the_functions_of_concurrent_futures():
    called = []
    with gs.VirtualThreadPoolExecutor() as executor:
        futures = [executor.submit(int, text) for text in "123"]
        futures[0].add_done_callback(called.append)

        done, not_done = concurrent.futures.wait(futures)

        assert {1, 2, 3} == {future.result() for future in concurrent.futures.as_completed(futures)}
        assert (set(futures), set()) == (done, not_done)
    assert [futures[0]] == called


@virtually
def test_submit_after_shutdown_is_an_error():
    executor = gs.VirtualThreadPoolExecutor()
    executor.shutdown()

    with pytest.raises(RuntimeError):
        executor.submit(int)


@virtually
def test_shutdown_without_waiting_lets_the_calls_end():
    gate = queue.SimpleQueue()
    executor = gs.VirtualThreadPoolExecutor(max_workers=1)
    futures = [executor.submit(gate.get) for _ in range(2)]

    executor.shutdown(wait=False)
    gate.put(1)
    gate.put(2)

    assert [1, 2] == [future.result() for future in futures]
    executor.shutdown()


@virtually
def test_shutdown_can_cancel_what_has_not_begun():
    gate = queue.SimpleQueue()
    executor = gs.VirtualThreadPoolExecutor(max_workers=1)
    first, second = executor.submit(gate.get), executor.submit(gate.get)
    settle()
    gate.put(1)

    executor.shutdown(cancel_futures=True)

    assert 1 == first.result()
    assert second.cancelled()


@virtually
def test_initializer_runs_before_each_call_in_its_thread():
    local = threading.local()

    def initialize(value):
        local.value = value

    with gs.VirtualThreadPoolExecutor(initializer=initialize, initargs=(7,)) as executor:
        assert [7, 7] == [executor.submit(lambda: local.value).result() for _ in range(2)]


@virtually
def test_initializer_that_fails_breaks_the_executor():
    with gs.VirtualThreadPoolExecutor(initializer=int, initargs=("x",)) as executor:
        future = executor.submit(int)

        with pytest.raises(BrokenThreadPool):
            future.result()
        with pytest.raises(BrokenThreadPool):
            executor.submit(int)


@virtually
def test_threads_have_the_prefix_in_their_name():
    with gs.VirtualThreadPoolExecutor(thread_name_prefix="worker") as executor:
        assert executor.submit(lambda: threading.current_thread().name).result().startswith("worker_")


@pytest.mark.parametrize("arguments", [{"max_workers": 0}, {"max_workers": -1}])
def test_limit_below_one_is_refused(arguments):
    with pytest.raises(ValueError):
        gs.VirtualThreadPoolExecutor(**arguments)


@virtually
def test_submit_from_an_os_thread():
    answers = queue.SimpleQueue()
    with gs.VirtualThreadPoolExecutor() as executor:
        here = threading.get_native_id()
        threading.Thread(target=lambda: answers.put(executor.submit(threading.get_native_id).result())).start()

        assert here == answers.get()


def test_executor_of_an_os_thread_runs_its_calls_on_an_os_thread_of_its_own():
    barrier = threading.Barrier(50)

    with gs.VirtualThreadPoolExecutor() as executor:
        futures = [executor.submit(lambda: (barrier.wait(), threading.get_native_id())[1]) for _ in range(50)]
        os_threads = {future.result() for future in futures}

    assert 1 == len(os_threads)
    assert threading.get_native_id() not in os_threads


def test_executor_that_is_forgotten_still_runs_its_call():
    assert 3 == gs.VirtualThreadPoolExecutor().submit(int, 3).result(timeout=30)


def test_run_waits_for_the_calls_of_an_executor_that_was_not_shut_down():
    seen = []

    def main():
        executor = gs.VirtualThreadPoolExecutor()
        executor.submit(lambda: (gs.checkpoint(), seen.append(True)))
        return executor

    executor = gs.run(main)

    assert [True] == seen
    with pytest.raises(RuntimeError):
        executor.submit(int)


def test_end_of_a_program_waits_for_calls():
    program = (
        "import gossamer, time\n"
        "executor = gossamer.VirtualThreadPoolExecutor()\n"
        "executor.submit(lambda: (time.sleep(0.01), print('done')))\n"
    )

    for command in ([sys.executable, "-c"], [sys.executable, "-m", "gossamer", "run", "-c"]):
        result = subprocess.run([*command, program], capture_output=True, text=True, timeout=60, env=os.environ)
        assert (0, "done\n", "") == (result.returncode, result.stdout, result.stderr)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # carriers of earlier tests may be ending
def test_forked_child_does_not_wait_for_the_calls_of_its_parent():
    def main():
        gate = queue.SimpleQueue()
        with gs.VirtualThreadPoolExecutor() as executor:
            executor.submit(gate.get)
            settle()
            child = os.fork()
            if child == 0:
                executor.shutdown()
                os._exit(7)
            gate.put(None)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert 7 == gs.run(main)
