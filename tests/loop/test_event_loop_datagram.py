# SPDX-License-Identifier: Apache-2.0
"""Datagram transports."""

import asyncio
import contextlib
import logging
import socket
import sys
import tempfile
from pathlib import Path

import pytest
from loops import collect_errors, forget, new_loop, on_loop, run_on_thread, run_virtually, socket_pair


class Recorder(asyncio.DatagramProtocol):
    """Notes what it is told, and can be waited for."""

    def __init__(self):
        self.calls = []
        self.changed = asyncio.Event()

    def note(self, *call):
        self.calls.append(call)
        self.changed.set()

    async def until(self, condition):
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    async def noted(self, count):
        await self.until(lambda: len(self.calls) >= count)

    async def lost(self):
        await self.until(lambda: self.calls and self.calls[-1][0] == "lost")

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        self.note("data", data, address)

    def error_received(self, error):
        self.note("error", type(error))

    def connection_lost(self, error):
        self.note("lost", error)

    def pause_writing(self):
        self.note("pause")

    def resume_writing(self):
        self.note("resume")


@contextlib.asynccontextmanager
async def endpoint(protocol=Recorder, **options):
    """A transport and its protocol."""
    transport, made = await asyncio.get_running_loop().create_datagram_endpoint(protocol, **options)
    try:
        yield transport, made
    finally:
        transport.abort()
        await made.lost()


def of_family(family, folder, name):
    hosts = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}
    return {"local_addr": hosts.get(family, str(Path(folder, name))), "family": family}


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
@pytest.mark.parametrize("run", [run_on_thread, run_virtually])
def test_datagrams_go_both_ways_with_their_addresses(family, run):
    async def main():
        with tempfile.TemporaryDirectory() as folder:
            async with (
                endpoint(**of_family(family, folder, "left")) as (left, at_left),
                endpoint(**of_family(family, folder, "right")) as (right, at_right),
            ):
                left_address, right_address = left.get_extra_info("sockname"), right.get_extra_info("sockname")
                assert left.get_extra_info("socket").getsockname() == left_address
                for data in (b"one", bytearray(b"two"), memoryview(b"three"), b"x" * 60_000):
                    left.sendto(data, right_address)
                await at_right.noted(4)
                right.sendto(b"answer", addr=at_right.calls[0][2])
                await at_left.noted(1)

                data = [b"one", b"two", b"three", b"x" * 60_000]
                assert [("data", piece, left_address) for piece in data] == at_right.calls
                assert [("data", b"answer", right_address)] == at_left.calls

    run(main())


@on_loop
async def test_it_is_an_asyncio_transport():
    async with endpoint(local_addr=("127.0.0.1", 0)) as (transport, protocol):
        assert isinstance(transport, asyncio.DatagramTransport)
        assert isinstance(transport, asyncio.Transport)  # as asyncio's is
        assert protocol is transport.get_protocol()
        assert (16384, 65536) == transport.get_write_buffer_limits()
        assert 0 == transport.get_write_buffer_size()
        assert transport.get_extra_info("peername") is None
        assert "read=polling" in repr(transport)
        with pytest.raises(TypeError, match="not 'str'"):
            transport.sendto("text", ("127.0.0.1", 1))


@on_loop
async def test_a_name_for_an_address_is_resolved():
    async with endpoint(local_addr=("127.0.0.1", 0)) as (transport, protocol):
        transport.sendto(b"x", ("localhost", transport.get_extra_info("sockname")[1]))
        await protocol.noted(1)

        assert [("data", b"x", transport.get_extra_info("sockname"))] == protocol.calls


@on_loop
async def test_while_reading_is_paused_nothing_is_delivered_and_nothing_is_lost():
    """As asyncio's, though its documentation does not say so."""
    async with endpoint(local_addr=("127.0.0.1", 0)) as (transport, protocol):
        address = transport.get_extra_info("sockname")
        transport.pause_reading()
        assert not transport.is_reading()
        transport.sendto(b"one", address)
        for _ in range(5):
            await asyncio.sleep(0)
        assert [] == protocol.calls

        transport.resume_reading()
        await protocol.noted(1)

        assert [("data", b"one", address)] == protocol.calls
        assert transport.is_reading()


