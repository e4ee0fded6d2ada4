# SPDX-License-Identifier: Apache-2.0
"""Runs a test's coroutine as a task of plain asyncio inside Gossamer."""

import asyncio
import functools
import inspect
import queue
from collections.abc import Callable, Coroutine
from typing import Any

import gossamer as gs
from gossamer import _core


def in_task(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Decorates an `async def` test; no task may be left parked behind."""

    @functools.wraps(test)
    def run_test(**fixtures: Any) -> None:
        def main() -> None:
            asyncio.run(test(**fixtures))
            assert 0 == _core.statistics()["parked_steps"], "a task is left parked"

        gs.run(main)

    run_test.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return run_test


def blocking_get(gate: queue.SimpleQueue) -> Any:
    """A plain function that waits."""
    return gate.get()


async def settle() -> None:
    """Lets the other tasks run until each waits."""
    for _ in range(10):
        await asyncio.sleep(0)
