# SPDX-License-Identifier: Apache-2.0
"""TLS: what a connection is, data both ways, flow control.

The other side is an SSL object of the standard library that does what a test says (tls.py).
"""

import asyncio
import contextvars
import ssl
import tempfile
from subprocess import PIPE, STDOUT
from typing import ClassVar

import gossamer as gs
import pytest
from loops import collect_errors, on_loop
from protocols import Recorder
from tls import SIDES, VERSIONS, client_context, connected, server_context, turns

# ---- what it is ----


@pytest.mark.parametrize("server_side", SIDES)
@pytest.mark.parametrize("maximum", VERSIONS)
@on_loop
async def test_messages_go_both_ways(server_side, maximum):
    async with connected(server_side=server_side, maximum=maximum) as (transport, protocol, peer):
        transport.write(b"question")
        assert b"question" == await peer.receive(8)
        await peer.send(b"answer")
        await protocol.until(lambda: protocol.received)

        assert [("data", b"answer")] == protocol.calls
        assert maximum.name.replace("_", ".") == transport.get_extra_info("ssl_object").version()


@on_loop
async def test_it_is_what_programs_take_it_for():
    async with connected() as (transport, protocol, _peer):
        assert isinstance(transport, asyncio.Transport)
        assert isinstance(transport, asyncio.sslproto._SSLProtocolTransport)
        assert isinstance(transport._ssl_protocol, asyncio.sslproto.SSLProtocol)
        assert isinstance(transport._ssl_protocol, asyncio.BufferedProtocol)
        assert "ssl" in type(transport).__name__.lower()
        assert transport._ssl_protocol._extra["ssl_object"] is transport.get_extra_info("ssl_object")
        assert transport._ssl_protocol._app_transport is transport
        assert transport._ssl_protocol._app_protocol is protocol is transport.get_protocol()
        assert isinstance(transport._ssl_protocol._transport, asyncio.Transport)
        assert not transport.can_write_eof()
        with pytest.raises(NotImplementedError):
            transport.write_eof()
        assert transport.is_reading()
        assert not transport.is_closing()
        assert (128 * 1024, 512 * 1024) == transport.get_write_buffer_limits()
        assert (64 * 1024, 256 * 1024) == transport.get_read_buffer_limits()
        assert (0, 0) == (transport.get_write_buffer_size(), transport.get_read_buffer_size())


@on_loop
async def test_what_is_known_of_a_connection_is_known_after_it():
    context = client_context()
    async with connected(context=context) as (transport, protocol, peer):
        fd = transport.get_extra_info("socket").fileno()
        assert peer.ssl.cipher() == transport.get_extra_info("cipher")
        assert transport.get_extra_info("peername") is not None
        assert transport.get_extra_info("compression") is None
        transport.abort()
        await protocol.lost()

        assert fd >= 0
        assert context is transport.get_extra_info("sslcontext")
        assert (("commonName", "localhost"),) in transport.get_extra_info("peercert")["subject"]
        assert transport.get_extra_info("ssl_object").cipher() == transport.get_extra_info("cipher")
        assert "default" == transport.get_extra_info("peername", "default")
        assert transport.get_protocol() is None


class Counting(ssl.SSLObject):
    """An SSL object of a program's own."""

    calls: ClassVar[list[str]] = []

    def read(self, *args):
        self.calls.append("read")
        return super().read(*args)

    def write(self, data):
        self.calls.append("write")
        return super().write(data)

    def do_handshake(self):
        self.calls.append("do_handshake")
        super().do_handshake()

    def unwrap(self):
        self.calls.append("unwrap")
        super().unwrap()


