# SPDX-License-Identifier: Apache-2.0
"""An asyncio policy whose loops are Gossamer's: for programs that set one, up to Python 3.15."""

from __future__ import annotations

from asyncio import unix_events

from gossamer._event_loop import EventLoop


class EventLoopPolicy(unix_events._UnixDefaultEventLoopPolicy):
    """asyncio's usual policy, with Gossamer's loop: ``asyncio.set_event_loop_policy(gossamer.EventLoopPolicy())``."""

    _loop_factory = EventLoop
