# SPDX-License-Identifier: Apache-2.0
"""Stream transports: reading, writing, flow control and the ends of a connection."""

import asyncio
import contextvars
import gc
import io
import socket
import sysconfig
import tempfile
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from gossamer._event_loop import SocketTransport
from loops import collect_errors, forget, on_loop, run_on_thread, socket_pair
from protocols import Recorder


def receive_all(sock: socket.socket, size: int) -> None:
    """Receive that much, waiting for it."""
    sock.setblocking(True)
    while size:
        size -= len(sock.recv(size))


async def receive_that_many(sock: socket.socket, size: int) -> bytes:
    """Receive that much, in a task."""
    received = bytearray()
    while len(received) < size:
        received += await asyncio.get_running_loop().sock_recv(sock, 65536)
    return bytes(received)


@asynccontextmanager
async def connected(protocol=Recorder) -> AsyncIterator[tuple[asyncio.Transport, Recorder, socket.socket]]:
    """A transport, its protocol, and the other end."""
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, right):
        transport, made = await loop.create_connection(protocol, sock=left)
        try:
            yield transport, made, right
        finally:
            transport.abort()
            if isinstance(made, Recorder):
                await made.lost()


@on_loop
async def test_it_is_an_asyncio_transport():
    async with connected() as (transport, protocol, _right):
        assert isinstance(transport, asyncio.Transport)
        assert protocol is transport.get_protocol()
        assert isinstance(transport.get_extra_info("socket"), asyncio.trsock.TransportSocket)
        assert transport.is_reading()
        assert not transport.is_closing()
        assert transport.can_write_eof()
        assert (16384, 65536) == transport.get_write_buffer_limits()
        assert "read=polling" in repr(transport)


@on_loop
async def test_methods_take_their_argument_by_its_name_too():
    async with connected() as (transport, protocol, right):
        transport.write(data=b"one ")
        transport.writelines(list_of_data=[b"two ", b"three"])
        transport.set_protocol(protocol=protocol)

        assert b"one two three" == await asyncio.get_running_loop().sock_recv(right, 100)
        for method in (transport.write, transport.writelines, transport.set_protocol):
            with pytest.raises(TypeError, match=f"{method.__name__}.* unexpected keyword argument 'text'"):
                method(text=b"")
            with pytest.raises(TypeError, match=f"{method.__name__}.* takes 1 argument"):
                method()


@on_loop
async def test_each_arrival_is_one_call_of_the_protocol():
    async with connected() as (_transport, protocol, right):
        right.send(b"one")
        await protocol.until(lambda: protocol.received == b"one")
        right.send(b"two")
        await protocol.until(lambda: protocol.received == b"onetwo")

        assert [("data", b"one"), ("data", b"two")] == protocol.calls


@on_loop
async def test_a_large_message_arrives_whole_whatever_the_sizes_of_the_reads():
    loop = asyncio.get_running_loop()
    message = bytes(range(256)) * 8192
    async with connected() as (_transport, protocol, right):
        await loop.sock_sendall(right, message)
        await protocol.until(lambda: len(protocol.received) == len(message))

        assert message == protocol.received


@on_loop
async def test_a_write_that_the_kernel_does_not_take_is_kept_and_sent_in_order():
    loop = asyncio.get_running_loop()
    message = bytes(range(256)) * 16384
    async with connected() as (transport, protocol, right):
        transport.write(message)
        transport.write(b"the end")
        assert transport.get_write_buffer_size() > 0
        assert ("pause",) in protocol.calls
        received = bytearray()
        while len(received) < len(message) + 7:
            received += await loop.sock_recv(right, 65536)
        await protocol.until(lambda: ("resume",) in protocol.calls)

        assert message + b"the end" == received
        assert 0 == transport.get_write_buffer_size()


@on_loop
async def test_what_was_written_may_be_changed_afterwards():
    loop = asyncio.get_running_loop()
    async with connected() as (transport, _protocol, right):
        data = bytearray(b"a" * 4_000_000)
        transport.write(data)
        transport.write(memoryview(data)[:10])
        data[:] = b"b" * len(data)
        data.clear()
        received = bytearray()
        while len(received) < 4_000_010:
            received += await loop.sock_recv(right, 1 << 20)

        assert {ord("a")} == set(received)