@pytest.mark.parametrize("is_wrapped", [False, True])
@on_loop
async def test_the_ssl_object_and_the_context_may_be_of_a_programs_own(is_wrapped):
    context = client_context()
    Counting.calls = []

    class Wrapped:
        def wrap_bio(self, *args, **options):
            return context.wrap_bio(*args, **options)

    context.sslobject_class = Counting
    message = bytes(range(256)) * 2000
    async with connected(context=Wrapped() if is_wrapped else context) as (transport, protocol, peer):
        transport.write(message)
        assert message == await peer.receive(len(message))
        await peer.send(message)
        await protocol.until(lambda: len(protocol.received) == len(message))
        assert message == protocol.received
        transport.close()
        await peer.say_close()
        await protocol.lost()

    assert {"read", "write", "do_handshake", "unwrap"} == set(Counting.calls)


@on_loop
async def test_methods_of_sslobject_that_somebody_patched_are_called(monkeypatch):
    calls = []
    original = ssl.SSLObject.read

    def read(self, *args):
        calls.append(args)
        return original(self, *args)

    monkeypatch.setattr(ssl.SSLObject, "read", read)
    async with connected() as (_transport, protocol, peer):
        await peer.send(b"data")
        await protocol.until(lambda: protocol.received)

    assert calls


# ---- reading ----


@pytest.mark.parametrize("server_side", SIDES)
@on_loop
async def test_a_large_message_arrives_whole(server_side):
    message = bytes(range(256)) * 16384
    async with connected(server_side=server_side) as (_transport, protocol, peer):
        await peer.send(message)
        await protocol.until(lambda: len(protocol.received) == len(message))

        assert message == protocol.received


@on_loop
async def test_records_that_come_together_are_one_call_of_the_protocol():
    async with connected() as (_transport, protocol, peer):
        for data in (b"one ", b"two ", b"three"):
            peer.ssl.write(data)
        await peer.flush()
        await protocol.until(lambda: protocol.received)

        assert [("data", b"one two three")] == protocol.calls


@on_loop
async def test_a_record_may_come_in_pieces():
    loop = asyncio.get_running_loop()
    async with connected() as (_transport, protocol, peer):
        peer.ssl.write(bytes(range(250)))
        record = peer.outgoing.read()
        for index in range(len(record)):
            await loop.sock_sendall(peer.sock, record[index : index + 1])
            await turns(4)
        await protocol.until(lambda: protocol.received)

        assert [("data", bytes(range(250)))] == protocol.calls


@on_loop
async def test_while_reading_is_paused_nothing_is_delivered_and_nothing_is_lost():
    async with connected() as (transport, protocol, peer):
        transport.pause_reading()
        assert not transport.is_reading()
        await peer.send(b"while paused")
        await turns()
        assert b"" == protocol.received
        assert transport.get_read_buffer_size() > 0

        transport.resume_reading()
        await protocol.until(lambda: protocol.received)
        await peer.send(b", after")
        await protocol.until(lambda: protocol.received == b"while paused, after")
        assert 0 == transport.get_read_buffer_size()


@on_loop
async def test_a_paused_program_pauses_the_other_side():
    message = bytes(8_000_000)
    async with connected() as (transport, protocol, peer):
        transport.pause_reading()
        sending = asyncio.get_running_loop().create_task(peer.send(message))
        while transport._transport.is_reading():
            await asyncio.sleep(0)
        await turns()
        assert not sending.done()
        assert 256 * 1024 <= transport.get_read_buffer_size() < 512 * 1024

        transport.resume_reading()
        await sending
        await protocol.until(lambda: len(protocol.received) == len(message))
        assert transport._transport.is_reading()