@on_loop
async def test_a_paused_transport_whose_queue_is_sent_is_not_kept_by_its_loop():
    left, right = socket.socketpair(type=socket.SOCK_DGRAM)
    with left, right:
        transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(Recorder, sock=left)
        transport.pause_reading()
        while not transport.get_write_buffer_size():
            transport.sendto(b"x" * 1000)
        right.setblocking(False)
        while transport.get_write_buffer_size():
            await asyncio.get_running_loop().sock_recv(right, 2000)
            await asyncio.sleep(0)
        del protocol.transport

        objects = [transport]
        del transport
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            forget(objects)


@on_loop
async def test_a_connected_transport_sends_to_its_peer_alone():
    async with endpoint(local_addr=("127.0.0.1", 0)) as (left, at_left):
        address = left.get_extra_info("sockname")
        async with endpoint(remote_addr=address) as (right, at_right):
            right.sendto(b"one")
            right.sendto(b"two", address)
            with pytest.raises(ValueError, match="Invalid address: must be None or"):
                right.sendto(b"three", ("127.0.0.1", 1))
            await at_left.noted(2)
            left.sendto(b"answer", right.get_extra_info("sockname"))
            await at_right.noted(1)

            assert address == right.get_extra_info("peername")
            assert [("data", b"answer", address)] == at_right.calls


@on_loop
async def test_an_empty_datagram_is_sent_from_313_on():
    async with endpoint(local_addr=("127.0.0.1", 0)) as (transport, protocol):
        address = transport.get_extra_info("sockname")
        transport.sendto(b"", address)
        transport.sendto(b"after", address)
        await protocol.until(lambda: protocol.calls and protocol.calls[-1][1] == b"after")

        assert (2 if sys.version_info >= (3, 13) else 1) == len(protocol.calls)


@on_loop
async def test_broadcasts_need_to_be_allowed():
    nowhere = ("255.255.255.255", 9)
    async with endpoint(local_addr=("127.0.0.1", 0)) as (transport, protocol):
        transport.sendto(b"x", nowhere)
        assert [("error", PermissionError)] == protocol.calls
    async with endpoint(local_addr=("127.0.0.1", 0), allow_broadcast=True) as (transport, protocol):
        assert transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)


@on_loop
async def test_what_the_peer_refuses_is_an_error_and_the_transport_stays():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = nobody.getsockname()
    async with endpoint(remote_addr=address) as (transport, protocol):
        transport.sendto(b"x")
        await protocol.noted(1)

        assert [("error", ConnectionRefusedError)] == protocol.calls
        assert not transport.is_closing()


@on_loop
async def test_a_datagram_that_is_too_long_is_an_error():
    async with endpoint(local_addr=("127.0.0.1", 0)) as (transport, protocol):
        transport.sendto(b"x" * 70_000, transport.get_extra_info("sockname"))

        assert [("error", OSError)] == protocol.calls


@on_loop
async def test_what_a_protocols_error_received_raises_reaches_the_sender():
    class Failing(Recorder):
        def error_received(self, error):
            raise LookupError("failed") from error

    async with endpoint(Failing, local_addr=("127.0.0.1", 0)) as (transport, _protocol):
        with pytest.raises(LookupError):
            transport.sendto(b"x" * 70_000, transport.get_extra_info("sockname"))


@on_loop
async def test_what_datagram_received_raises_is_reported_and_the_transport_stays():
    class Failing(Recorder):
        def datagram_received(self, data, address):
            super().datagram_received(data, address)
            if data == b"bad":
                raise LookupError("failed")

    errors = collect_errors()
    async with endpoint(Failing, local_addr=("127.0.0.1", 0)) as (transport, protocol):
        for data in (b"bad", b"good"):
            transport.sendto(data, transport.get_extra_info("sockname"))
        await protocol.noted(2)

        assert [LookupError] == [type(error["exception"]) for error in errors]
        assert not transport.is_closing()


@on_loop
async def test_an_address_that_is_none_ends_the_transport():
    errors = collect_errors()
    async with endpoint(local_addr=("127.0.0.1", 0)) as (transport, protocol):
        transport.sendto(b"x", 17)
        await protocol.lost()

        assert [TypeError] == [type(call[1]) for call in protocol.calls]
    assert ["Fatal write error on datagram transport"] == [error["message"] for error in errors]


async def filled(transport):
    """Send until nothing more is taken; return how many were sent."""
    count = 0
    while not transport.get_write_buffer_size():
        transport.sendto(b"%d" % count)
        count += 1
    return count


