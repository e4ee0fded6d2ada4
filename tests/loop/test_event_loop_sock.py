# SPDX-License-Identifier: Apache-2.0
"""loop.sock_recv, sock_recv_into and sock_sendall: awaitables that stand where asyncio has coroutines."""

import asyncio
import collections.abc
import gc
import inspect
import socket

import gossamer as gs
import pytest
from loops import forget, new_loop, on_loop, run_virtually, socket_pair


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