@on_loop
async def test_writelines_sends_all_pieces():
    async with connected() as (transport, _protocol, right):
        transport.writelines([b"one ", bytearray(b"two "), b"", memoryview(b"three")])

        assert b"one two three" == await asyncio.get_running_loop().sock_recv(right, 100)


@on_loop
async def test_writes_check_their_arguments():
    async with connected() as (transport, _protocol, _right):
        with pytest.raises(TypeError, match="bytes-like object, not 'str'"):
            transport.write("text")
        with pytest.raises(TypeError):
            transport.writelines([1])
        with pytest.raises(ValueError, match="must be >= low"):
            transport.set_write_buffer_limits(high=1, low=2)


@on_loop
async def test_while_reading_is_paused_nothing_is_delivered_and_nothing_is_lost():
    async with connected() as (transport, protocol, right):
        transport.pause_reading()
        transport.pause_reading()
        right.send(b"while paused")
        for _ in range(40):
            await asyncio.sleep(0)
        assert b"" == protocol.received
        assert not transport.is_reading()

        transport.resume_reading()
        await protocol.until(lambda: protocol.received)
        right.send(b", after")
        await protocol.until(lambda: protocol.received == b"while paused, after")


@on_loop
async def test_a_protocol_may_pause_in_the_middle_of_a_large_message():
    loop = asyncio.get_running_loop()

    class Pauser(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.transport.pause_reading()
            loop.call_soon(self.transport.resume_reading)

    async with connected(Pauser) as (_transport, protocol, right):
        await loop.sock_sendall(right, bytes(1_000_000))
        await protocol.until(lambda: len(protocol.received) == 1_000_000)


@on_loop
@pytest.mark.parametrize("end", ["write", "write_eof", "abort"])
async def test_two_turns_after_it_was_sent_a_peer_in_the_same_loop_has_it(end):
    """So it is with asyncio, which asks the kernel in every turn, and tests of libraries count on it."""
    loop = asyncio.get_running_loop()
    async with connected() as (transport, _protocol, right):
        _, peer = await loop.create_connection(Recorder, sock=right)
        for _ in range(3):  # the loop asked the kernel a moment ago, and has something to do
            await asyncio.sleep(0)

        if end == "write":
            transport.write(b"some")
        else:
            getattr(transport, end)()
            await asyncio.sleep(0)  # an abort closes at the next turn
        await asyncio.sleep(0)
        await asyncio.sleep(0)

        assert peer.received == b"some" if end == "write" else peer.calls


@on_loop
async def test_a_socket_with_calls_of_its_own_has_them_called():
    class Counting(socket.socket):
        calls = 0

        def recv(self, size):
            self.calls += 1
            return super().recv(size)

    loop = asyncio.get_running_loop()
    with socket_pair() as (left, right):
        counting = Counting(fileno=left.detach())
        transport, protocol = await loop.create_connection(Recorder, sock=counting)
        right.send(b"some")
        await protocol.until(lambda: protocol.received == b"some")
        transport.abort()
        await protocol.lost()

        assert counting.calls


@on_loop
async def test_the_end_of_the_stream_closes_unless_the_protocol_keeps_it_open():
    async with connected() as (transport, protocol, right):
        right.shutdown(socket.SHUT_WR)
        await protocol.lost()

        assert [("eof",), ("lost", None)] == protocol.calls
        assert transport.is_closing()

    async with connected() as (transport, protocol, right):
        protocol.keep_open = True
        right.send(b"last")
        right.shutdown(socket.SHUT_WR)
        await protocol.until(lambda: ("eof",) in protocol.calls)
        transport.write(b"answer")

        assert [("data", b"last"), ("eof",)] == protocol.calls
        assert b"answer" == await asyncio.get_running_loop().sock_recv(right, 10)


@on_loop
async def test_write_eof_follows_what_was_written():
    loop = asyncio.get_running_loop()
    async with connected() as (transport, protocol, right):
        transport.write(bytes(3_000_000))
        transport.write_eof()
        with pytest.raises(RuntimeError, match="after write_eof"):
            transport.write(b"more")
        size = 0
        while data := await loop.sock_recv(right, 1 << 20):
            size += len(data)
        right.send(b"still open")
        await protocol.until(lambda: protocol.received)

        assert 3_000_000 == size


@on_loop
async def test_closing_sends_what_was_written_first():
    loop = asyncio.get_running_loop()
    async with connected() as (transport, protocol, right):
        transport.write(bytes(3_000_000))
        transport.close()
        size = 0
        while data := await loop.sock_recv(right, 1 << 20):
            size += len(data)
        await protocol.lost()

        assert 3_000_000 == size
        assert ("lost", None) == protocol.calls[-1]


@on_loop
async def test_abort_drops_what_was_written():
    async with connected() as (transport, protocol, _right):
        transport.write(bytes(3_000_000))
        transport.abort()
        await protocol.lost()

        assert 0 == transport.get_write_buffer_size()
        assert transport.get_extra_info("socket").fileno() == -1
        transport.write(b"nobody hears")
        transport.abort()
        transport.close()


@on_loop
async def test_a_peer_that_is_gone_is_an_error_of_the_connection():
    async with connected() as (transport, protocol, right):
        right.close()
        while not transport.is_closing():
            transport.write(b"x")
            await asyncio.sleep(0)
        await protocol.lost()

        assert protocol.calls[-1][1] is None or isinstance(protocol.calls[-1][1], ConnectionError)


@on_loop
async def test_an_error_of_the_protocol_ends_its_connection_and_is_told():
    contexts = collect_errors()

    class Failing(Recorder):
        def data_received(self, data):
            raise ZeroDivisionError(data)

    async with connected(Failing) as (transport, protocol, right):
        right.send(b"x")
        await protocol.lost()

        assert isinstance(protocol.calls[-1][1], ZeroDivisionError)
    (context,) = contexts
    assert transport is context["transport"]
    assert "protocol.data_received() call failed" in context["message"]


@pytest.mark.parametrize("base", [asyncio.BufferedProtocol, asyncio.BaseProtocol])
@on_loop
async def test_a_buffered_protocol_is_read_into(base):
    """One that says so by its class, or by having the methods and not data_received."""

    class Buffered(base):
        def __init__(self):
            self.buffer = bytearray(4)
            self.received = bytearray()
            self.ended = asyncio.get_running_loop().create_future()

        def get_buffer(self, _size):
            return self.buffer

        def buffer_updated(self, size):
            self.received += self.buffer[:size]

        def eof_received(self):
            self.ended.set_result(None)

    async with connected(Buffered) as (_transport, protocol, right):
        right.send(b"more than four")
        right.shutdown(socket.SHUT_WR)
        await protocol.ended

        assert b"more than four" == protocol.received


@on_loop
async def test_the_protocol_can_be_replaced():
    async with connected() as (transport, first, right):
        second = Recorder()
        right.send(b"1")
        await first.until(lambda: first.received)
        transport.set_protocol(second)
        right.send(b"2")
        await second.until(lambda: second.received)

        assert (b"1", b"2") == (first.received, second.received)
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
    async with connected(Seeing) as (_transport, protocol, right):
        variable.set("changed later")
        right.send(b"x")
        await protocol.until(lambda: protocol.received)

    assert ["set before"] == seen


@on_loop
async def test_what_follows_from_data_is_called_in_the_context_of_the_data():
    """The end of a connection that the other side ended, and the one that lets a protocol write again."""
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    class Seeing(Recorder):
        def connection_lost(self, error):
            seen.append(variable.get())
            super().connection_lost(error)

        def resume_writing(self):
            seen.append(variable.get())
            super().resume_writing()

    variable.set("set before")
    async with connected(Seeing) as (transport, protocol, right):
        variable.set("changed later")
        transport.write(bytes(4_000_000))
        await asyncio.get_running_loop().run_in_executor(None, lambda: receive_all(right, 4_000_000))
        right.shutdown(socket.SHUT_WR)
        await protocol.lost()

    assert ["set before", "set before"] == seen


@pytest.mark.parametrize("protocol", [0, socket.IPPROTO_TCP])
@on_loop
async def test_small_writes_are_not_held_back(protocol):
    """TCP_NODELAY is set on every TCP connection, also where the socket was made without naming TCP."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
        sock.connect(listener.getsockname())
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=sock)

        assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

        transport.abort()


def test_a_transport_that_nobody_closed_warns_and_closes_its_socket():
    with socket_pair() as (left, right):

        async def main():
            transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=left)
            return weakref.ref(transport)

        with pytest.warns(ResourceWarning, match="unclosed transport"):
            gone = run_on_thread(main())

        assert gone() is None
        assert b"" == right.recv(1)


def test_a_paused_transport_that_nobody_refers_to_is_collected():
    with socket_pair() as (left, _right):

        async def main():
            transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=left)
            transport.pause_reading()
            gone = weakref.ref(transport)
            await asyncio.sleep(0)
            transports = [transport]
            del transport, _
            with pytest.warns(ResourceWarning, match="unclosed transport"):
                forget(transports)
            assert gone() is None

        run_on_thread(main())


def test_connections_leave_nothing_behind():
    async def main():
        async def echo(reader, writer):
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            for _ in range(30):
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                writer.write(b"line\n")
                assert b"line\n" == await reader.readline()
                writer.close()
                await writer.wait_closed()

    def count():
        gc.collect()
        return len(gc.get_objects())

    run_on_thread(main())
    before = count()
    run_on_thread(main())

    assert count() - before < 100


@on_loop
async def test_sendfile_of_a_file():
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryFile() as file:
        file.write(b"file" * 100_000)
        file.seek(0)
        async with connected() as (transport, _protocol, right):
            sending = loop.create_task(loop.sendfile(transport, file))
            received = bytearray()
            while len(received) < 400_000:
                received += await loop.sock_recv(right, 65536)

            assert 400_000 == await sending
            assert b"file" * 100_000 == received


@pytest.mark.parametrize(("offset", "count", "is_paused"), [(0, None, False), (10, 150_000, False), (0, None, True)])
@on_loop
async def test_sendfile_of_what_has_no_descriptor(offset, count, is_paused):
    """asyncio's own code for it refuses transports that are not of a class of its own."""
    loop = asyncio.get_running_loop()
    content = bytes(range(256)) * 1000
    file = io.BytesIO(content)
    sent = content[offset:][:count]
    before = b"x" * 1_000_000 if is_paused else b""
    async with connected() as (transport, protocol, right):
        if is_paused:
            transport.write(before)
            assert [("pause",)] == protocol.calls
        received, count_sent = await asyncio.gather(
            receive_that_many(right, len(before) + len(sent)), loop.sendfile(transport, file, offset, count)
        )

        assert len(sent) == count_sent
        assert before + sent == received
        assert offset + len(sent) == file.tell()
        assert protocol is transport.get_protocol()
        assert transport.is_reading()
        assert [("pause",), ("resume",)] * is_paused == protocol.calls
        with pytest.raises(RuntimeError, match="not a regular file"):
            await loop.sendfile(transport, file, fallback=False)


@on_loop
async def test_the_end_of_a_connection_ends_a_sendfile_of_what_has_no_descriptor():
    loop = asyncio.get_running_loop()
    async with connected() as (transport, protocol, right):
        sending = loop.create_task(loop.sendfile(transport, io.BytesIO(bytes(10_000_000))))
        await loop.sock_recv(right, 1)
        right.close()

        with pytest.raises(ConnectionError):
            await sending
        assert "lost" == protocol.calls[-1][0]


@on_loop
async def test_a_unix_server_with_an_abstract_name():
    async def echo(reader, writer):
        writer.write(await reader.readline())
        writer.close()

    async with await asyncio.start_unix_server(echo, "\0gossamer-test-of-the-loop"):
        reader, writer = await asyncio.open_unix_connection("\0gossamer-test-of-the-loop")
        writer.write(b"line\n")

        assert b"line\n" == await reader.readline()
        writer.close()
        await writer.wait_closed()


@on_loop
async def test_datagrams_and_pipes_work():
    loop = asyncio.get_running_loop()
    came = loop.create_future()

    class Receiver(asyncio.DatagramProtocol):
        def datagram_received(self, data, _address):
            came.set_result(data)

    receiver, _ = await loop.create_datagram_endpoint(Receiver, local_addr=("127.0.0.1", 0))
    sender, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, remote_addr=receiver.get_extra_info("sockname")
    )
    sender.sendto(b"datagram")

    assert b"datagram" == await came
    sender.close()
    receiver.close()
    await asyncio.sleep(0)


