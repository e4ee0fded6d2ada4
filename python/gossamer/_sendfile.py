# SPDX-License-Identifier: Apache-2.0
"""`loop.sendfile` of what has no descriptor, through a transport of ours.

asyncio's own code for that asks whether the transport is of a class of its own, which ours are not.
"""

from __future__ import annotations

from asyncio import base_events as _base_events
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gossamer._event_loop import EventLoop

# Of these, names are used that are asyncio's own, and that type checkers do not know.
base_events: Any = _base_events

_PIECE = 16 * 1024


class _Fallback(base_events._SendfileFallbackProtocol):  # type: ignore[misc]
    """In the protocol's place while the file is sent."""

    def __init__(self, transport: Any) -> None:  # as asyncio's, but for the question
        self._transport = transport
        self._proto = transport.get_protocol()
        self._should_resume_reading = transport.is_reading()
        self._should_resume_writing = transport._protocol_paused
        transport.pause_reading()
        transport.set_protocol(self)
        self._write_ready_fut = transport._loop.create_future() if self._should_resume_writing else None


async def send_in_pieces(loop: EventLoop, transport: Any, file: Any, offset: int, count: int | None) -> int:
    """Read the file in the loop's executor and write it to the transport; return how many bytes were sent."""
    if offset:
        file.seek(offset)
    buffer = bytearray(min(count, _PIECE) if count else _PIECE)
    sent = 0
    protocol = _Fallback(transport)
    try:
        while not count or sent < count:
            view = memoryview(buffer)[: count - sent if count else None]
            size = await loop.run_in_executor(None, file.readinto, view)
            if not size:
                break
            await protocol.drain()
            transport.write(view[:size])
            sent += size
        return sent
    finally:
        if sent > 0 and hasattr(file, "seek"):
            file.seek(offset + sent)
        await protocol.restore()
