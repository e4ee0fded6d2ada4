# SPDX-License-Identifier: Apache-2.0
"""loop.sock_*: awaitables that stand where asyncio has coroutines."""

import asyncio
import collections.abc
import contextlib
import gc
import inspect
import socket
import tempfile
import tracemalloc
from pathlib import Path

import gossamer as gs
import pytest
from loops import forget, new_loop, on_loop, run_on_thread, run_virtually, socket_pair


@on_loop
async def test_bytes_that_are_there_come_without_a_wait():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, right):
        await loop.sock_sendall(left, b"one")
        buffer = bytearray(2)

        assert 2 == await loop.sock_recv_into(right, buffer)
        assert (b"on", b"e") == (buffer, await loop.sock_recv(right, 10))


@on_loop
async def test_a_task_can_be_made_of_one():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, right):
        receiving = loop.create_task(loop.sock_recv(left, 10))
        await asyncio.sleep(0)
        right.send(b"late")

        assert "EventLoop.sock_recv" in repr(receiving)
        assert b"late" == await receiving


@on_loop
async def test_one_that_is_never_awaited_warns():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, _right):
        operations = [loop.sock_sendall(left, b"x")]
        assert isinstance(operations[0], collections.abc.Coroutine)

        with pytest.warns(RuntimeWarning, match="'EventLoop.sock_sendall' was never awaited"):
            forget(operations)


@on_loop
async def test_one_is_awaited_once():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, right):
        right.send(b"x")
        receiving = loop.sock_recv(left, 10)
        assert b"x" == await receiving

        with pytest.raises(RuntimeError, match="already awaited"):
            await receiving


@on_loop
async def test_a_large_message_is_sent_whole_while_it_is_received():
    loop = asyncio.get_running_loop()
    message = bytes(range(256)) * 16384
    with socket_pair() as (left, right):
        sending = loop.create_task(loop.sock_sendall(left, message))
        received = bytearray()
        while len(received) < len(message):
            received += await loop.sock_recv(right, 1 << 20)
        await sending

        assert message == received


@on_loop
async def test_a_cancelled_wait_leaves_the_socket_usable():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, right):
        receiving = loop.create_task(loop.sock_recv(left, 10))
        await asyncio.sleep(0)
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving
        right.send(b"kept")

        assert b"kept" == await loop.sock_recv(left, 10)


@on_loop
async def test_closing_the_socket_ends_the_wait():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, _right):
        receiving = loop.create_task(loop.sock_recv(left, 10))
        await asyncio.sleep(0)
        left.close()

        with pytest.raises(OSError, match="Bad file descriptor"):
            await receiving


@on_loop
async def test_errors_are_those_of_the_socket():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, right):
        right.close()
        assert b"" == await loop.sock_recv(left, 10)
        with pytest.raises(BrokenPipeError):
            await loop.sock_sendall(left, b"x")
        with pytest.raises(ValueError, match="negative buffersize"):
            loop.sock_recv(left, -1)
        with pytest.raises(TypeError):
            loop.sock_sendall(left, "text")
        with pytest.raises(BufferError):
            loop.sock_recv_into(left, b"read-only")


@on_loop
async def test_a_read_that_fails_keeps_no_buffer():
    loop = asyncio.get_running_loop()
    with socket.socket() as unconnected:
        unconnected.setblocking(False)
        tracemalloc.start()
        try:
            with pytest.raises(OSError, match="not connected"):
                await loop.sock_recv(unconnected, 1 << 22)
            assert tracemalloc.get_traced_memory()[0] < 1 << 21
        finally:
            tracemalloc.stop()


@on_loop
async def test_a_transports_socket_is_refused_when_it_would_wait():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, _right):
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=left)
        transport.pause_reading()

        with pytest.raises(RuntimeError, match="is used by transport"):
            await loop.sock_recv(left, 10)
        transport.abort()
        await asyncio.sleep(0)


@on_loop
async def test_debug_mode_asks_for_a_non_blocking_socket():
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    with socket_pair() as (left, right):
        right.send(b"x")
        receiving = loop.sock_recv(left, 10)
        assert inspect.iscoroutine(receiving)
        assert b"x" == await receiving
        left.setblocking(True)
        with pytest.raises(ValueError, match="must be non-blocking"):
            await loop.sock_recv(left, 10)