def test_a_transport_may_outlive_its_loop():
    with socket_pair() as (left, _right):

        async def main():
            transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=left)
            transport.close()
            await asyncio.sleep(0)
            return transport

        transports = [run_on_thread(main())]
        gc.collect()

        assert "closed" in repr(transports[0])
        forget(transports)


@on_loop
async def test_what_a_protocol_raises_when_the_last_bytes_are_sent_is_reported():
    loop = asyncio.get_running_loop()
    contexts = collect_errors()

    class Raising(Recorder):
        def connection_lost(self, error):
            super().connection_lost(error)
            raise ValueError("lost")

    async with connected(Raising) as (transport, protocol, right):
        transport.write(bytes(3_000_000))
        transport.close()
        while await loop.sock_recv(right, 1 << 20):
            pass

        assert [("lost", None)] == [call for call in protocol.calls if call[0] == "lost"]
        assert ["lost"] == [str(context["exception"]) for context in contexts]


@on_loop
async def test_a_number_that_its_socket_has_no_more_is_not_used():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, right):
        transport, protocol = await loop.create_connection(Recorder, sock=left)
        number = left.detach()
        with socket.socket(fileno=number):  # as another file may have it, once it was closed
            transport.write(b"for nobody")

            with pytest.raises(BlockingIOError):
                right.recv(100)
            await protocol.lost()
        assert isinstance(protocol.calls[-1][1], OSError)


