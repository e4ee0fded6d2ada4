# SPDX-License-Identifier: Apache-2.0
"""TLS: the handshake, data both ways, flow control and the ends of a connection.

The other side is an SSL object of the standard library that does what a test says (tls.py).
"""

import asyncio
import contextlib
import contextvars
import gc
import logging
import os
import socket
import ssl
import tempfile
import weakref

import gossamer as gs
import pytest
from loops import new_loop, on_loop, run_on_thread, run_virtually, socket_pair
from protocols import Recorder
from tls import Peer, begin_connecting, client_context, connected, server_context

HANDSHAKES = int(os.environ.get("GOSSAMER_HANDSHAKES", "1500"))
SIDES = [pytest.param(False, id="client"), pytest.param(True, id="server")]
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


async def turns(count=40):
    """Let the loop do everything that is ready."""
    for _ in range(count):
        await asyncio.sleep(0)


def collect_errors():
    """Return a list of what the loop's exception handler is given."""
    contexts = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: contexts.append(context))
    return contexts


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
    async with connected() as (transport, protocol, peer):
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

    calls: list = []

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
        transport.writelines(iter([]))
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


# ---- the ends ----


@pytest.mark.parametrize("server_side", SIDES)
@pytest.mark.parametrize("maximum", VERSIONS)
@on_loop
async def test_closing_sends_what_was_written_and_ends_tls(server_side, maximum):
    async with connected(server_side=server_side, maximum=maximum) as (transport, protocol, peer):
        transport.write(bytes(5_000_000))
        transport.close()
        transport.close()
        transport.write(b"too late")
        assert transport.is_closing()
        data, end = await peer.read_to_end()
        assert (5_000_000, "closed") == (len(data), end)
        assert ("lost", None) not in protocol.calls
        await peer.say_close()
        await protocol.lost()

        assert [("lost", None)] == [call for call in protocol.calls if call[0] == "lost"]


@on_loop
async def test_what_came_before_a_close_is_delivered():
    async with connected() as (transport, protocol, peer):
        await peer.send(b"data")
        await turns()
        transport.close()
        await peer.say_close()
        await protocol.lost()

        assert [("data", b"data"), ("eof",), ("lost", None)] == protocol.calls


@on_loop
async def test_the_other_side_may_end_tls():
    async with connected() as (transport, protocol, peer):
        await peer.send(b"last")
        await peer.say_close()
        await protocol.lost()

        assert [("data", b"last"), ("eof",), ("lost", None)] == protocol.calls
        assert transport.is_closing()
        assert (b"", "closed") == await peer.read_to_end()


@on_loop
async def test_what_waits_is_sent_after_the_other_side_has_ended_tls():
    async with connected() as (transport, protocol, peer):
        transport.write(bytes(5_000_000))
        await peer.say_close()
        data, end = await peer.read_to_end()
        await protocol.lost()

        assert (5_000_000, "closed") == (len(data), end)


@on_loop
async def test_an_end_of_the_stream_without_an_end_of_tls_is_an_end():
    async with connected() as (transport, protocol, peer):
        await peer.send(b"last")
        peer.sock.shutdown(socket.SHUT_WR)
        await protocol.lost()

        assert [("data", b"last"), ("eof",), ("lost", None)] == protocol.calls
        assert transport.is_closing()


@on_loop
async def test_what_waits_is_sent_after_the_end_of_the_stream():
    async with connected() as (transport, protocol, peer):
        transport.write(bytes(5_000_000))
        peer.sock.shutdown(socket.SHUT_WR)
        await turns()
        data, _end = await peer.read_to_end()
        await protocol.lost()

        assert 5_000_000 == len(data)
        assert ("lost", None) == protocol.calls[-1]


@on_loop
async def test_a_side_that_neither_reads_nor_writes_is_not_waited_for():
    async with connected(ssl_shutdown_timeout=0.01) as (transport, protocol, peer):
        transport.write(bytes(5_000_000))
        peer.sock.shutdown(socket.SHUT_WR)
        await protocol.lost()

        assert "SSL shutdown timed out" == str(protocol.calls[-1][1])


@on_loop
async def test_returning_true_from_eof_received_has_no_effect(caplog):
    caplog.clear()
    async with connected() as (_transport, protocol, peer):
        protocol.keep_open = True
        await peer.say_close()
        await protocol.lost()

        assert [("eof",), ("lost", None)] == protocol.calls
    assert ["returning true from eof_received() has no effect when using ssl"] == caplog.messages


@on_loop
async def test_an_end_while_reading_is_paused_waits_for_the_program():
    async with connected() as (transport, protocol, peer):
        transport.pause_reading()
        await peer.send(b"last")
        peer.sock.shutdown(socket.SHUT_WR)
        await turns()
        assert [] == protocol.calls

        transport.resume_reading()
        await protocol.lost()
        assert [("data", b"last"), ("eof",), ("lost", None)] == protocol.calls


