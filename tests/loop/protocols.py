# SPDX-License-Identifier: Apache-2.0
"""Protocols that the tests of transports share."""

import asyncio


class Recorder(asyncio.Protocol):
    """Notes what it is told, and can be waited for."""

    def __init__(self):
        self.calls = []
        self.received = bytearray()
        self.changed = asyncio.Event()
        self.keep_open = False

    def note(self, *call):
        self.calls.append(call)
        self.changed.set()

    async def until(self, condition):
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    async def lost(self):
        await self.until(lambda: self.calls and self.calls[-1][0] == "lost")

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.received += data
        self.note("data", data)

    def eof_received(self):
        self.note("eof")
        return self.keep_open

    def connection_lost(self, error):
        self.note("lost", error)

    def pause_writing(self):
        self.note("pause")

    def resume_writing(self):
        self.note("resume")