@on_loop
async def test_the_end_has_the_context_of_the_protocol():
    variable = contextvars.ContextVar("variable", default="of nobody")
    contexts = []

    class Noting(Recorder):
        def resume_writing(self):
            contexts.append(variable.get())

        def connection_lost(self, error):
            contexts.append(variable.get())
            super().connection_lost(error)

    async def connect(left):
        variable.set("of the connection")
        return await asyncio.get_running_loop().create_connection(Noting, sock=left)

    with socket_pair() as (left, right):
        transport, protocol = await asyncio.create_task(connect(left))
        transport.write(bytes(3_000_000))
        while transport.get_write_buffer_size():
            await asyncio.get_running_loop().sock_recv(right, 1 << 20)
        right.shutdown(socket.SHUT_WR)
        await protocol.lost()

        assert ["of the connection"] * 2 == contexts


@on_loop
async def test_a_transport_that_dies_is_not_found_any_more():
    loop = asyncio.get_running_loop()
    found = []

    class Looking(Recorder):
        def __del__(self):
            found.append(loop._transports.get(number))

    with socket_pair() as (left, _right):
        number = left.fileno()
        ends = list(await loop.create_connection(Looking, sock=left))
        ends[0].pause_reading()
        ends[1].transport = None
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            forget(ends)

    assert [None] == found


@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="a class lives for ever there, once a thread was started"
)
def test_transports_may_die_after_their_class():
    def leave_garbage():
        class Own(SocketTransport):
            pass

        for _ in range(2):
            transport = Own.__new__(Own)
            transport.own = transport
        return weakref.ref(Own)

    reference = leave_garbage()
    gc.collect()

    assert reference() is None
