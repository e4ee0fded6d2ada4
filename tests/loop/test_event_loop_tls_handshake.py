# SPDX-License-Identifier: Apache-2.0
"""TLS: the handshake, and the upgrade of a connection."""

import asyncio
import logging
import socket
import ssl
import sys

import pytest
from loops import collect_errors, on_loop, run_on_thread, socket_pair
from protocols import Recorder
from tls import SIDES, Peer, begin_connecting, client_context, connected, server_context, turns

# ---- the handshake ----


@on_loop
async def test_a_certificate_that_is_not_trusted_fails_the_handshake():
    contexts = collect_errors()
    with socket_pair() as (left, right):
        peer = Peer(right, server_context(), server_side=True)
        connecting = begin_connecting(left, Recorder, server_side=False, context=ssl.create_default_context())
        with pytest.raises(ssl.SSLError):
            await peer.handshake()
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await connecting

    assert "CERTIFICATE_VERIFY_FAILED" == caught.value.reason
    assert [] == contexts  # an OSError: only in debug mode


@on_loop
async def test_a_side_that_speaks_no_tls_fails_the_handshake():
    with socket_pair() as (left, right):
        connecting = begin_connecting(left, Recorder, server_side=False)
        right.send(b"220 who are you?\r\n")
        with pytest.raises(ssl.SSLError):
            await connecting


@pytest.mark.parametrize("server_side", SIDES)
@on_loop
async def test_an_end_of_the_stream_fails_the_handshake(server_side):
    with socket_pair() as (left, right):
        connecting = begin_connecting(left, Recorder, server_side=server_side)
        await turns()
        right.close()
        with pytest.raises(ConnectionResetError):
            await connecting
        assert connecting.done()


@on_loop
async def test_a_handshake_is_not_waited_for_longer_than_the_time_out():
    made = []

    class Made(Recorder):
        def connection_made(self, transport):
            made.append(transport)

    with socket_pair() as (left, _right):
        connecting = begin_connecting(left, Made, server_side=False, ssl_handshake_timeout=0.01)
        with pytest.raises(ConnectionAbortedError, match="handshake is taking longer than"):
            await connecting
        await turns()

        assert -1 == left.fileno()
    assert [] == made


@pytest.mark.parametrize("turns_before", [0, 1, 2, 5])
@on_loop
async def test_who_no_longer_waits_for_the_handshake_has_it_end(turns_before):
    with socket_pair() as (left, right):
        protocol = Recorder()
        connecting = begin_connecting(left, lambda: protocol, server_side=False)
        await turns(turns_before)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        loop = asyncio.get_running_loop()
        while turns_before and left.fileno() != -1:
            await asyncio.sleep(0)
        left.close()
        while await loop.sock_recv(right, 65536):
            pass

    assert not hasattr(protocol, "transport")


@on_loop
async def test_a_connection_may_be_closed_before_its_handshake_begins():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, right):
        waiter = loop.create_future()
        loop._make_ssl_transport(left, Recorder(), client_context(), waiter, server_hostname="localhost").close()
        await waiter
        await turns()

        assert -1 == left.fileno()
        assert b"" == right.recv(100)


@on_loop
async def test_a_connection_may_be_closed_while_its_handshake_goes_on():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, _right):
        connecting = begin_connecting(left, Recorder, server_side=False)
        await turns()
        transport = loop._transports[left.fileno()].get_protocol()
        transport.close()
        assert transport.is_closing()
        result, protocol = await connecting

        assert transport is result
        assert not hasattr(protocol, "transport")
        assert -1 == left.fileno()


@on_loop
async def test_time_outs_must_be_positive():
    loop = asyncio.get_running_loop()
    for name in ("ssl_handshake_timeout", "ssl_shutdown_timeout"):
        with socket_pair() as (left, _right), pytest.raises(ValueError, match=f"{name} should be a positive number"):
            await begin_connecting(left, Recorder, server_side=False, **{name: 0})
    with socket_pair() as (left, _right), pytest.raises(ValueError, match="valid SSLContext"):
        loop._make_ssl_transport(left, Recorder(), None, server_side=True)


def test_debug_mode_tells_of_handshakes(caplog):
    async def main():
        asyncio.get_running_loop().set_debug(True)
        async with connected() as (_transport, protocol, peer):
            peer.sock.close()
            await protocol.lost()

    with caplog.at_level(logging.DEBUG, "asyncio"):
        run_on_thread(main())

    text = "\n".join(caplog.messages)
    assert "starts SSL handshake" in text
    assert "SSL handshake took" in text
    assert "received EOF" in text


