# SPDX-License-Identifier: Apache-2.0
"""What the tests of the event loop share."""

import asyncio
import contextlib
import functools
import gc
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import gossamer as gs
import pytest


def run_on_thread(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run it on a loop of ours on this ordinary thread."""
    with asyncio.Runner(loop_factory=gs.new_event_loop) as runner:
        return runner.run(coroutine)


def run_virtually(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run it on a loop of ours in the main virtual thread."""
    return gs.run(run_on_thread, coroutine)


both_ways = pytest.mark.parametrize("run", [run_on_thread, run_virtually])


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run the test's coroutine both ways, one after the other."""

    @functools.wraps(test)
    def run_test(**fixtures: Any) -> None:
        run_on_thread(test(**fixtures))
        run_virtually(test(**fixtures))

    return run_test


def forget(objects: list[Any]) -> None:
    """Drop the last references to what is in the list."""
    objects.clear()
    gc.collect()


@contextlib.contextmanager
def new_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Make a loop that is closed at the end."""
    loop = gs.new_event_loop()
    try:
        yield loop
    finally:
        loop.close()


@contextlib.contextmanager
def socket_pair(kind: int = socket.SOCK_STREAM) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected non-blocking sockets."""
    left, right = socket.socketpair(type=kind)
    with left, right:
        left.setblocking(False)
        right.setblocking(False)
        yield left, right


def collect_errors() -> list[Any]:
    """Return a list of what the loop's exception handler is given."""
    contexts: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: contexts.append(context))
    return contexts
