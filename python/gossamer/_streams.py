# SPDX-License-Identifier: Apache-2.0
"""What `asyncio.StreamReader.read` is on our event loop while its connection is open (``src/loop/stream.hpp``)."""

from __future__ import annotations

from asyncio import StreamReader
from typing import Any

from gossamer._core import take_bytes, wait_until_done


async def read(self: Any, n: int = -1) -> bytes:
    """Read up to ``n`` bytes, as `asyncio.StreamReader.read` does."""
    if n <= 0 or self._exception is not None:
        return await StreamReader.read(self, n)
    if not self._buffer and not self._eof:
        if self._waiter is None and not self._paused:
            waiter = self._waiter = self._gossamer_create_future()
            try:
                await wait_until_done(waiter)
            finally:
                self._waiter = None
        else:
            await self._wait_for_data("read")
    data = take_bytes(self._buffer, n)
    if self._paused:
        self._maybe_resume_transport()
    return data


read.__qualname__ = StreamReader.read.__qualname__
