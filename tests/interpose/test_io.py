# SPDX-License-Identifier: Apache-2.0
"""FileIO and the buffered files on pipes, sockets and terminals, on virtual threads."""

import errno
import io
import os
import pty
import socket
import subprocess
import sys

import gossamer as gs
import pytest
from waits import assert_is_cancelled, assert_parks, error_of, fill, on_os_thread, pipe, settle, virtually, waiting_for

IN_USE = "a buffered file in use"


def run_program(code, **options):
    """Run a program under `gossamer run`."""
    return subprocess.run(
        [sys.executable, "-m", "gossamer", "run", "-c", code], capture_output=True, text=True, timeout=60, **options
    )


# ---- FileIO ----


def readinto(file):
    buffer = bytearray(10)
    return bytes(buffer[: file.readinto(buffer)])


RAW_READS = [pytest.param(lambda file: file.read(10), id="read"), pytest.param(readinto, id="readinto")]


@pytest.mark.parametrize("read", RAW_READS)
@virtually
def test_raw_read_parks(read):
    with pipe() as (reader, writer), open(reader, "rb", buffering=0, closefd=False) as file:
        assert b"abc" == assert_parks(lambda: read(file), lambda: os.write(writer, b"abc"))


@pytest.mark.parametrize("read", [*RAW_READS, pytest.param(lambda file: file.readall(), id="readall")])
@virtually
def test_raw_read_is_cancelled_at_the_park(read):
    with pipe() as (reader, writer), open(reader, "rb", buffering=0, closefd=False) as file:
        assert_is_cancelled(lambda: read(file))

        os.write(writer, b"abc")
        os.close(writer)
        assert b"abc" == read(file)


@pytest.mark.parametrize("read", [lambda file: file.readall(), lambda file: file.read(), lambda file: file.read(-1)])
@virtually
def test_raw_read_to_the_end_parks_until_the_end(read):
    with pipe() as (reader, writer), open(reader, "rb", buffering=0, closefd=False) as file:

        def wake():
            os.write(writer, bytes(30_000))
            settle()
            os.write(writer, bytes(30_000))
            os.close(writer)

        assert bytes(60_000) == assert_parks(lambda: read(file), wake)


@virtually
def test_raw_write_of_more_than_fits_parks_and_is_whole():
    with pipe() as (reader, writer), open(writer, "wb", buffering=0, closefd=False) as file:
        got = bytearray()

        def drain():
            while len(got) < 500_000:
                got.extend(os.read(reader, 65536))

        assert 500_000 == assert_parks(lambda: file.write(bytes(500_000)), drain)
        assert bytes(500_000) == got


@pytest.mark.parametrize("read", RAW_READS)
@virtually
def test_closing_a_raw_file_ends_its_reader_with_ebadf(read):
    with pipe() as (reader, _writer):
        file = open(os.dup(reader), "rb", buffering=0)

        def wait():
            with pytest.raises(OSError, match="Bad file descriptor") as caught:
                read(file)
            return caught.value.errno

        assert errno.EBADF == assert_parks(wait, file.close)


@virtually
def test_non_blocking_raw_file_returns_none():
    with pipe() as (reader, writer):
        os.set_blocking(reader, False)
        with open(reader, "rb", buffering=0, closefd=False) as file:
            assert (None, None, None) == (file.read(1), file.readinto(bytearray(1)), file.readall())
            os.write(writer, b"some")
            assert b"some" == file.readall()


@virtually
def test_regular_file_reads_as_always(tmp_path):
    data = os.urandom(1_000_000)
    (tmp_path / "file").write_bytes(data)
    with open(tmp_path / "file", "rb", buffering=0) as file:
        assert data[:10] == file.read(10)
        assert data[10:] == file.readall()


BAD_CALLS = [
    pytest.param(lambda file: file.write(b"x"), id="write to a reader"),
    pytest.param(lambda file: file.write("text"), id="write a string"),
    pytest.param(lambda file: file.read("1"), id="read a string"),
    pytest.param(lambda file: file.read(1 << 80), id="read a huge size"),
    pytest.param(lambda file: file.read(1, 2), id="read with too many"),
    pytest.param(lambda file: file.readinto(b"read-only"), id="readinto read-only"),
    pytest.param(lambda file: file.readinto(), id="readinto nothing"),
    pytest.param(lambda file: (file.close(), file.read(1)), id="read closed"),
    pytest.param(lambda file: (file.close(), file.readall()), id="readall closed"),
]


