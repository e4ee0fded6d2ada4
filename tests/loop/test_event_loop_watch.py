# SPDX-License-Identifier: Apache-2.0
"""Readers and writers: level-triggered for their users, whatever the reactor does."""

import asyncio
import os
import select
import tempfile
import threading
import time

import gossamer as gs
import pytest
from gossamer import _core
from gossamer.testing import settle
from loops import both_ways, collect_errors, new_loop, on_loop, run_on_thread, socket_pair


@on_loop
async def test_a_reader_is_called_again_while_something_is_left():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, right):
        done = loop.create_future()
        received = []

        def read_one():
            received.append(left.recv(1))
            if len(received) == 5:
                loop.remove_reader(left)
                done.set_result(None)

        loop.add_reader(left, read_one)
        right.send(b"abcde")
        await done

        assert [b"a", b"b", b"c", b"d", b"e"] == received


@on_loop
async def test_a_reader_is_called_once_although_an_edge_and_a_look_tell_of_the_same():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, right):
        done = loop.create_future()
        received = []

        def read():
            received.append(left.recv(1))  # raises when there is nothing
            if len(received) == 50:
                loop.remove_reader(left)
                done.set_result(None)
            else:
                loop.call_soon(right.send, b"x")

        errors = collect_errors()
        loop.add_reader(left, read)
        right.send(b"x")
        await done

        assert [] == errors


@on_loop
async def test_a_writer_is_called_while_there_is_room():
    loop = asyncio.get_running_loop()
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    full = loop.create_future()
    written = []

    def write():
        written.append(os.write(write_end, bytes(4096)))
        if len(written) == 16:  # the size of a pipe (pipe(7))
            full.set_result(None)

    loop.add_writer(write_end, write)
    await full
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert 16 == len(written)
    loop.remove_writer(write_end)
    os.close(read_end)
    os.close(write_end)


@on_loop
async def test_reader_and_writer_of_one_descriptor_are_apart():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, right):
        read, wrote = loop.create_future(), loop.create_future()
        loop.add_reader(left, lambda: read.done() or read.set_result(left.recv(9)))
        loop.add_writer(left, lambda: wrote.done() or wrote.set_result(left.send(b"out")))

        await wrote
        assert loop.remove_writer(left)
        assert not loop.remove_writer(left)
        right.send(b"in")
        await read
        assert loop.remove_reader(left)
        assert not loop.remove_reader(left)

        assert (b"in", b"out") == (read.result(), right.recv(9))


@on_loop
async def test_adding_a_reader_again_replaces_the_first():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, right):
        which = loop.create_future()
        loop.add_reader(left, which.set_result, 1)
        loop.add_reader(left, lambda: which.done() or which.set_result(2))
        right.send(b"x")

        assert 2 == await which
        loop.remove_reader(left)


@on_loop
async def test_a_pipe_whose_writer_is_gone_is_readable():
    loop = asyncio.get_running_loop()
    read_end, write_end = os.pipe()
    ended = loop.create_future()
    loop.add_reader(read_end, lambda: ended.done() or ended.set_result(os.read(read_end, 1)))

    os.close(write_end)

    assert b"" == await ended
    loop.remove_reader(read_end)
    os.close(read_end)


@both_ways
@pytest.mark.parametrize("is_running", [True, False])
def test_what_cannot_be_watched_is_an_error_as_with_asyncio(run, is_running):
    def check(loop):
        with tempfile.TemporaryFile() as file, pytest.raises(PermissionError):
            loop.add_reader(file, print)
        read_end, write_end = os.pipe()
        os.close(read_end)
        os.close(write_end)
        with pytest.raises(OSError, match="Bad file descriptor"):
            loop.add_writer(read_end, print)
        with pytest.raises(ValueError, match="Invalid file object"):
            loop.add_reader("no file", print)
        assert not loop.remove_reader(read_end)

    async def main():
        check(asyncio.get_running_loop())

    if is_running:
        run(main())
    else:
        with new_loop() as loop:
            check(loop)


@on_loop
async def test_a_descriptor_closed_without_removing_its_reader_can_be_used_again():
    loop = asyncio.get_running_loop()
    first_read, first_write = os.pipe()
    loop.add_reader(first_read, print)
    os.close(first_read)
    os.close(first_write)

    read_end, write_end = os.pipe()
    assert first_read == read_end
    came = loop.create_future()
    loop.add_reader(read_end, lambda: came.done() or came.set_result(os.read(read_end, 9)))
    os.write(write_end, b"x")

    assert b"x" == await came
    loop.remove_reader(read_end)
    os.close(read_end)
    os.close(write_end)


@on_loop
async def test_a_socket_that_was_closed_meanwhile_is_found_by_itself():
    """anyio closes a socket, and then takes its reader away."""
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, _right):
        loop.add_reader(left, print)
        loop.add_writer(left, print)
        left.close()

        assert (True, True) == (loop.remove_reader(left), loop.remove_writer(left))
        with pytest.raises(ValueError, match="negative"):
            loop.remove_reader(left)


@on_loop
async def test_a_transports_descriptor_is_refused():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, _right):
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=left)

        for method in (loop.add_reader, loop.add_writer):
            with pytest.raises(RuntimeError, match="is used by transport"):
                method(left.fileno(), print)

        transport.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def test_a_readable_descriptor_of_a_loop_that_is_held_up_costs_nothing():
    """The hub sleeps although what the loop watches is readable and nobody reads it."""

    def main():
        with socket_pair() as (left, right), new_loop() as loop, gs.scope() as scope:
            event = threading.Event()

            def hold_up():
                event.wait()
                loop.stop()

            loop.add_reader(left, print)
            loop.call_soon(hold_up)
            right.send(b"x")
            scope.spawn(loop.run_forever)
            settle()
            before = _core.statistics()["waits"]
            time.sleep(0.01)
            waits = _core.statistics()["waits"] - before
            event.set()
            return waits

    assert 3 >= gs.run(main)


@on_loop
async def test_a_virtual_thread_and_a_loop_wait_for_the_same_socket():
    """A wait by hand for what a loop watches disturbs neither."""
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, right):
        came = loop.create_future()
        loop.add_reader(left, lambda: came.done() or came.set_result(None))

        def wait():
            return select.select([left], [], [])[0]

        waiter = loop.run_in_executor(None, wait)
        right.send(b"x")
        await came

        assert [left] == await waiter
        loop.remove_reader(left)


def test_a_loop_watches_many_descriptors_at_once():
    async def main():
        loop = asyncio.get_running_loop()
        pipes = [os.pipe() for _ in range(300)]
        left = len(pipes)
        done = loop.create_future()

        def read(fd):
            nonlocal left
            os.read(fd, 1)
            loop.remove_reader(fd)
            left -= 1
            if left == 0:
                done.set_result(None)

        for read_end, _write_end in pipes:
            loop.add_reader(read_end, read, read_end)
        for _read_end, write_end in pipes:
            os.write(write_end, b"x")
        await done
        for ends in pipes:
            for fd in ends:
                os.close(fd)

    run_on_thread(main())