@pytest.mark.parametrize("is_debugging", [False, True])
@on_loop
async def test_a_server_goes_on_after_a_handshake_that_fails(is_debugging):
    loop = asyncio.get_running_loop()
    loop.set_debug(is_debugging)
    contexts = collect_errors()
    made = []

    class Made(Recorder):
        def __init__(self):
            super().__init__()
            made.append(self)

    async with await loop.create_server(Made, "127.0.0.1", 0, ssl=server_context()) as server:
        address = server.sockets[0].getsockname()
        with socket.create_connection(address) as nonsense:
            nonsense.setblocking(False)
            await loop.sock_sendall(nonsense, b"GET / HTTP/1.0\r\n\r\n")
            while await loop.sock_recv(nonsense, 1000):
                pass
        transport, _ = await loop.create_connection(
            asyncio.Protocol, *address, ssl=client_context(), server_hostname="localhost"
        )
        transport.abort()
        await made[1].lost()
        loop.set_debug(False)

    assert [] == made[0].calls
    assert ["Error on transport creation for incoming connection"] * is_debugging == [
        context["message"] for context in contexts
    ]
    assert [made[0]] * is_debugging == [context["protocol"] for context in contexts]
    assert all(isinstance(context["exception"], ssl.SSLError) for context in contexts)


@on_loop
async def test_a_server_waits_for_its_connections():
    loop = asyncio.get_running_loop()
    served = Recorder()
    server = await loop.create_server(lambda: served, "127.0.0.1", 0, ssl=server_context())
    address = server.sockets[0].getsockname()
    transport, called = await loop.create_connection(
        Recorder, *address, ssl=client_context(), server_hostname="localhost"
    )
    server.close()
    waiting = loop.create_task(server.wait_closed())
    await turns()
    if sys.version_info >= (3, 12, 1):
        assert not waiting.done()
    if sys.version_info >= (3, 13):
        server.close_clients()
    transport.close()
    await waiting
    await called.lost()


# ---- start_tls ----


@pytest.mark.parametrize("server_side", SIDES)
@on_loop
async def test_a_plain_connection_is_upgraded_in_place(server_side):
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, right):
        plain, protocol = await loop.create_connection(Recorder, sock=left)
        plain.write(b"plain")
        assert b"plain" == await loop.sock_recv(right, 100)
        peer = Peer(right, client_context() if server_side else server_context(), server_side=not server_side)
        options = {"server_side": True} if server_side else {"server_hostname": "localhost"}
        context = server_context() if server_side else client_context()
        upgrading = loop.create_task(loop.start_tls(plain, protocol, context, **options))
        await peer.handshake()
        transport = await upgrading
        transport.write(b"secret")
        assert b"secret" == await peer.receive(6)
        await peer.send(b"answer")
        await protocol.until(lambda: protocol.received)

        assert plain is transport._ssl_protocol._transport
        assert plain is protocol.transport  # connection_made() is not called again
        assert transport is plain.get_protocol()
        assert transport._ssl_protocol._server_hostname == options.get("server_hostname")
        transport.abort()
        await protocol.lost()


@on_loop
async def test_who_upgrades_has_the_new_transport_before_its_data_comes():
    loop = asyncio.get_running_loop()
    calls = []

    class Noting(Recorder):
        def data_received(self, data):
            calls.append("data")
            super().data_received(data)

    with socket_pair() as (left, right):
        plain, protocol = await loop.create_connection(Noting, sock=left)
        peer = Peer(right, client_context(), server_side=False)

        async def upgrade():
            transport = await loop.start_tls(plain, protocol, server_context(), server_side=True)
            calls.append("upgraded")
            return transport

        upgrading = loop.create_task(upgrade())
        while True:
            try:
                peer.ssl.do_handshake()
                break
            except ssl.SSLWantReadError:
                await peer.flush()
                peer.incoming.write(await loop.sock_recv(right, 65536))
        await peer.send(b"with the end of the handshake")
        await protocol.until(lambda: protocol.received)

        assert ["upgraded", "data"] == calls
        (await upgrading).abort()
        await protocol.lost()


@on_loop
async def test_what_came_with_the_wish_for_tls_is_the_beginning_of_the_handshake():
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    async def serve(reader, writer):
        assert b"STARTTLS\n" == await reader.readline()
        await writer.start_tls(server_context())
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        ended.set_result(None)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        with socket.create_connection(server.sockets[0].getsockname()) as sock:
            sock.setblocking(False)
            peer = Peer(sock, client_context(), server_side=False)
            with pytest.raises(ssl.SSLWantReadError):
                peer.ssl.do_handshake()
            await loop.sock_sendall(sock, b"STARTTLS\n" + peer.outgoing.read())
            await peer.handshake()
            await peer.send(b"line\n")
            assert b"line\n" == await peer.receive(5)
            await peer.read_to_end()
            await peer.say_close()
            await ended