@on_loop
async def test_a_subclass_of_socket_has_its_own_methods_called():
    class Shouting(socket.socket):
        def recv(self, *arguments):
            return super().recv(*arguments).upper()

    loop = asyncio.get_running_loop()
    with socket_pair() as (left, right), Shouting(fileno=left.detach()) as shouting:
        right.send(b"whisper")

        assert b"WHISPER" == await loop.sock_recv(shouting, 10)


def test_a_wait_goes_on_when_its_loop_runs_on_another_hub():
    with socket_pair() as (left, right), new_loop() as loop:
        receiving = loop.create_task(loop.sock_recv(left, 10))
        loop.run_until_complete(asyncio.sleep(0))
        gc.collect()
        right.send(b"x")

        assert b"x" == gs.run(loop.run_until_complete, receiving)


def test_a_wait_may_outlive_its_loop():
    with socket_pair() as (left, _right):
        loop = gs.new_event_loop()
        receiving = loop.create_task(loop.sock_recv(left, 10))
        receiving._log_destroy_pending = False
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        tasks = [receiving]
        del loop, receiving

        forget(tasks)


def test_it_works_beside_virtual_threads_on_the_same_socket():
    async def main():
        loop = asyncio.get_running_loop()
        with socket_pair() as (left, right):
            left.setblocking(True)

            def echo():
                while data := left.recv(10):
                    left.sendall(data.upper())

            with gs.scope() as scope:
                scope.spawn(echo)
                await loop.sock_sendall(right, b"hello")
                answer = await loop.sock_recv(right, 10)
                right.shutdown(socket.SHUT_WR)
            return answer

    assert b"HELLO" == run_virtually(main())


FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])


@contextlib.contextmanager
def bound(family, kind):
    """A non-blocking socket that is bound to an address of its own."""
    with socket.socket(family, kind) as sock, tempfile.TemporaryDirectory() as folder:
        sock.setblocking(False)
        hosts = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0, 0, 0)}
        sock.bind(hosts.get(family, str(Path(folder, "socket"))))
        yield sock


@contextlib.contextmanager
def unconnected(family, kind):
    with socket.socket(family, kind) as sock:
        sock.setblocking(False)
        yield sock


@FAMILIES
def test_accept_and_connect_wait_for_each_other(family):
    async def main():
        loop = asyncio.get_running_loop()
        with bound(family, socket.SOCK_STREAM) as listener, unconnected(family, socket.SOCK_STREAM) as client:
            listener.listen()
            accepting = loop.create_task(loop.sock_accept(listener))
            await asyncio.sleep(0)
            assert await loop.sock_connect(client, listener.getsockname()) is None
            connection, address = await accepting
            with connection:
                assert type(connection) is socket.socket
                assert (family, socket.SOCK_STREAM, 0) == (connection.family, connection.type, connection.gettimeout())
                assert (client.getsockname(), not connection.get_inheritable()) == (address, True)
                await loop.sock_sendall(client, b"hello")
                assert b"hello" == await loop.sock_recv(connection, 10)
                assert client.getpeername() == listener.getsockname()

    run_virtually(main())
    run_on_thread(main())


@FAMILIES
def test_datagrams_come_with_their_address(family):
    async def main():
        loop = asyncio.get_running_loop()
        kind = socket.SOCK_DGRAM
        with bound(family, kind) as left, bound(family, kind) as right:
            receiving = loop.create_task(loop.sock_recvfrom(left, 100))
            await asyncio.sleep(0)
            assert 3 == await loop.sock_sendto(right, bytearray(b"one"), left.getsockname())
            assert (b"one", right.getsockname()) == await receiving
            buffer = bytearray(10)
            receiving = loop.create_task(loop.sock_recvfrom_into(right, buffer))
            await asyncio.sleep(0)
            assert 0 == await loop.sock_sendto(left, b"", right.getsockname())
            assert (0, left.getsockname()) == await receiving
            await loop.sock_sendto(left, b"four", right.getsockname())
            assert (2, left.getsockname()) == await loop.sock_recvfrom_into(right, buffer, 2)
            assert buffer.startswith(b"fo")

    run_virtually(main())
    run_on_thread(main())


@on_loop
async def test_a_datagram_without_a_sender_has_no_address():
    loop = asyncio.get_running_loop()
    with bound(socket.AF_UNIX, socket.SOCK_DGRAM) as left, unconnected(socket.AF_UNIX, socket.SOCK_DGRAM) as right:
        await loop.sock_sendto(right, b"x", left.getsockname())
        expected = left.recvfrom(10)
        await loop.sock_sendto(right, b"x", left.getsockname())

        assert expected == await loop.sock_recvfrom(left, 10)