@on_loop
async def test_a_program_that_does_not_read_to_the_end_may_close():
    async with connected() as (transport, protocol, peer):
        transport.pause_reading()
        await peer.send(b"unread")
        peer.sock.shutdown(socket.SHUT_WR)
        await turns()
        transport.close()
        await protocol.lost()

        assert ("lost", None) == protocol.calls[-1]


@on_loop
async def test_a_close_ends_when_the_other_side_goes_on_to_send():
    async with connected(ssl_shutdown_timeout=3600) as (transport, protocol, peer):
        transport.close()
        await peer.send(bytes(100_000))
        await protocol.lost()

        assert isinstance(protocol.calls[-1][1], ssl.SSLError)
        assert "APPLICATION_DATA_AFTER_CLOSE_NOTIFY" == protocol.calls[-1][1].reason


@on_loop
async def test_a_close_is_not_waited_for_longer_than_the_time_out():
    async with connected(ssl_shutdown_timeout=0.01) as (transport, protocol, peer):
        transport.close()
        await protocol.lost()

        assert isinstance(protocol.calls[-1][1], TimeoutError)
        assert "SSL shutdown timed out" == str(protocol.calls[-1][1])
        assert (b"", "closed") == await peer.read_to_end()


@on_loop
async def test_a_client_that_reads_nothing_may_close():
    """The server's session tickets have come and nobody has looked at them."""
    async with connected() as (transport, protocol, peer):
        transport.pause_reading()
        await turns()
        transport.close()
        assert (b"", "closed") == await peer.read_to_end()
        await peer.say_close()
        await protocol.lost()

        assert ("lost", None) == protocol.calls[-1]


@on_loop
async def test_abort_drops_what_was_written():
    async with connected() as (transport, protocol, peer):
        transport.write(bytes(5_000_000))
        transport.abort()
        assert transport.is_closing()
        await protocol.lost()

        assert ("lost", None) == protocol.calls[-1]
        assert 0 == transport.get_write_buffer_size()
        _data, end = await peer.read_to_end()
        assert "closed" != end
        transport.abort()
        transport.close()


@on_loop
async def test_writes_after_the_end_are_told_of_when_there_are_many(caplog):
    caplog.clear()
    async with connected() as (transport, protocol, _peer):
        transport.abort()
        await protocol.lost()
        for _ in range(10):
            transport.write(b"nobody hears")
        transport.writelines([b"nobody", b"hears"])

    assert {"SSL connection is closed"} == set(caplog.messages)


@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("where", ["connection_made", "data_received", "eof_received", "pause_writing"])
@on_loop
async def test_a_protocol_may_end_the_connection_wherever_it_is_called(where, end):
    contexts = collect_errors()

    class Ending(Recorder):
        pass

    def method(self, *args):
        result = getattr(Recorder, where)(self, *args)
        getattr(self.transport, end)()
        return result

    setattr(Ending, where, method)
    with socket_pair() as (left, right):
        peer = Peer(right, server_context(), server_side=True)
        connecting = begin_connecting(left, Ending, server_side=False, ssl_shutdown_timeout=3600)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await peer.handshake()
            transport, _protocol = await connecting
            if where == "pause_writing":
                transport.write(bytes(8_000_000))
            await peer.send(b"data")
            await peer.say_close()
            await peer.read_to_end()
        _transport, protocol = await connecting
        await protocol.lost()

        assert 1 == sum(call[0] == "lost" for call in protocol.calls)
    assert [] == contexts


@pytest.mark.parametrize("where", ["connection_made", "data_received", "eof_received"])
@on_loop
async def test_an_error_of_the_protocol_ends_its_connection_and_is_told(where):
    contexts = collect_errors()

    def method(self, *_args):
        raise ZeroDivisionError(where)

    protocol_class = type("Failing", (Recorder,), {where: method})
    protocols = []

    def make():
        protocols.append(protocol_class())
        return protocols[0]

    with socket_pair() as (left, right):
        peer = Peer(right, server_context(), server_side=True)
        connecting = begin_connecting(left, make, server_side=False)
        with contextlib.suppress(ssl.SSLError):
            await peer.handshake()
        if where == "connection_made":
            with pytest.raises(ZeroDivisionError):
                await connecting
        else:
            await connecting
            await peer.send(b"x")
            await peer.say_close()
        await protocols[0].lost()

    assert isinstance(protocols[0].calls[-1][1], ZeroDivisionError)
    (context,) = contexts
    assert isinstance(context["exception"], ZeroDivisionError)


@pytest.mark.parametrize("where", ["pause_writing", "resume_writing", "connection_lost"])
@on_loop
async def test_an_error_in_what_the_protocol_is_told_is_told_to_the_handler(where):
    contexts = collect_errors()
    told = asyncio.Event()

    def method(self, *_args):
        told.set()
        raise ZeroDivisionError(where)

    protocol_class = type("Failing", (asyncio.Protocol,), {where: method})
    async with connected(protocol_class) as (transport, _protocol, peer):
        transport.write(bytes(5_000_000))
        assert 5_000_000 == len(await peer.receive(5_000_000))
        if where == "connection_lost":
            transport.abort()
        await told.wait()
        await turns()

    (context,) = contexts
    assert isinstance(context["exception"], ZeroDivisionError)


