# SPDX-License-Identifier: Apache-2.0
"""TLS: the ends of a connection, and what is left of it."""

import asyncio
import contextlib
import faulthandler
import gc
import os
import socket
import ssl
import weakref

import pytest
from loops import collect_errors, on_loop, run_on_thread, run_virtually, socket_pair
from protocols import Recorder
from tls import (
    SIDES,
    VERSIONS,
    Peer,
    begin_connecting,
    client_context,
    connected,
    server_context,
    turns,
)

HANDSHAKES = int(os.environ.get("GOSSAMER_HANDSHAKES", "1000"))


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
async def test_both_ends_while_reading_is_paused_wait_for_the_program():
    async with connected() as (transport, protocol, peer):
        transport.pause_reading()
        await peer.send(b"last")
        await peer.say_close()
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
async def test_what_the_other_side_sent_before_it_knew_of_a_close_is_dropped():
    async with connected(ssl_shutdown_timeout=3600) as (transport, protocol, peer):
        transport.write(b"all of this arrives")
        transport.close()
        await peer.send(bytes(100_000))
        assert (b"all of this arrives", "closed") == await peer.read_to_end()
        await peer.say_close()
        await protocol.lost()

        assert [("eof",), ("lost", None)] == protocol.calls


@on_loop
async def test_what_a_program_has_not_read_is_dropped_when_it_closes():
    async with connected(ssl_shutdown_timeout=3600) as (transport, protocol, peer):
        transport.pause_reading()
        sending = asyncio.get_running_loop().create_task(peer.send(bytes(600_000)))
        while transport._transport.is_reading():
            await asyncio.sleep(0)
        transport.close()
        await sending
        assert (b"", "closed") == await peer.read_to_end()
        await peer.say_close()
        await protocol.lost()

        assert [("eof",), ("lost", None)] == protocol.calls


@on_loop
async def test_a_close_ends_when_the_other_side_goes_on_to_send():
    async with connected(ssl_shutdown_timeout=3600) as (transport, protocol, peer):
        transport.close()
        with contextlib.suppress(ConnectionError):
            while True:
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


# ---- what is left ----


def test_a_connection_that_nobody_closed_warns():
    with socket_pair() as (left, right):

        async def main():
            peer = Peer(right, server_context(), server_side=True)
            connecting = begin_connecting(left, asyncio.Protocol, server_side=False)
            await peer.handshake()
            transport, _protocol = await connecting
            return weakref.ref(transport)

        references = []

        def forget_it():
            references.append(run_on_thread(main()))
            gc.collect()

        with pytest.warns(ResourceWarning, match="unclosed transport"):
            forget_it()
        gc.collect()  # what the warning referred to

        assert references[0]() is None
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
            return weakref.ref(transport)

    gc.collect()
    gc.disable()
    try:
        assert run_on_thread(main())() is None
    finally:
        gc.enable()


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(("run", "handshakes"), [(run_on_thread, HANDSHAKES), (run_virtually, min(HANDSHAKES, 5000))])
def test_memory_stays_flat_over_many_handshakes(run, handshakes):
    """GOSSAMER_HANDSHAKES sets another number of connections."""
    faulthandler.dump_traceback_later(120 + handshakes * 0.02, exit=True)  # in place of pytest's, which ends it too

    async def main():
        server_side, client_side = server_context(), client_context()
        loop = asyncio.get_running_loop()

        async def connect():
            with socket_pair() as (left, right):
                serving = begin_connecting(left, Recorder, server_side=True, context=server_side)
                calling = begin_connecting(right, Recorder, server_side=False, context=client_side)
                _server, served = await serving
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

        warm_up = max(300, handshakes // 10)
        before = await many(warm_up)
        after = await many(handshakes - warm_up)

        assert after[0] - before[0] < 4 << 20
        assert after[1] - before[1] < 100
        assert (0, 0) == (before[2], after[2])

    run(main())


def test_a_loop_may_be_closed_with_connections_in_every_state():
    async def main(left, right, unanswered):
        loop = asyncio.get_running_loop()
        loop._make_ssl_transport(unanswered, Recorder(), client_context(), server_hostname="localhost")
        serving = begin_connecting(left, Recorder, server_side=True)
        client, _ = await begin_connecting(right, Recorder, server_side=False)
        await serving
        client.write(bytes(5_000_000))

    def run_and_collect(*sockets):
        run_on_thread(main(*sockets))
        gc.collect()

    with socket_pair() as (left, right), socket_pair() as (unanswered, _other):
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            run_and_collect(left, right, unanswered)

        assert [-1, -1, -1] == [sock.fileno() for sock in (left, right, unanswered)]
