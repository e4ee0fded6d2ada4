# SPDX-License-Identifier: Apache-2.0
"""The far server of the library tests: HTTP/1.1 with connections that stay open, in a process of its own.

It holds each request back until the caller's crowd is there: an answer leaves once as many requests wait as the
query's ``crowd`` says, so a client that does not have that many in flight at once gets none. What it counted is told
at ``/peak``.

    python server.py        prints its port; ends when its standard input does
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit


@dataclass
class Crowd:
    """The requests that are held at once, and the most that ever were."""

    held: int = 0
    peak: int = 0
    served: int = 0
    connections: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self, size: int) -> None:
        """Wait until ``size`` requests wait here."""
        self.held += 1
        self.peak = max(self.peak, self.held)
        gate = self.gate
        if self.held >= size:
            gate.set()
            self.gate = asyncio.Event()
            self.held = 0
        await gate.wait()
        self.served += 1


async def serve(crowd: Crowd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection until the client closes it."""
    crowd.connections += 1
    try:
        while request := await read_request(reader):
            target = urlsplit(request)
            if target.path == "/peak":
                body = f"{crowd.peak} {crowd.served} {crowd.connections}".encode()
            else:
                await crowd.wait(int(parse_qs(target.query)["crowd"][0]))
                body = target.path.encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body)
            writer.write(head + body)
            await writer.drain()
    finally:
        writer.close()


async def read_request(reader: asyncio.StreamReader) -> str:
    """The target of the next request; empty at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return ""
    return head.split(b" ", 2)[1].decode()


async def main() -> None:
    """Serve until standard input ends."""
    crowd = Crowd()
    server = await asyncio.start_server(lambda *ends: serve(crowd, *ends), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
