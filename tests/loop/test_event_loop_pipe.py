# SPDX-License-Identifier: Apache-2.0
"""The transports of pipes, and what subprocesses do with them."""

import asyncio
import contextlib
import logging
import os
import pty
import socket
import sys
import tempfile
import tty
from pathlib import Path

import pytest
from loops import collect_errors, forget, on_loop
from protocols import Recorder


@contextlib.contextmanager
def pipe_files():
    """The two ends of a pipe, as files."""
    read_end, write_end = os.pipe()
    with open(read_end, "rb", buffering=0) as reader, open(write_end, "wb", buffering=0) as writer:
        yield reader, writer


@contextlib.contextmanager
def socket_files():
    left, right = socket.socketpair()
    with left, right:
        yield left, right


@contextlib.contextmanager
def terminal_files():
    """The two ends of a pseudo-terminal; what is written to the second arrives at the first unchanged."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    with open(master, "rb", buffering=0) as reader, open(slave, "wb", buffering=0) as writer:
        yield reader, writer


@contextlib.contextmanager
def fifo_files():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fifo")
        os.mkfifo(path)
        read_end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(read_end, "rb", buffering=0) as reader, open(path, "wb", buffering=0) as writer:
            yield reader, writer


ALL_KINDS = pytest.mark.parametrize("files", [pipe_files, socket_files, terminal_files, fifo_files])


@contextlib.asynccontextmanager
async def reading(file, protocol=Recorder):
    transport, made = await asyncio.get_running_loop().connect_read_pipe(protocol, file)
    try:
        yield transport, made
    finally:
        transport.close()
        await made.lost()


@contextlib.asynccontextmanager
async def writing(file, protocol=Recorder):
    transport, made = await asyncio.get_running_loop().connect_write_pipe(protocol, file)
    try:
        yield transport, made
    finally:
        transport.abort()
        await made.lost()


@ALL_KINDS
@on_loop
async def test_what_is_written_arrives(files):
    message = bytes(range(256)) * 1000
    with files() as (reader, writer):
        async with reading(reader) as (incoming, at_reader), writing(writer) as (outgoing, _at_writer):
            assert isinstance(incoming, asyncio.ReadTransport)
            assert isinstance(outgoing, asyncio.WriteTransport)
            assert f"<ReadPipeTransport fd={reader.fileno()} polling>" == repr(incoming)
            assert f"<WritePipeTransport fd={writer.fileno()} idle bufsize=0>" == repr(outgoing)
            assert (reader, writer) == (incoming.get_extra_info("pipe"), outgoing.get_extra_info("pipe"))
            outgoing.write(message)
            outgoing.writelines([b"the ", bytearray(b"end")])
            outgoing.write(data=b"")
            await at_reader.until(lambda: len(at_reader.received) == len(message) + 7)

            assert message + b"the end" == at_reader.received


@pytest.mark.parametrize("files", [pipe_files, socket_files, fifo_files])
@on_loop
async def test_the_writers_end_is_an_eof_after_everything_that_was_written(files):
    message = bytes(200_000)
    with files() as (reader, writer):
        async with reading(reader) as (_incoming, at_reader), writing(writer) as (outgoing, at_writer):
            outgoing.write(message)
            outgoing.write_eof()
            outgoing.write(b"ignored")
            assert outgoing.can_write_eof()
            assert outgoing.is_closing()
            await at_reader.lost()
            await at_writer.lost()

            assert message == at_reader.received
            assert [("eof",), ("lost", None)] == at_reader.calls[-2:]
            assert ("lost", None) == at_writer.calls[-1]
        assert reader.closed if files is not socket_files else reader.fileno() == -1


@on_loop
async def test_the_end_of_a_terminal_ends_the_reader():
    errors = collect_errors()
    with terminal_files() as (reader, writer):
        async with reading(reader) as (_incoming, at_reader):
            writer.write(b"last words")
            writer.close()
            await at_reader.lost()

            assert b"last words" == at_reader.received
            assert OSError is type(at_reader.calls[-1][1])
    assert [] == errors


@pytest.mark.parametrize("files", [pipe_files, socket_files, fifo_files])
@on_loop
async def test_the_readers_end_is_told_to_an_idle_writer(files):
    with files() as (reader, writer):
        async with writing(writer) as (outgoing, at_writer):
            reader.close()
            await at_writer.lost()

            assert [("lost", None)] == at_writer.calls
            assert outgoing.is_closing()


@on_loop
async def test_the_readers_end_breaks_the_pipe_of_a_writer_with_something_to_write():
    with pipe_files() as (reader, writer):
        async with writing(writer) as (outgoing, at_writer):
            outgoing.write(bytes(200_000))
            reader.close()
            await at_writer.lost()

            assert BrokenPipeError is type(at_writer.calls[-1][1])


@on_loop
async def test_a_write_to_a_pipe_that_nobody_reads_ends_the_transport(caplog):
    caplog.clear()
    with pipe_files() as (reader, writer):
        async with writing(writer) as (outgoing, at_writer):
            reader.close()
            with caplog.at_level(logging.WARNING):
                for _ in range(6):
                    outgoing.write(b"x")
            await at_writer.lost()

            assert BrokenPipeError is type(at_writer.calls[-1][1])
    assert ["pipe closed by peer or os.write(pipe, data) raised exception."] == [
        record.message for record in caplog.records
    ]


@on_loop
async def test_flow_control_pauses_the_writer_and_the_reader():
    loop = asyncio.get_running_loop()
    with pipe_files() as (reader, writer):
        async with reading(reader) as (incoming, at_reader), writing(writer) as (outgoing, at_writer):
            incoming.pause_reading()
            assert not incoming.is_reading()
            outgoing.set_write_buffer_limits(high=10)
            outgoing.write(bytes(200_000))
            assert [("pause",)] == at_writer.calls
            for _ in range(40):
                await asyncio.sleep(0)
            assert b"" == at_reader.received
            incoming.resume_reading()
            await at_reader.until(lambda: len(at_reader.received) == 200_000)
            await at_writer.until(lambda: at_writer.calls[-1] == ("resume",))

            assert 0 == outgoing.get_write_buffer_size()
    assert loop.is_running()


@on_loop
async def test_aborting_forgets_what_was_not_written():
    with pipe_files() as (reader, writer):
        async with writing(writer) as (outgoing, at_writer):
            outgoing.write(bytes(200_000))
            outgoing.abort()
            outgoing.abort()
            assert 0 == outgoing.get_write_buffer_size()
            await at_writer.lost()

            assert 1 == sum(call[0] == "lost" for call in at_writer.calls)
            assert writer.closed
        assert not reader.closed


@on_loop
async def test_what_data_received_raises_is_reported_and_the_pipe_stays():
    class Failing(Recorder):
        def data_received(self, data):
            super().data_received(data)
            if data == b"bad":
                raise LookupError("failed")

    errors = collect_errors()
    with pipe_files() as (reader, writer):
        async with reading(reader, Failing) as (_incoming, at_reader):
            writer.write(b"bad")
            await at_reader.until(lambda: errors)
            writer.write(b"good")
            await at_reader.until(lambda: at_reader.received == b"badgood")

    assert [LookupError] == [type(error["exception"]) for error in errors]


@on_loop
async def test_a_protocol_may_close_in_data_received():
    class Closer(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.transport.close()

    with pipe_files() as (reader, writer):
        async with reading(reader, Closer) as (_incoming, at_reader):
            writer.write(b"x")
            await at_reader.lost()

            assert [("data", b"x"), ("lost", None)] == at_reader.calls


@on_loop
async def test_a_writer_refuses_to_read_as_that_of_asyncio_does():
    with pipe_files() as (_reader, writer):
        async with writing(writer) as (transport, _protocol):
            with pytest.raises(NotImplementedError):
                transport.pause_reading()


@on_loop
async def test_a_file_is_no_pipe():
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryFile() as file:
        with pytest.raises(ValueError, match="Pipe transport is for pipes/sockets only"):
            await loop.connect_read_pipe(Recorder, file)
        with pytest.raises(ValueError, match="only for pipes, sockets and character devices"):
            await loop.connect_write_pipe(Recorder, file)

        assert not file.closed


@on_loop
async def test_what_is_written_to_the_null_device_is_gone():
    with open(os.devnull, "wb", buffering=0) as file:
        async with writing(file) as (outgoing, at_writer):
            outgoing.write(b"x")
            outgoing.close()
            await at_writer.lost()

    assert [("lost", None)] == at_writer.calls


@on_loop
async def test_a_forgotten_writer_is_closed_with_a_warning_once_nobody_tells_of_it():
    master, slave = pty.openpty()
    with open(master, "rb", buffering=0), open(slave, "wb", buffering=0) as file:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_write_pipe(asyncio.Protocol, file)
        del protocol
        transports = [transport]
        del transport

        with pytest.warns(ResourceWarning, match="unclosed transport"):
            forget(transports)
        assert file.closed


@on_loop
async def test_a_subprocess_talks_through_its_pipes():
    program = """if True:
        import sys
        data = sys.stdin.buffer.read()
        sys.stdout.buffer.write(data.upper())
        print(len(data), file=sys.stderr)
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-S",
        "-c",
        program,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate(b"hello " * 50_000)

    assert (b"HELLO " * 50_000, b"300000", 0) == (output, errors.strip(), process.returncode)