@on_loop
async def test_what_the_kernel_does_not_take_is_kept_and_sent_in_order():
    with socket_pair(socket.SOCK_DGRAM) as (left, right):
        async with endpoint(sock=left) as (transport, protocol):
            transport.set_write_buffer_limits(high=100)
            count = await filled(transport)
            while ("pause",) not in protocol.calls:
                transport.sendto(b"%d" % count)
                count += 1
            received = [await asyncio.get_running_loop().sock_recv(right, 100) for _ in range(count)]
            await protocol.noted(2)

            assert [b"%d" % number for number in range(count)] == received
            assert [("pause",), ("resume",)] == protocol.calls
            assert 0 == transport.get_write_buffer_size()


@on_loop
async def test_a_queue_full_of_others_datagrams_is_tried_again():
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as right:
        path = str(Path(folder, "right"))
        right.bind(path)
        right.setblocking(False)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, contextlib.suppress(BlockingIOError):
            other.setblocking(False)
            while True:
                other.sendto(b"other", path)
        async with endpoint(**of_family(socket.AF_UNIX, folder, "left")) as (transport, _protocol):
            transport.sendto(b"late", path)
            assert transport.get_write_buffer_size()
            while await loop.sock_recv(right, 100) == b"other":
                pass

            assert 0 == transport.get_write_buffer_size()


@on_loop
async def test_closing_sends_what_waits_and_aborting_does_not():
    for close in (True, False):
        with socket_pair(socket.SOCK_DGRAM) as (left, right):
            async with endpoint(sock=left) as (transport, protocol):
                count = await filled(transport)
                if close:
                    transport.close()
                    transport.close()
                    received = [await asyncio.get_running_loop().sock_recv(right, 100) for _ in range(count)]
                    assert b"%d" % (count - 1) == received[-1]
                else:
                    transport.abort()
                    assert 0 == transport.get_write_buffer_size()
                await protocol.lost()

                assert [("lost", None)] == protocol.calls
                assert -1 == left.fileno()


@on_loop
async def test_sending_after_the_end_is_counted_and_warned_of(caplog):
    async with endpoint(remote_addr=("127.0.0.1", 9)) as (transport, protocol):
        transport.abort()
        await protocol.lost()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(5):
                transport.sendto(b"x")

        assert ["socket.send() raised exception."] == [record.message for record in caplog.records]


@on_loop
async def test_a_protocol_may_abort_in_datagram_received():
    class Aborter(Recorder):
        def datagram_received(self, data, address):
            super().datagram_received(data, address)
            self.transport.abort()
            self.transport.sendto(b"late", address)

    async with endpoint(Aborter, local_addr=("127.0.0.1", 0)) as (transport, protocol):
        for data in (b"one", b"two"):
            transport.sendto(data, transport.get_extra_info("sockname"))
        await protocol.lost()

        assert ["data", "lost"] == [call[0] for call in protocol.calls]


def test_a_stop_in_datagram_received_leaves_the_others_for_later():
    with new_loop() as loop:
        seen = []

        class Stopper(Recorder):
            def datagram_received(self, data, address):
                seen.append(data)
                loop.stop()

        opening = loop.create_datagram_endpoint(Stopper, local_addr=("127.0.0.1", 0))
        transport, protocol = loop.run_until_complete(opening)
        for data in (b"one", b"two"):
            transport.sendto(data, transport.get_extra_info("sockname"))
        loop.run_forever()
        assert [b"one"] == seen
        loop.run_forever()
        assert [b"one", b"two"] == seen
        transport.abort()
        loop.run_until_complete(protocol.lost())


@on_loop
async def test_one_that_its_user_forgets_goes_on_receiving():
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(Recorder, local_addr=("127.0.0.1", 0))
    fd = transport.get_extra_info("socket").fileno()
    assert transport is loop._transports[fd]
    del protocol.transport
    transports = [transport]
    del transport
    forget(transports)

    kept = loop._transports[fd]
    kept.sendto(b"x", kept.get_extra_info("sockname"))
    await protocol.noted(1)
    kept.abort()
    await protocol.lost()


@on_loop
async def test_a_subclass_of_socket_has_its_own_methods_called():
    class Shouting(socket.socket):
        def recvfrom(self, *arguments):
            data, address = super().recvfrom(*arguments)
            return data.upper(), address

    sock = Shouting(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    async with endpoint(sock=sock) as (transport, protocol):
        transport.sendto(b"whisper", sock.getsockname())
        await protocol.noted(1)

        assert b"WHISPER" == protocol.calls[0][1]
