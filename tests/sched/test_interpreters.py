# SPDX-License-Identifier: Apache-2.0
"""Several interpreters, each with its own GIL, run virtual threads at once."""

from __future__ import annotations

import sys
import textwrap
import threading

import pytest
from own_gil import create, interpreters, run

WORK = textwrap.dedent(
    f"""
    import sys
    sys.path[:] = {sys.path!r}
    import queue, socket, threading, time
    import gossamer as gs

    def main():
        numbers = queue.Queue()
        lock = threading.RLock()
        total = 0

        def add(number):
            nonlocal total
            time.sleep(0.001 * (number % 3))
            with lock:
                before = total
                gs.checkpoint()
                total = before + number
            numbers.put(number)

        with gs.scope() as scope:
            for number in range(200):
                scope.spawn(add, number)
            seen = sorted(numbers.get() for _ in range(200))
        assert seen == list(range(200)) and total == sum(range(200)), (seen, total)
        left, right = socket.socketpair()
        with left, right, gs.scope() as scope:
            received = scope.spawn(left.recv, 10)
            scope.spawn(right.sendall, b"hello")
        assert received.result() == b"hello"

    for _ in range(3):
        gs.run(main)
    """
)


def work_in_an_interpreter(failures: list[object]) -> None:
    interpreter = create()
    try:
        failure = run(interpreter, WORK)
        if failure is not None:
            failures.append(failure)
    except Exception as error:
        failures.append(error)
    finally:
        interpreters.destroy(interpreter)


@pytest.mark.parametrize("count", [1, 4])
def test_interpreters_with_their_own_gil_run_hubs_at_once(count: int) -> None:
    """Each interpreter has a hub of its own; the main interpreter's runs beside them."""
    failures: list[object] = []
    threads = [threading.Thread(target=work_in_an_interpreter, args=(failures,)) for _ in range(count)]

    for thread in threads:
        thread.start()
    exec(WORK, {"__name__": "work"})
    for thread in threads:
        thread.join()

    assert [] == failures