@on_loop
async def test_a_connection_that_was_closed_is_not_upgraded():
    """asyncio returns None then, which aiohttp looks for."""
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, _right):
        transport, protocol = await loop.create_connection(Recorder, sock=left)
        transport.close()

        assert await loop.start_tls(transport, protocol, client_context(), server_hostname="localhost") is None


@on_loop
async def test_start_tls_checks_its_arguments():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, _right):
        transport, protocol = await loop.create_connection(Recorder, sock=left)
        with pytest.raises(TypeError, match="instance of ssl"):
            await loop.start_tls(transport, protocol, None)
        with pytest.raises(TypeError, match="not supported by start_tls"):
            await loop.start_tls(asyncio.Transport(), protocol, client_context())
        transport.abort()
        await protocol.lost()


@on_loop
async def test_an_upgrade_that_fails_ends_the_connection_and_its_protocol_is_told():
    loop = asyncio.get_running_loop()
    for fail in ("time-out", "cancel", "end"):
        with socket_pair() as (left, right):
            transport, protocol = await loop.create_connection(Recorder, sock=left)
            timeout = 0.01 if fail == "time-out" else None
            upgrade = loop.start_tls(
                transport, protocol, client_context(), server_hostname="localhost", ssl_handshake_timeout=timeout
            )
            upgrading = loop.create_task(upgrade)
            await turns()
            if fail == "cancel":
                upgrading.cancel()
            if fail == "end":
                right.close()
            with pytest.raises((ConnectionAbortedError, ConnectionResetError, asyncio.CancelledError)):
                await upgrading
            await protocol.lost()

            assert -1 == left.fileno()
            assert 1 == sum(call[0] == "lost" for call in protocol.calls)


@on_loop
async def test_tls_goes_through_tls():
    loop = asyncio.get_running_loop()
    message = bytes(range(256)) * 8192
    async with connected(server_side=True) as (outer, protocol, peer):
        inner_peer = Peer(peer.sock, client_context(), server_side=False)
        upgrading = loop.create_task(loop.start_tls(outer, protocol, server_context(), server_side=True))

        async def do(call, *args):
            while True:
                try:
                    result = call(*args)
                    await peer.send(inner_peer.outgoing.read())
                    return result
                except ssl.SSLWantReadError:
                    await peer.send(inner_peer.outgoing.read())
                    inner_peer.incoming.write(await peer.do(peer.ssl.read, 65536))

        await do(inner_peer.ssl.do_handshake)
        inner = await upgrading
        assert outer is inner._transport
        await do(inner_peer.ssl.write, message)
        await protocol.until(lambda: len(protocol.received) == len(message))
        inner.write(message)
        received = bytearray()
        while len(received) < len(message):
            received += await do(inner_peer.ssl.read, 65536)

        assert message == protocol.received == received
        inner.close()
        assert b"" == await do(inner_peer.ssl.read, 10)
        await do(inner_peer.ssl.unwrap)
        await protocol.until(lambda: ("eof",) in protocol.calls)
        peer.sock.close()
        await protocol.lost()


class Wire:
    """A transport of a program's own over one of ours."""

    _start_tls_compatible = True

    def __init__(self, below):
        self.below = below

    def set_protocol(self, protocol):
        self.protocol = protocol

    def data_received(self, data):
        while data:
            buffer = self.protocol.get_buffer(-1)
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            data = data[count:]
            self.protocol.buffer_updated(count)

    def __getattr__(self, name):
        return getattr(self.below, name)


@on_loop
async def test_the_transport_below_may_be_of_a_programs_own():
    loop = asyncio.get_running_loop()
    message = bytes(range(256)) * 8192

    class Bridge(asyncio.Protocol):
        def connection_made(self, transport):
            self.wire = Wire(transport)

        def data_received(self, data):
            self.wire.data_received(data)

        def eof_received(self):
            return self.wire.protocol.eof_received()

        def connection_lost(self, error):
            self.wire.protocol.connection_lost(error)

    with socket_pair() as (left, right):
        _below, bridge = await loop.create_connection(Bridge, sock=left)
        peer = Peer(right, server_context(), server_side=True)
        protocol = Recorder()
        upgrade = loop.start_tls(bridge.wire, protocol, client_context(), server_hostname="localhost")
        upgrading = loop.create_task(upgrade)
        await peer.handshake()
        transport = await upgrading
        transport.write(message[:100_000])
        assert message[:100_000] == await peer.receive(100_000)
        await peer.send(message)
        await protocol.until(lambda: len(protocol.received) == len(message))
        with pytest.raises(ValueError, match="more than get_buffer"):
            transport.buffer_updated(1 << 20)
        await peer.say_close()
        await protocol.lost()

        assert message == protocol.received