@on_loop
async def test_a_peer_that_is_gone_is_an_error_of_the_connection():
    async with connected() as (transport, protocol, peer):
        peer.sock.close()
        while not transport.is_closing():
            transport.write(b"x")
            await asyncio.sleep(0)
        await protocol.lost()

        assert protocol.calls[-1][1] is None or isinstance(protocol.calls[-1][1], ConnectionError)


@on_loop
async def test_nonsense_from_the_other_side_is_an_error_of_the_connection():
    async with connected() as (_transport, protocol, peer):
        await asyncio.get_running_loop().sock_sendall(peer.sock, b"nonsense" * 100)
        await protocol.lost()

        assert isinstance(protocol.calls[-1][1], ssl.SSLError)


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

    with socket_pair() as (left, right):
        connecting = begin_connecting(left, Made, server_side=False, ssl_handshake_timeout=0.01)
        with pytest.raises(ConnectionAbortedError, match="handshake is taking longer than 0.01 seconds: aborting"):
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
async def test_a_connection_may_be_closed_while_its_handshake_goes_on():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, right):
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
        with socket_pair() as (left, _right):
            with pytest.raises(ValueError, match=f"{name} should be a positive number, got 0"):
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
async def test_start_tls_checks_its_arguments():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, _right):
        transport, protocol = await loop.create_connection(Recorder, sock=left)
        with pytest.raises(TypeError, match="instance of ssl.SSLContext"):
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


# ---- streams, servers, memory ----


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

            async def send():
                writer.write(message)
                await writer.drain()

            sending = asyncio.get_running_loop().create_task(send())
            assert message == await reader.readexactly(len(message))
            await sending
            writer.close()
            await writer.wait_closed()


def test_a_connection_that_nobody_closed_warns():
    with socket_pair() as (left, right):

        async def main():
            peer = Peer(right, server_context(), server_side=True)
            connecting = begin_connecting(left, asyncio.Protocol, server_side=False)
            await peer.handshake()
            transport, _protocol = await connecting
            return weakref.ref(transport)

        with pytest.warns(ResourceWarning, match="unclosed transport"):
            gone = run_on_thread(main())
            gc.collect()

        assert gone() is None
        assert -1 == left.fileno()


def test_a_connection_leaves_no_cycles_behind():
    """Even where its protocol keeps the transport."""

    async def main():
        async with connected() as (transport, protocol, peer):
            await peer.send(b"data")
            await protocol.until(lambda: protocol.received)
            transport.close()
            await peer.say_close()
            await protocol.lost()
            gone = weakref.ref(transport)
        del transport, protocol, peer
        return gone

    gc.collect()
    gc.disable()
    try:
        assert run_on_thread(main())() is None
    finally:
        gc.enable()


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("run", [run_on_thread, run_virtually])
def test_memory_stays_flat_over_many_handshakes(run):
    """GOSSAMER_HANDSHAKES sets another number of connections."""

    async def main():
        server_side, client_side = server_context(), client_context()
        loop = asyncio.get_running_loop()

        async def connect():
            with socket_pair() as (left, right):
                serving = begin_connecting(left, Recorder, server_side=True, context=server_side)
                calling = begin_connecting(right, Recorder, server_side=False, context=client_side)
                server, served = await serving
                client, called = await calling
                client.write(b"data")
                await served.until(lambda: served.received)
                client.close()
                await served.lost()
                await called.lost()

        async def many(count):
            for _ in range(count):
                await connect()
            gc.collect()
            return resident_bytes(), len(gc.get_objects()), len(loop._transports)

        warm_up = max(300, HANDSHAKES // 10)
        before = await many(warm_up)
        after = await many(HANDSHAKES - warm_up)

        assert after[0] - before[0] < 4 << 20
        assert after[1] - before[1] < 100
        assert (0, 0) == (before[2], after[2])

    run(main())


def test_a_loop_may_be_closed_with_connections_in_every_state():
    with socket_pair() as (left, right), socket_pair() as (unanswered, _other):
        with new_loop() as loop:

            async def main():
                loop._make_ssl_transport(unanswered, Recorder(), client_context(), server_hostname="localhost")
                serving = begin_connecting(left, Recorder, server_side=True)
                client, _ = await begin_connecting(right, Recorder, server_side=False)
                await serving
                client.write(bytes(5_000_000))

            with pytest.warns(ResourceWarning, match="unclosed transport"):
                loop.run_until_complete(main())
                loop.close()
                gc.collect()

            assert [-1, -1, -1] == [sock.fileno() for sock in (left, right, unanswered)]
