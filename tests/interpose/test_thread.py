# SPDX-License-Identifier: Apache-2.0
"""Starting, joining and ending threads, virtual ones and OS threads beside each other."""

from __future__ import annotations

import sys
import threading

import gossamer as gs
import pytest
from gossamer import _core


def test_joining_an_os_thread_parks():
    may_end = threading.Event()

    def main() -> bool:
        thread = threading.Thread(target=may_end.wait)
        thread.start()
        with gs.scope() as scope:
            scope.spawn(may_end.set)  # runs only if the join below parks
            thread.join()
        return thread.is_alive()

    assert gs.run(main) is False


def test_many_virtual_threads_join_one_os_thread():
    may_end = threading.Event()

    def main() -> list[bool]:
        thread = threading.Thread(target=may_end.wait)
        thread.start()

        def joiner() -> bool:
            thread.join()
            return thread.is_alive()

        with gs.scope() as scope:
            tasks = [scope.spawn(joiner) for _ in range(20)]
            gs.checkpoint()
            may_end.set()
        return [task.result() for task in tasks]

    assert [False] * 20 == gs.run(main)


def test_joining_an_os_thread_that_was_started_before_gossamer_parks():
    may_end = threading.Event()
    thread = threading.Thread(target=may_end.wait)
    thread.start()

    def main() -> bool:
        with gs.scope() as scope:
            scope.spawn(may_end.set)
            thread.join()
        return thread.is_alive()

    assert gs.run(main) is False


def test_a_join_that_times_out_leaves_the_os_thread_running():
    may_end = threading.Event()

    def main() -> list[bool]:
        thread = threading.Thread(target=may_end.wait)
        thread.start()
        seen = []
        for _ in range(3):
            thread.join(0.001)
            seen.append(thread.is_alive())
        may_end.set()
        thread.join()
        return [*seen, thread.is_alive()]

    assert [True, True, True, False] == gs.run(main)


def test_a_cancelled_join_leaves_the_os_thread_to_the_next():
    may_end = threading.Event()

    def main() -> bool:
        thread = threading.Thread(target=may_end.wait)
        thread.start()
        with gs.scope() as scope:
            task = scope.spawn(thread.join)
            gs.checkpoint()
            task.cancel()
        may_end.set()
        thread.join()
        return thread.is_alive()

    assert gs.run(main) is False


def test_a_virtual_thread_cannot_join_itself():
    def body() -> None:
        with pytest.raises(RuntimeError):
            threading.current_thread().join()

    def main() -> None:
        with gs.scope() as scope:
            scope.spawn(body)

    gs.run(main)


def test_a_large_stack_allows_deeper_c_recursion():
    def depth(level: int = 0) -> int:
        # sorted() calls back into Python, so each level takes C stack.
        try:
            return sorted([0], key=lambda _: seen.append(level) or depth(level + 1))[0]
        except RecursionError:
            return 0

    def main() -> int:
        seen.clear()
        with gs.scope() as scope:
            scope.spawn(depth)
        return max(seen)

    seen: list[int] = []
    assert gs.run(main) >= 40


def test_stack_size_without_an_argument_gives_new_threads_the_default_again():
    def depth(level: int, seen: list[int]) -> int:
        seen.append(level)
        try:
            return sorted([0], key=lambda _: depth(level + 1, seen))[0]
        except RecursionError:
            return 0

    def depth_on_a_thread() -> int:
        seen: list[int] = []
        thread = threading.Thread(target=depth, args=(0, seen))
        thread.start()
        thread.join()
        return max(seen)

    def main() -> tuple[int, int, int]:
        _core.make_threads_virtual(True)
        usual = depth_on_a_thread()
        threading.stack_size(4 << 20)
        large = depth_on_a_thread()
        threading.stack_size()
        return usual, large, depth_on_a_thread()

    usual, large, again = gs.run(main)
    assert large > 2 * max(usual, again)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="handles are of 3.13 and later")
def test_a_handle_of_a_virtual_thread_is_done_when_it_has_ended():
    import _thread

    def main() -> bool:
        handle = _thread.start_joinable_thread(lambda: None)
        handle.join()
        return handle.is_done()

    assert gs.run(main) is True
