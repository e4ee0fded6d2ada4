# SPDX-License-Identifier: Apache-2.0
"""What the tests of waiting calls share: a virtual thread that waits, looked at from another one.

Nothing here sleeps. A wait that blocks its carrier instead of parking hangs the test, and the watchdog ends the run
with a
traceback.
"""

import asyncio
import contextlib
import faulthandler
import functools
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import gossamer as gs
import pytest
from gossamer import _core

LONGEST = 60  # seconds that a test may take


def virtually(test: Callable[..., None]) -> Callable[..., None]:
    """Run the test as the main virtual thread."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        try:
            gs.run(functools.partial(test, *args, **kwargs))
        finally:
            faulthandler.cancel_dump_traceback_later()

    return run


def settle() -> None:
    """Let every other virtual thread run until it waits."""
    while any(status == "ready" for _ident, status, *_rest in _core.threads()):
        gs.checkpoint()


def waiting_for() -> list[str]:
    """What the other virtual threads wait for."""
    return [what for _ident, status, what, *_rest in _core.threads() if status == "parked"]


def assert_parks(wait: Callable[[], Any], wake: Callable[[], Any]) -> Any:
    """Run ``wait`` in a virtual thread, see it parked, call ``wake``, and return what ``wait`` returned."""
    with gs.scope() as scope:
        task = scope.spawn(wait)
        settle()
        assert [task] == [entry[7] for entry in _core.threads() if entry[1] == "parked"]
        wake()
        return task.result()


def assert_is_cancelled(wait: Callable[[], Any]) -> None:
    """Cancel ``wait`` where it parks."""
    ends = []

    def body() -> None:
        try:
            ends.append(wait())
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    with gs.scope() as scope:
        task = scope.spawn(body)
        settle()
        assert not task.done()
        task.cancel()
        settle()
    assert ["cancelled"] == ends


def error_of(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[type, str] | None:
    """The class and the message of what the call raises."""
    try:
        call(*args, **kwargs)
    except Exception as error:
        return type(error), str(error)
    return None


def on_os_thread(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """Call the function on an ordinary OS thread; what is returned here waits for its result, by a queue."""
    results: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=lambda: results.put(function(*args))).start()
    return results.get


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe; a test may close them itself."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for fd in ends:
            with contextlib.suppress(OSError):
                os.close(fd)


def fill(fd: int) -> int:
    """Write to the pipe until it is full; return how much went in."""
    os.set_blocking(fd, False)
    size = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            size += os.write(fd, bytes(4096))
    os.set_blocking(fd, True)
    return size


@pytest.fixture
def pipe_ends() -> Iterator[tuple[int, int]]:
    """A pipe, made before Gossamer starts."""
    with pipe() as ends:
        yield ends