@on_loop
async def test_a_full_queue_makes_sendto_wait():
    loop = asyncio.get_running_loop()
    with bound(socket.AF_UNIX, socket.SOCK_DGRAM) as left, unconnected(socket.AF_UNIX, socket.SOCK_DGRAM) as right:
        right.connect(left.getsockname())
        with contextlib.suppress(BlockingIOError):
            while True:
                right.send(b"x")
        sending = loop.create_task(loop.sock_sendto(right, b"late", left.getsockname()))
        await asyncio.sleep(0)
        assert not sending.done()
        while (await loop.sock_recvfrom(left, 10))[0] != b"late":
            pass

        assert 4 == await sending


@on_loop
async def test_a_queue_full_of_others_datagrams_makes_sendto_wait():
    loop = asyncio.get_running_loop()
    kind = socket.SOCK_DGRAM
    with bound(socket.AF_UNIX, kind) as left, unconnected(socket.AF_UNIX, kind) as other:
        with contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"x", left.getsockname())
        with unconnected(socket.AF_UNIX, kind) as right:
            sending = loop.create_task(loop.sock_sendto(right, b"late", left.getsockname()))
            await asyncio.sleep(0)
            while (await loop.sock_recvfrom(left, 10))[0] != b"late":
                pass

            assert 4 == await sending


@on_loop
async def test_a_refused_connection_says_what_address():
    loop = asyncio.get_running_loop()
    with bound(socket.AF_INET, socket.SOCK_STREAM) as nobody, unconnected(socket.AF_INET, socket.SOCK_STREAM) as sock:
        address = nobody.getsockname()
        with pytest.raises(ConnectionRefusedError, match="Connect call failed") as raised:
            await loop.sock_connect(sock, address)

    assert str(address) in str(raised.value)


@on_loop
async def test_a_unix_socket_that_nobody_listens_on_is_refused_at_once():
    loop = asyncio.get_running_loop()
    with bound(socket.AF_UNIX, socket.SOCK_STREAM) as nobody, unconnected(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        connecting = loop.sock_connect(sock, nobody.getsockname())
        with pytest.raises(ConnectionRefusedError):
            await connecting


@on_loop
async def test_a_cancelled_accept_loses_no_connection():
    loop = asyncio.get_running_loop()
    with bound(socket.AF_INET, socket.SOCK_STREAM) as listener, socket.socket() as client:
        listener.listen()
        accepting = loop.create_task(loop.sock_accept(listener))
        await asyncio.sleep(0)
        accepting.cancel()
        client.connect(listener.getsockname())
        connection, _address = await loop.sock_accept(listener)
        connection.close()

        with pytest.raises(asyncio.CancelledError):
            await accepting


@on_loop
async def test_what_is_not_the_usual_case_is_asyncios():
    loop = asyncio.get_running_loop()
    with bound(socket.AF_INET, socket.SOCK_DGRAM) as left, bound(socket.AF_INET, socket.SOCK_DGRAM) as right:
        port = left.getsockname()[1]
        by_name = loop.sock_sendto(right, b"x", ("localhost", port))
        assert inspect.iscoroutine(by_name)
        assert 1 == await by_name
        assert (b"x", right.getsockname()) == await loop.sock_recvfrom(sock=left, bufsize=10)
        named = loop.sock_recv(sock=left, n=10)
        assert inspect.iscoroutine(named)
        named.close()
        with pytest.raises(TypeError):
            await loop.sock_recvfrom(left, "10")
        with pytest.raises(ValueError, match="nbytes is greater"):
            await loop.sock_recvfrom_into(left, bytearray(1), 2)
        with pytest.raises(TypeError):
            await loop.sock_sendto(right, b"x", None)
        with pytest.raises(OverflowError):
            await loop.sock_sendto(right, b"x", ("127.0.0.1", 70000))


def test_a_connection_under_way_goes_on_when_its_loop_runs_on_another_hub():
    with new_loop() as loop, bound(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.listen()
        with unconnected(socket.AF_INET, socket.SOCK_STREAM) as client:
            connecting = loop.create_task(loop.sock_connect(client, listener.getsockname()))
            accepting = loop.create_task(loop.sock_accept(listener))
            loop.run_until_complete(asyncio.sleep(0))
            connection, _address = gs.run(loop.run_until_complete, accepting)
            connection.close()

            assert gs.run(loop.run_until_complete, connecting) is None