@pytest.mark.parametrize("buffering", [0, -1])
@pytest.mark.parametrize("call", BAD_CALLS)
def test_refused_calls_are_refused_in_the_same_words(call, buffering):
    if buffering and call is BAD_CALLS[-1].values[0]:
        call = lambda file: (file.close(), file.read())  # noqa: E731  (a buffered file has no readall)

    def attempt():
        with pipe() as (reader, writer):
            os.write(writer, b"abc")
            with open(reader, "rb", buffering=buffering, closefd=False) as file:
                return error_of(call, file)

    virtual = []
    virtually(lambda: virtual.append(attempt()))()

    assert [attempt()] == virtual
    assert virtual[0] is not None


# ---- buffered files ----


def buffered_readinto(file):
    buffer = bytearray(3)
    return bytes(buffer[: file.readinto(buffer)])


def buffered_readinto1(file):
    buffer = bytearray(3)
    return bytes(buffer[: file.readinto1(buffer)])


BUFFERED_READS = [
    pytest.param(lambda file: file.read(3), id="read"),
    pytest.param(lambda file: file.read1(3), id="read1"),
    pytest.param(buffered_readinto, id="readinto"),
    pytest.param(buffered_readinto1, id="readinto1"),
    pytest.param(lambda file: file.readline(), id="readline"),
    pytest.param(next, id="next"),
    pytest.param(lambda file: file.__next__(), id="__next__"),
]


class Subclass(io.BufferedReader):
    """Made before Gossamer is installed."""


