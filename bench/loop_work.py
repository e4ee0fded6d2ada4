# SPDX-License-Identifier: Apache-2.0
"""What is measured of an event loop, the same for every loop: `main(loop_factory)` runs what the command line names.

Steps and timers are timed here (meter.py); an echo server prints its port and serves until it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from meter import Meter

STEPS = 300_000
TIMERS = 1_000_000
MOST_BYTES = 65536


async def steps() -> None:
    """`await asyncio.sleep(0)` in one task."""
    for _ in range(1000):
        await asyncio.sleep(0)
    with Meter(STEPS):
        for _ in range(STEPS):
            await asyncio.sleep(0)


async def timers() -> None:
    """A million timers set, then cancelled."""
    loop = asyncio.get_running_loop()
    with Meter(TIMERS):
        handles = [loop.call_later(3600 + index * 1e-3, int) for index in range(TIMERS)]
        for handle in handles:
            handle.cancel()
        del handles
        await asyncio.sleep(0)


class Echo(asyncio.Protocol):
    """Sends back what comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Send it back."""
        self._transport.write(data)


def listener() -> socket.socket:
    """Return a listening socket, after its port was printed."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
    sock.setblocking(False)
    print(sock.getsockname()[1], flush=True)
    return sock


async def protocol() -> None:
    """An echo server of protocols."""
    await asyncio.get_running_loop().create_server(Echo, sock=listener())
    await asyncio.Event().wait()


class DatagramEcho(asyncio.DatagramProtocol):
    """Sends back what comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Send it back."""
        self._transport.sendto(data, addr)


async def datagrams() -> None:
    """An echo server of datagrams."""
    address = ("127.0.0.1", 0)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(DatagramEcho, local_addr=address)
    print(transport.get_extra_info("sockname")[1], flush=True)
    await asyncio.Event().wait()


async def tls() -> None:
    """The same, under TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(Path(sys.argv[2]))
    await asyncio.get_running_loop().create_server(Echo, sock=listener(), ssl=context)
    await asyncio.Event().wait()


async def streams() -> None:
    """An echo server of streams."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(MOST_BYTES):
            writer.write(data)
            await writer.drain()

    await asyncio.start_server(serve, sock=listener())
    await asyncio.Event().wait()


async def sock() -> None:
    """An echo server of `loop.sock_recv` and `loop.sock_sendall`."""
    loop = asyncio.get_running_loop()
    listening = listener()
    tasks = set()

    async def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            while data := await loop.sock_recv(connection, MOST_BYTES):
                await loop.sock_sendall(connection, data)

    while True:
        connection, _address = await loop.sock_accept(listening)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tasks.add(loop.create_task(serve(connection)))


WORK: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
    work.__name__: work for work in (steps, timers, protocol, tls, streams, sock, datagrams)
}


def main(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Run what the command line names on a loop of the factory's."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(WORK[sys.argv[1]]())
