# SPDX-License-Identifier: Apache-2.0
"""Who wants to know when a loop begins to run on a thread, and when it ends: asyncio's, ours, or one written in C."""

from __future__ import annotations

import sys

from gossamer import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    type Watcher = Callable[[asyncio.AbstractEventLoop | None], None]

_watchers: list[Watcher] = []


def watch(watcher: Watcher) -> None:
    """Call ``watcher(loop)`` where a loop begins to run, and ``watcher(None)`` where none runs any more."""
    if watcher not in _watchers:
        _watchers.append(watcher)
    if "_asyncio" in sys.modules:  # else it is seen to when a carrier imports it
        _core.watch_running_loops()


def note(loop: asyncio.AbstractEventLoop | None) -> None:
    """Called by asyncio, through the extension."""
    for watcher in _watchers:
        watcher(loop)