KINDS = [pytest.param(io.BufferedReader, id="BufferedReader"), pytest.param(Subclass, id="Subclass")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", BUFFERED_READS)
@virtually
def test_readers_of_one_buffered_file_take_turns(read, kind):
    """The C lock inside is owned by an OS thread, which two virtual threads share: it took the second for the first."""
    with pipe() as (reader, writer), kind(io.FileIO(reader, closefd=False)) as file:
        with gs.scope() as scope:
            tasks = [scope.spawn(read, file) for _ in range(3)]
            settle()
            assert ["FileIO.readinto", IN_USE, IN_USE] == sorted(waiting_for())
            for line in (b"aa\n", b"bb\n", b"cc\n"):
                os.write(writer, line)

        assert [b"aa\n", b"bb\n", b"cc\n"] == sorted(task.result() for task in tasks)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", BUFFERED_READS)
@virtually
def test_buffered_read_is_cancelled_at_the_park_and_frees_the_file(read, kind):
    with pipe() as (reader, writer), kind(io.FileIO(reader, closefd=False)) as file:
        assert_is_cancelled(lambda: read(file))

        os.write(writer, b"aa\n")

        assert b"aa\n" == read(file)


@virtually
def test_who_waits_for_a_file_in_use_is_cancelled_at_the_park():
    with pipe() as (reader, writer), open(reader, "rb", closefd=False) as file, gs.scope() as scope:
        first = scope.spawn(file.readline)
        settle()
        second = scope.spawn(file.readline)
        settle()
        second.cancel()
        settle()
        assert second.done() and not first.done()

        os.write(writer, b"line\n")
        assert b"line\n" == first.result()


@pytest.mark.parametrize("call", [lambda file: file.peek(1), lambda file: file.close()], ids=["peek", "close"])
@virtually
def test_peek_and_close_wait_their_turn(call):
    with pipe() as (reader, writer):
        file = open(reader, "rb", closefd=False)
        with gs.scope() as scope:
            first = scope.spawn(file.readline)
            settle()
            second = scope.spawn(call, file)
            settle()
            assert ["FileIO.readinto", IN_USE] == sorted(waiting_for())
            os.write(writer, b"line\nmore")
            assert b"line\n" == first.result()
            second.result()


@virtually
def test_writers_of_one_buffered_file_take_turns():
    with pipe() as (reader, writer), open(writer, "wb", closefd=False) as file:
        size = fill(writer)

        def write(letter):
            file.write(letter * 20_000)
            file.flush()

        with gs.scope() as scope:
            for letter in (b"a", b"b", b"c"):
                scope.spawn(write, letter)
            settle()
            assert ["FileIO.write", IN_USE, IN_USE] == sorted(waiting_for())
            got = bytearray()
            while len(got) < size + 60_000:
                got += os.read(reader, 65536)

        assert {b"a": 20_000, b"b": 20_000, b"c": 20_000} == {x: got.count(x) for x in (b"a", b"b", b"c")}


@virtually
def test_cancelled_flush_keeps_what_it_has_not_written():
    with pipe() as (reader, writer), open(writer, "wb", closefd=False) as file:
        size = fill(writer)
        file.write(b"kept")
        assert_is_cancelled(file.flush)
        os.read(reader, size)

        file.flush()

        assert b"kept" == os.read(reader, 10)


@virtually
def test_real_reentrance_is_still_an_error():
    class Raw(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            gs.checkpoint()
            return file.readinto(buffer)

    file = io.BufferedReader(Raw())
    for read in (lambda: file.read(1), lambda: next(file)):
        with pytest.raises(RuntimeError, match="reentrant call inside"):
            read()


@virtually
def test_raw_file_in_python_that_parks_takes_turns_too():
    left, right = socket.socketpair()
    with left, right, left.makefile("rb") as file:
        with gs.scope() as scope:
            tasks = [scope.spawn(file.readline) for _ in range(3)]
            settle()
            assert sorted(["socket.recv_into", IN_USE, IN_USE]) == sorted(waiting_for())
            right.sendall(b"a\nb\nc\n")

        assert [b"a\n", b"b\n", b"c\n"] == sorted(task.result() for task in tasks)


@virtually
def test_os_thread_in_a_buffered_file_parks_the_virtual_thread():
    with pipe() as (reader, writer), open(reader, "rb", closefd=False) as file, pipe() as (started, start):

        class Raw(io.RawIOBase):
            def readable(self):
                return True

            def readinto(self, buffer):
                os.write(start, b"x")
                buffer[:5] = os.read(reader, 5)
                return 5

        file = io.BufferedReader(Raw(), 5)
        on_other = on_os_thread(file.read, 5)
        os.read(started, 1)  # it is inside
        with gs.scope() as scope:
            task = scope.spawn(file.read, 5)
            settle()
            assert [IN_USE] == waiting_for()
            os.write(writer, b"aaaaabbbbb")
            assert [b"aaaaa", b"bbbbb"] == sorted([on_other(), task.result()])


@virtually
def test_pair_of_buffered_files_reads_and_writes_at_once():
    with pipe() as (reader, writer):
        pair = io.BufferedRWPair(io.FileIO(reader, closefd=False), io.FileIO(writer, "w", closefd=False))

        def wake():
            pair.write(b"abc")
            pair.flush()

        assert b"abc" == assert_parks(lambda: pair.read(3), wake)
        pair.close()


@virtually
def test_random_access_file_works_as_always(tmp_path):
    with open(tmp_path / "file", "w+b") as file:
        file.write(b"line 1\nline 2\n")
        file.seek(0)
        assert [b"line 1\n", b"line 2\n"] == list(file)
        file.truncate(3)
        file.seek(0)
        assert b"lin" == file.read()


@virtually
def test_text_file_on_a_pipe_parks():
    with pipe() as (reader, writer), open(reader, encoding="utf-8", closefd=False) as file:
        assert "läuft\n" == assert_parks(file.readline, lambda: os.write(writer, "läuft\n".encode()))
        assert "zwei\n" == assert_parks(lambda: next(file), lambda: os.write(writer, b"zwei\n"))


def test_standard_input_on_a_pipe_parks_only_its_virtual_thread():
    code = """
import os, sys, threading
def feed():
    os.write(writer, b"first\\nsecond\\n")
reader, writer = os.pipe()
os.dup2(reader, 0)
thread = threading.Thread(target=feed)
thread.start()      # runs once the main virtual thread parks in input()
print(input("? "), sys.stdin.readline().strip())
"""

    result = run_program(code)

    assert (0, "? first second\n", "") == (result.returncode, result.stdout, result.stderr)


def test_input_from_a_terminal_parks_only_its_virtual_thread():
    master, slave = pty.openpty()
    code = f"""
import os, threading
thread = threading.Thread(target=os.write, args=({master}, b"typed\\n"))
thread.start()      # runs once the main virtual thread parks in input()
print(repr(input("? ")))
"""
    process = subprocess.Popen(
        [sys.executable, "-m", "gossamer", "run", "-c", code],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        pass_fds=[master],
    )
    os.close(slave)
    try:
        shown = b""
        while b"'typed'" not in shown:
            shown += os.read(master, 1000)
        assert 0 == process.wait(60)
        assert b"? " in shown
    finally:
        process.kill()
        os.close(master)


def test_print_to_a_full_pipe_parks_only_its_virtual_thread():
    code = """
import sys, threading
def hog():
    print("x" * 300_000, flush=True)
threads = [threading.Thread(target=hog) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""

    result = run_program(code)

    assert (0, "") == (result.returncode, result.stderr)
    assert 900_000 == result.stdout.count("x")
