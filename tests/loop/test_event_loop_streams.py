# SPDX-License-Identifier: Apache-2.0
"""asyncio's streams, whose hot functions have a double: each fact holds on the stock loop too."""

import asyncio
import functools
import gc
import inspect
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import gossamer as gs
import pytest
from gossamer import _core
from loops import on_loop, run_on_thread, run_virtually, socket_pair

LIMIT = 1000


def on_every_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run the test's coroutine on the stock loop, then on ours in both ways."""

    @functools.wraps(test)
    def run_test(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))
        run_on_thread(test(**fixtures))
        run_virtually(test(**fixtures))

    return run_test


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, socket.socket]]:
    """A reader, its writer, and the other end."""
    with socket_pair() as (left, right):
        reader, writer = await asyncio.open_connection(sock=left, limit=LIMIT)
        try:
            yield reader, writer, right
        finally:
            writer.transport.abort()
            await asyncio.wait({asyncio.ensure_future(writer.wait_closed())})


async def buffered(reader: asyncio.StreamReader, size: int) -> None:
    """Wait until so much was received and not read."""
    while len(reader._buffer) < size:
        await asyncio.sleep(0)


@on_every_loop
async def test_read_returns_what_is_there_and_the_rest_later():
    async with connected() as (reader, _writer, right):
        right.send(b"abcde")
        assert b"abc" == await reader.read(3)
        assert b"de" == await reader.read(3)

        waiting = asyncio.create_task(reader.read(100))
        await asyncio.sleep(0)
        right.send(b"later")
        assert b"later" == await waiting


@on_every_loop
async def test_read_takes_any_number():
    class Three:
        __index__ = (3).__index__
        __eq__ = (3).__eq__
        __lt__ = (3).__lt__
        __le__ = (3).__le__

    async with connected() as (reader, _writer, right):
        right.send(b"abcde")

        assert b"abc" == await reader.read(Three())
        assert b"de" == await reader.read(1 << 70)


@on_every_loop
async def test_read_by_turns_with_the_other_methods():
    async with connected() as (reader, _writer, right):
        right.send(b"a line\nfour" + b"rest")
        assert b"a" == await reader.read(1)
        assert b" line\n" == await reader.readline()
        assert b"four" == await reader.readexactly(4)
        assert b"rest" == await reader.read(100)
        assert b"" == await reader.read(0)


@on_every_loop
async def test_read_of_everything_ends_with_the_stream():
    async with connected() as (reader, _writer, right):
        right.send(b"all of it")
        right.shutdown(socket.SHUT_WR)
        assert b"all of it" == await reader.read()
        assert b"" == await reader.read(10)
        assert reader.at_eof()


@on_every_loop
async def test_the_end_of_the_stream_ends_a_read_that_waits():
    async with connected() as (reader, _writer, right):
        waiting = asyncio.create_task(reader.read(10))
        await asyncio.sleep(0)
        right.shutdown(socket.SHUT_WR)
        assert b"" == await waiting


@on_every_loop
async def test_a_read_that_is_cancelled_takes_nothing():
    async with connected() as (reader, _writer, right):
        waiting = asyncio.create_task(reader.read(10))
        await asyncio.sleep(0)
        right.send(b"kept")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert reader._waiter is None
        assert b"kept" == await reader.read(10)


@on_every_loop
async def test_a_read_that_is_cancelled_after_its_data_came_takes_nothing():
    async with connected() as (reader, _writer, right):
        waiting = asyncio.create_task(reader.read(10))
        await asyncio.sleep(0)
        right.send(b"kept")
        await buffered(reader, 4)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert b"kept" == await reader.read(10)


@on_every_loop
async def test_two_reads_cannot_wait_at_once():
    async with connected() as (reader, _writer, right):
        waiting = asyncio.create_task(reader.read(10))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match=r"read\(\) called while another coroutine is already waiting"):
            await reader.read(10)
        right.send(b"x")
        assert b"x" == await waiting


@on_every_loop
async def test_an_exception_of_the_reader_is_raised_at_a_read_that_waits_and_at_each_later():
    async with connected() as (reader, _writer, _right):
        waiting = asyncio.create_task(reader.read(10))
        await asyncio.sleep(0)
        reader.set_exception(KeyError("told"))
        for read in (waiting, reader.read(10)):
            with pytest.raises(KeyError, match="told"):
                await read


@on_every_loop
async def test_a_full_reader_pauses_the_transport_and_a_read_resumes_it():
    async with connected() as (reader, writer, right):
        right.send(bytes(2 * LIMIT + 1))
        await buffered(reader, 2 * LIMIT + 1)
        assert not writer.transport.is_reading()

        assert 2 * LIMIT == len(await reader.read(2 * LIMIT))
        assert writer.transport.is_reading()
        right.send(b"more")
        await buffered(reader, 5)
        assert b"\0more" == await reader.read(10)


@on_every_loop
async def test_drain_waits_while_writing_is_paused():
    async with connected() as (_reader, writer, right):
        writer.write(bytes(10_000_000))
        draining = asyncio.create_task(writer.drain())
        await asyncio.sleep(0)
        assert not draining.done()

        loop = asyncio.get_running_loop()
        left = 10_000_000
        while left:
            left -= len(await loop.sock_recv(right, left))
        await draining
        await writer.drain()


