# SPDX-License-Identifier: Apache-2.0
"""What the tests of TLS share: contexts of both sides, and another side that does what a test says."""

import asyncio
import functools
import socket
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from loops import socket_pair
from protocols import Recorder


@functools.cache
def certificate() -> bytes:
    """A self-signed certificate of localhost with its key."""
    with tempfile.TemporaryDirectory() as folder:
        key, cert = Path(folder) / "key.pem", Path(folder) / "cert.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
        subprocess.run(command, check=True, capture_output=True)
        return key.read_bytes() + cert.read_bytes()


def server_context(maximum: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED) -> ssl.SSLContext:
    """A server's context, with localhost's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = maximum
    with tempfile.NamedTemporaryFile() as file:
        file.write(certificate())
        file.flush()
        context.load_cert_chain(file.name)
    return context


def client_context() -> ssl.SSLContext:
    """A client's context, which trusts localhost's certificate."""
    return ssl.create_default_context(cadata=certificate().decode())


class Peer:
    """The other side of a connection: a socket and an SSL object, which does one thing at a time."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool) -> None:
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        hostname = None if server_side else "localhost"
        self.ssl = context.wrap_bio(self.incoming, self.outgoing, server_side=server_side, server_hostname=hostname)

    async def flush(self) -> None:
        """Send what is encrypted."""
        await self.loop.sock_sendall(self.sock, self.outgoing.read())

    async def do(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call a method of the SSL object until it needs nothing more from us."""
        while True:
            try:
                result = call(*args)
                break
            except ssl.SSLWantReadError:
                await self.flush()
                if data := await self.loop.sock_recv(self.sock, 65536):
                    self.incoming.write(data)
                else:
                    self.incoming.write_eof()
        await self.flush()
        return result

    async def handshake(self) -> None:
        """Do it."""
        await self.do(self.ssl.do_handshake)

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        for start in range(0, len(data), 16384):
            await self.do(self.ssl.write, data[start : start + 16384])

    async def receive(self, size: int) -> bytes:
        """Receive so much."""
        received = bytearray()
        while len(received) < size and (data := await self.do(self.ssl.read, size - len(received))):
            received += data
        return bytes(received)

    async def read_to_end(self) -> tuple[bytes, str]:
        """Receive everything, and how it ended: with close_notify, or without."""
        received = bytearray()
        try:
            while data := await self.do(self.ssl.read, 65536):
                received += data
        except ssl.SSLZeroReturnError:  # how it ends once we have said so ourselves
            return bytes(received), "closed"
        except ssl.SSLEOFError:
            return bytes(received), "cut"
        except ConnectionError:
            return bytes(received), "reset"
        return bytes(received), "closed"

    async def say_close(self) -> None:
        """Send close_notify, and do not wait for the answer."""
        try:
            self.ssl.unwrap()
        except ssl.SSLWantReadError:
            pass
        await self.flush()


def begin_connecting(
    sock: socket.socket, protocol: Callable[[], Any], *, server_side: bool, context: Any = None, **options: Any
) -> asyncio.Task[Any]:
    """Begin to make our side of a connection of the socket."""
    loop = asyncio.get_running_loop()
    if server_side:
        connecting = loop.connect_accepted_socket(protocol, sock, ssl=context or server_context(), **options)
    else:
        hostname = options.pop("server_hostname", "localhost")
        connecting = loop.create_connection(
            protocol, sock=sock, ssl=context or client_context(), server_hostname=hostname, **options
        )
    return loop.create_task(connecting)


@asynccontextmanager
async def connected(
    protocol: Callable[[], Any] = Recorder,
    *,
    server_side: bool = False,
    maximum: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
    **options: Any,
) -> AsyncIterator[tuple[Any, Any, Peer]]:
    """A transport, its protocol, and the other side."""
    with socket_pair() as (left, right):
        if server_side:
            options.setdefault("context", server_context(maximum))
        peer = Peer(right, client_context() if server_side else server_context(maximum), server_side=not server_side)
        connecting = begin_connecting(left, protocol, server_side=server_side, **options)
        await peer.handshake()
        transport, made = await connecting
        try:
            yield transport, made, peer
        finally:
            transport.abort()
            if isinstance(made, Recorder):
                await made.lost()


SIDES = [pytest.param(False, id="client"), pytest.param(True, id="server")]
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


async def turns(count: int = 40) -> None:
    """Let the loop do everything that is ready."""
    for _ in range(count):
        await asyncio.sleep(0)
