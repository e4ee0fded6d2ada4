# SPDX-License-Identifier: Apache-2.0
"""Between coroutines and virtual threads: a coroutine as a task's work, and ``await task``."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

from gossamer._core import Task


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run ``coroutine`` in this virtual thread, on an event loop of its own, and return its result."""
    from gossamer._event_loop import EventLoop

    with asyncio.Runner(loop_factory=EventLoop) as runner:
        return runner.run(coroutine)


def await_task(task: Task[Any]) -> Generator[Any, None, Any]:
    """Wait for ``task`` in an asyncio task of any loop; cancelling the waiter cancels ``task``."""
    if not task.done():
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def tell_loop(_task: Task[Any]) -> None:
            try:
                loop.call_soon_threadsafe(_set_done, ended)
            except RuntimeError:
                if not loop.is_closed():
                    raise

        task._on_end(tell_loop)
        try:
            yield from ended
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            task._forget(tell_loop)
    return task.result(0)


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