@on_loop
async def test_a_protocol_may_pause_in_the_middle_of_a_large_message():
    loop = asyncio.get_running_loop()

    class Pauser(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.transport.pause_reading()
            loop.call_soon(self.transport.resume_reading)

    async with connected(Pauser) as (_transport, protocol, peer):
        await peer.send(bytes(1_000_000))
        await protocol.until(lambda: len(protocol.received) == 1_000_000)


class Buffered(asyncio.BufferedProtocol):
    """Reads into a buffer of its own."""

    def __init__(self, buffer=b""):
        self.buffer = bytearray(buffer or 5)
        self.received = bytearray()
        self.ended = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()

    def get_buffer(self, _size):
        return self.buffer

    def buffer_updated(self, size):
        self.received += self.buffer[:size]

    def eof_received(self):
        self.ended.set_result(None)

    def connection_lost(self, error):
        self.lost.set_result(error)


@on_loop
async def test_a_buffered_protocol_is_read_into():
    async with connected(Buffered) as (_transport, protocol, peer):
        await peer.send(b"more than five")
        await peer.send(bytes(100))
        await peer.say_close()
        await protocol.ended

        assert b"more than five" + bytes(100) == protocol.received
        assert await protocol.lost is None


@on_loop
async def test_what_has_nothing_but_the_methods_of_a_buffered_protocol_is_one():
    class Other(asyncio.BaseProtocol):
        __init__ = Buffered.__init__
        get_buffer = Buffered.get_buffer
        buffer_updated = Buffered.buffer_updated
        eof_received = Buffered.eof_received

    async with connected(Other) as (_transport, protocol, peer):
        await peer.send(b"more than five")
        await peer.say_close()
        await protocol.ended

        assert b"more than five" == protocol.received


@on_loop
async def test_an_empty_buffer_is_an_error_of_the_protocol():
    contexts = collect_errors()
    async with connected(Buffered) as (_transport, protocol, peer):
        protocol.buffer = bytearray()
        await peer.send(b"data")

        assert isinstance(await protocol.lost, RuntimeError)
    assert ["Fatal error on SSL protocol"] == [context["message"] for context in contexts]


@on_loop
async def test_the_protocol_can_be_replaced():
    async with connected() as (transport, first, peer):
        second, third = Recorder(), Buffered()
        for number, protocol in enumerate((first, second, third)):
            transport.set_protocol(protocol)
            await peer.send(b"%d" % number)
            while not protocol.received:
                await asyncio.sleep(0)

        assert [b"0", b"1", b"2"] == [first.received, second.received, third.received]
        transport.set_protocol(first)


@on_loop
async def test_the_protocol_runs_in_the_context_of_who_made_the_connection():
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    class Seeing(Recorder):
        def data_received(self, data):
            seen.append(variable.get())
            super().data_received(data)

    variable.set("set before")
    async with connected(Seeing) as (_transport, protocol, peer):
        variable.set("changed later")
        await peer.send(b"x")
        await protocol.until(lambda: protocol.received)

    assert ["set before"] == seen


# ---- writing ----


@pytest.mark.parametrize("server_side", SIDES)
@on_loop
async def test_what_the_socket_does_not_take_waits_as_plain_text_and_is_sent_in_order(server_side):
    message = bytes(range(256)) * 65536
    async with connected(server_side=server_side) as (transport, protocol, peer):
        transport.write(message)
        transport.write(b"the end")
        assert transport.get_write_buffer_size() > 15_000_000
        assert transport._outgoing.pending < 100_000
        assert transport._transport.get_write_buffer_size() < 200_000
        assert ("pause",) in protocol.calls

        assert message + b"the end" == await peer.receive(len(message) + 7)
        await protocol.until(lambda: ("resume",) in protocol.calls)
        assert 0 == transport.get_write_buffer_size()


@on_loop
async def test_many_small_writes_wait_and_are_sent_in_order():
    async with connected() as (transport, _protocol, peer):
        transport.write(bytes(1_000_000))
        lines = [b"%d\n" % number for number in range(30_000)]
        for line in lines:
            transport.write(line)
        expected = b"".join(lines)

        assert expected == (await peer.receive(1_000_000 + len(expected)))[1_000_000:]


@on_loop
async def test_what_was_written_may_be_changed_afterwards():
    async with connected() as (transport, _protocol, peer):
        data = bytearray(b"a" * 4_000_000)
        transport.write(data)
        transport.write(memoryview(data)[:10])
        data[:] = b"b" * len(data)
        data.clear()

        assert {ord("a")} == set(await peer.receive(4_000_010))


@on_loop
async def test_writelines_sends_all_pieces_and_small_ones_in_one_record():
    async with connected() as (transport, _protocol, peer):
        transport.writelines([b"one ", bytearray(b"two "), b"", memoryview(b"three")])
        transport.writelines(list_of_data=iter([]))
        assert b"one two three" == await peer.do(peer.ssl.read, 100)

        transport.writelines((bytes(20_000), bytes(20_000)))
        assert 40_000 == len(await peer.receive(40_000))


@on_loop
async def test_writes_check_their_arguments():
    async with connected() as (transport, _protocol, peer):
        with pytest.raises(TypeError, match="bytes-like instance, got str"):
            transport.write("text")
        with pytest.raises(TypeError):
            transport.writelines([b"not sent", 1])
        with pytest.raises(TypeError):
            transport.write()
        with pytest.raises(ValueError, match="must be >= low"):
            transport.set_write_buffer_limits(high=1, low=2)
        with pytest.raises(ValueError, match="must be >= low"):
            transport.set_read_buffer_limits(high=1, low=2)
        transport.write(b"")
        transport.write(data=b"sent")

        assert b"sent" == await peer.do(peer.ssl.read, 100)


@on_loop
async def test_with_limits_of_zero_a_program_is_paused_while_something_waits_and_only_then():
    async with connected() as (transport, protocol, peer):
        transport.set_write_buffer_limits(high=0)
        transport.set_read_buffer_limits(high=0)
        transport.write(b"goes at once")
        await peer.receive(12)
        assert [] == protocol.calls

        transport.write(bytes(8_000_000))
        assert [("pause",)] == protocol.calls
        await peer.receive(8_000_000)
        await protocol.until(lambda: ("resume",) in protocol.calls)
        await peer.send(b"data")
        await protocol.until(lambda: protocol.received)


@on_loop
async def test_what_is_written_before_the_handshake_is_over_follows_it():
    class Eager(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.write(b"first")

    async with connected(Eager) as (_transport, _protocol, peer):
        assert b"first" == await peer.receive(5)


@on_loop
async def test_sendfile_of_a_file():
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryFile() as file:
        file.write(b"file" * 500_000)
        file.seek(0)
        async with connected() as (transport, protocol, peer):
            sending = loop.create_task(loop.sendfile(transport, file))

            assert b"file" * 500_000 == await peer.receive(2_000_000)
            assert 2_000_000 == await sending
            assert protocol is transport.get_protocol()


@on_loop
async def test_keys_may_be_replaced_in_the_middle():
    served = Recorder()
    server = await asyncio.get_running_loop().create_server(lambda: served, "127.0.0.1", 0, ssl=server_context())
    async with server:
        port = server.sockets[0].getsockname()[1]
        command = ("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3")
        client = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=STDOUT)

        async def read_until(line):
            while await client.stdout.readline() != line:
                pass

        client.stdin.write(b"before\n")
        await served.until(lambda: served.received == b"before\n")
        client.stdin.write(b"K\n")  # replaces its keys, and asks for ours to be
        await read_until(b"KEYUPDATE\n")
        client.stdin.write(b"after\n")
        await served.until(lambda: served.received == b"before\nafter\n")
        served.transport.write(b"answer\n")
        await read_until(b"answer\n")
        client.stdin.close()
        await client.wait()
        await served.lost()


# ---- streams ----


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


@on_loop
async def test_streams_over_tcp_and_unix_sockets(tmp_path):
    message = bytes(range(256)) * 20_000
    path = str(tmp_path / f"socket-{gs.current() is not None}")
    for start, connect, where in (
        (asyncio.start_server, asyncio.open_connection, ("127.0.0.1", 0)),
        (asyncio.start_unix_server, asyncio.open_unix_connection, (path,)),
    ):
        async with await start(echo, *where, ssl=server_context()) as server:
            address = server.sockets[0].getsockname() if start is asyncio.start_server else where
            reader, writer = await connect(*address, ssl=client_context(), server_hostname="localhost")

            writer.write(message)
            sending = asyncio.get_running_loop().create_task(writer.drain())
            assert message == await reader.readexactly(len(message))
            await sending
            writer.close()
            await writer.wait_closed()