@on_every_loop
async def test_drain_of_a_lost_connection_fails():
    async with connected() as (_reader, writer, _right):
        writer.transport.abort()
        with pytest.raises(ConnectionResetError):
            await writer.drain()


@on_every_loop
async def test_read_is_a_coroutine_function_with_its_name():
    async with connected() as (reader, _writer, right):
        assert inspect.iscoroutinefunction(reader.read)
        assert inspect.ismethod(reader.read)
        assert asyncio.StreamReader.read.__doc__ == reader.read.__doc__
        assert inspect.signature(asyncio.StreamReader().read) == inspect.signature(reader.read)
        assert repr(reader.read).startswith("<bound method StreamReader.read of <StreamReader ")
        right.send(b"x")
        coroutine = reader.read(1)
        assert asyncio.iscoroutine(coroutine)
        assert ("read", "StreamReader.read") == (coroutine.__name__, coroutine.__qualname__)
        assert b"x" == await coroutine


@on_every_loop
async def test_read_takes_its_number_by_name():
    async with connected() as (reader, _writer, right):
        right.send(b"abc")
        assert b"ab" == await reader.read(n=2)
        with pytest.raises(TypeError):
            reader.read(1, 2)
        with pytest.raises(TypeError):
            reader.read(size=1)
        assert b"c" == await reader.read(1)


@on_every_loop
async def test_a_reader_whose_dictionary_somebody_took_and_changed():
    async with connected() as (reader, _writer, right):
        fields = vars(reader)
        right.send(b"abc")
        assert b"a" == await reader.read(1)
        fields["another"] = 1
        waiting = asyncio.create_task(reader.read(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert b"bc" == await waiting
        assert fields["_waiter"] is None
        fields["_exception"] = KeyError("told")
        with pytest.raises(KeyError, match="told"):
            await reader.read(1)


@on_every_loop
async def test_a_reader_without_one_of_its_fields_says_which():
    async with connected() as (reader, _writer, _right):
        del reader._exception
        with pytest.raises(AttributeError, match="_exception"):
            await reader.read(1)
        reader._exception = None


@on_every_loop
async def test_a_read_that_is_given_up_lets_others_read():
    async with connected() as (reader, _writer, right):
        given_up = reader.read(1)
        given_up.send(None)
        assert reader._waiter is not None
        given_up.close()
        assert reader._waiter is None

        dropped = reader.read(1)
        dropped.send(None)
        del dropped
        assert reader._waiter is None
        right.send(b"x")
        assert b"x" == await reader.read(1)


@on_every_loop
async def test_a_read_that_is_never_awaited_warns():
    async with connected() as (reader, _writer, _right):
        with pytest.warns(RuntimeWarning, match=r"coroutine 'StreamReader\.read' was never awaited"):
            reader.read(1)


@on_loop
async def test_the_doubles_go_with_the_connection():
    """Else a reader would live until the next garbage collection."""
    async with connected() as (reader, writer, right):
        right.send(b"x")
        assert b"x" == await reader.read(1)
        assert "read" in vars(reader)
        assert "_drain_helper" in vars(writer._protocol)
        protocol = writer._protocol
    assert "read" not in vars(reader)
    assert "_drain_helper" not in vars(protocol)
    assert b"" == await reader.read(1)


@on_loop
async def test_a_class_that_somebody_patched_is_left_as_it_is(monkeypatch):
    fed = []
    feed_data = asyncio.StreamReader.feed_data
    monkeypatch.setattr(asyncio.StreamReader, "feed_data", lambda self, data: (fed.append(data), feed_data(self, data)))
    async with connected() as (reader, _writer, right):
        right.send(b"seen")
        assert b"seen" == await reader.read(10)
        assert "read" not in vars(reader)
    assert [b"seen"] == fed


@on_loop
async def test_a_loop_with_futures_of_its_own():
    """`create_future` of a subclass, or set by somebody, makes the futures that reads wait for."""
    made = []
    loop = asyncio.get_running_loop()

    def create_future() -> asyncio.Future[Any]:
        made.append(asyncio.Future(loop=loop))
        return made[-1]

    loop.create_future = create_future
    async with connected() as (reader, _writer, right):
        made.clear()
        waiting = asyncio.create_task(reader.read(10))
        await asyncio.sleep(0)
        right.send(b"x")
        assert b"x" == await waiting
        assert 1 == len(made)
    del loop.create_future


def test_a_loop_in_debug_mode_has_asyncios_own():
    async def main() -> None:
        async with connected() as (reader, _writer, right):
            right.send(b"x")
            assert b"x" == await reader.read(1)
            assert "read" not in vars(reader)

    with asyncio.Runner(debug=True, loop_factory=gs.new_event_loop) as runner:
        runner.run(main())


def test_the_garbage_collector_sees_what_is_shared():
    """Otherwise the extension stays behind when an interpreter ends."""
    shared = [thing for thing in gc.get_referents(_core) if type(thing).__name__ == "Done"]

    assert [type(thing) for thing in shared] == [gc.get_referents(thing)[0] for thing in shared] != []
