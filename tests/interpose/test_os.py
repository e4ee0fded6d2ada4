# SPDX-License-Identifier: Apache-2.0
"""os.read, os.write and their kin, and waiting for child processes, on virtual threads."""

import contextlib
import errno
import os
import pty
import signal
import socket
import subprocess
import sys
import tty
from os import read as bound_early

import gossamer as gs
import pytest
from waits import assert_is_cancelled, assert_parks, error_of, fill, on_os_thread, pipe, pipe_ends, settle, virtually

__all__ = ["pipe_ends"]


def read_into(fd):
    buffer = bytearray(10)
    return bytes(buffer[: os.readv(fd, [buffer])])


READS = [pytest.param(lambda fd: os.read(fd, 10), id="read"), pytest.param(read_into, id="readv")]
WRITES = [
    pytest.param(os.write, id="write"),
    pytest.param(lambda fd, data: os.writev(fd, [b"", data, b""]), id="writev"),
]


# ---- reading ----


@pytest.mark.parametrize("read", READS)
@virtually
def test_read_parks_until_there_is_data(read):
    with pipe() as (reader, writer):
        assert b"abc" == assert_parks(lambda: read(reader), lambda: os.write(writer, b"abc"))


@pytest.mark.parametrize("read", READS)
@virtually
def test_read_is_cancelled_at_the_park_and_loses_nothing(read):
    with pipe() as (reader, writer):
        assert_is_cancelled(lambda: read(reader))

        os.write(writer, b"abc")

        assert b"abc" == read(reader)


@pytest.mark.parametrize("read", READS)
@virtually
def test_read_parks_until_the_end_of_the_file(read):
    with pipe() as (reader, writer):
        assert b"" == assert_parks(lambda: read(reader), lambda: os.close(writer))


@pytest.mark.parametrize("end", ["close", "closerange", "dup2"])
@pytest.mark.parametrize("read", READS)
@virtually
def test_parked_reader_gets_ebadf_when_its_descriptor_goes(read, end):
    ends = {
        "close": os.close,
        "closerange": lambda fd: os.closerange(fd, fd + 1),
        "dup2": lambda fd: os.dup2(other_reader, fd),
    }
    with pipe() as (reader, _writer), pipe() as (other_reader, other_writer):
        os.write(other_writer, b"of another file")

        def wait():
            with pytest.raises(OSError, match="Bad file descriptor") as caught:
                read(reader)
            return caught.value.errno

        assert errno.EBADF == assert_parks(wait, lambda: ends[end](reader))


@virtually
def test_dup2_to_itself_wakes_nobody():
    with pipe() as (reader, writer):

        def wake():
            os.dup2(reader, reader)
            settle()
            os.write(writer, b"x")

        assert b"x" == assert_parks(lambda: os.read(reader, 1), wake)


def test_name_and_descriptor_from_before_the_start_park(pipe_ends):
    reader, writer = pipe_ends

    @virtually
    def test():
        assert b"x" == assert_parks(lambda: bound_early(reader, 1), lambda: os.write(writer, b"x"))

    test()


@virtually
def test_every_reader_of_one_pipe_gets_its_byte():
    with pipe() as (reader, writer):
        with gs.scope() as scope:
            tasks = [scope.spawn(os.read, reader, 1) for _ in range(20)]
            settle()
            os.write(writer, bytes(range(20)))

        assert {bytes([value]) for value in range(20)} == {task.result() for task in tasks}


@virtually
def test_os_thread_and_virtual_thread_read_one_pipe():
    with pipe() as (reader, writer):
        on_other = on_os_thread(os.read, reader, 1)
        with gs.scope() as scope:
            task = scope.spawn(os.read, reader, 1)
            settle()
            os.write(writer, b"xx")
            assert b"xx" == task.result() + on_other()


@virtually
def test_read_of_a_terminal_parks_until_a_line_is_there():
    master, slave = pty.openpty()
    try:

        def wake():
            os.write(master, b"a line")
            settle()
            os.write(master, b"\n")

        assert b"a line\n" == assert_parks(lambda: os.read(slave, 100), wake)
    finally:
        os.close(master)
        os.close(slave)


@virtually
def test_eventfd_and_fifo_and_socket_park(tmp_path):
    counter = os.eventfd(0)
    os.mkfifo(tmp_path / "fifo")
    fifo = os.open(tmp_path / "fifo", os.O_RDWR)
    left, right = socket.socketpair()
    try:
        assert (3).to_bytes(8, sys.byteorder) == assert_parks(
            lambda: os.read(counter, 8), lambda: os.eventfd_write(counter, 3)
        )
        assert b"x" == assert_parks(lambda: os.read(fifo, 10), lambda: os.write(fifo, b"x"))
        assert b"y" == assert_parks(lambda: os.read(left.fileno(), 10), lambda: right.send(b"y"))
    finally:
        os.close(counter)
        os.close(fifo)
        left.close()
        right.close()


@virtually
def test_non_blocking_descriptor_says_so():
    with pipe() as (reader, writer):
        os.set_blocking(reader, False)
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
        fill(writer)
        os.set_blocking(writer, False)
        with pytest.raises(BlockingIOError):
            os.write(writer, b"x")


@virtually
def test_waiting_leaves_the_blocking_mode_alone():
    with pipe() as (reader, writer):

        def wake():
            assert os.get_blocking(reader)
            assert os.get_blocking(writer)
            os.write(writer, b"x")

        assert_parks(lambda: os.read(reader, 1), wake)
        assert os.get_blocking(reader)


@virtually
def test_regular_file_is_read_and_written_whole(tmp_path):
    data = os.urandom(3_000_000)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        assert len(data) == os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        assert data == os.read(fd, len(data) + 1)
        assert b"" == os.read(fd, 1)
    finally:
        os.close(fd)


BAD_CALLS = [
    pytest.param(lambda: os.read(999_999, 1), id="read, no such descriptor"),
    pytest.param(lambda: os.read(-1, 1), id="read, negative"),
    pytest.param(lambda: os.read(0, -1), id="read, negative size"),
    pytest.param(lambda: os.read("0", 1), id="read, a string"),
    pytest.param(lambda: os.read(1 << 40, 1), id="read, a huge descriptor"),
    pytest.param(lambda: os.read(0, 1 << 80), id="read, a huge size"),
    pytest.param(lambda: os.write(999_999, b"x"), id="write, no such descriptor"),
    pytest.param(lambda: os.write(1, "text"), id="write, a string"),
    pytest.param(lambda: os.writev(1, "text"), id="writev, a string"),
    pytest.param(lambda: os.readv(0, [b"read-only"]), id="readv, read-only"),
    pytest.param(lambda: os.close(999_999), id="close, no such descriptor"),
    pytest.param(lambda: os.close("x"), id="close, a string"),
    pytest.param(lambda: os.dup2(999_999, 999_998), id="dup2, no such descriptor"),
    pytest.param(lambda: os.waitpid(1, 0), id="waitpid, no child"),
    pytest.param(lambda: os.waitpid("1", 0), id="waitpid, a string"),
    pytest.param(lambda: os.waitpid(1 << 80, 0), id="waitpid, a huge pid"),
    pytest.param(lambda: os.wait(), id="wait, no child"),
    pytest.param(lambda: os.wait3(0), id="wait3, no child"),
    pytest.param(lambda: os.wait4(1, 0), id="wait4, no child"),
    pytest.param(lambda: os.waitid(os.P_PID, 1, os.WEXITED), id="waitid, no child"),
    pytest.param(lambda: os.waitid(os.P_ALL, 0, 0), id="waitid, no options"),
]


@pytest.mark.parametrize("call", BAD_CALLS)
def test_refused_arguments_are_refused_in_the_same_words(call):
    plain = error_of(call)
    virtual = []

    virtually(lambda: virtual.append(error_of(call)))()

    assert plain is not None
    assert [plain] == virtual


# ---- writing ----


def drain(fd, size):
    data = bytearray()
    while len(data) < size:
        data += os.read(fd, 65536)
    return bytes(data)


@pytest.mark.parametrize("write", WRITES)
@virtually
def test_write_of_more_than_fits_parks_and_is_whole(write):
    data = os.urandom(1_000_000)
    with pipe() as (reader, writer):
        got = []

        size = assert_parks(lambda: write(writer, data), lambda: got.append(drain(reader, len(data))))

        assert (len(data), [data]) == (size, got)


@pytest.mark.parametrize("write", WRITES)
@virtually
def test_write_that_is_cancelled_before_a_byte_went_out_raises(write):
    with pipe() as (reader, writer):
        size = fill(writer)
        assert_is_cancelled(lambda: write(writer, b"never"))

        assert bytes(size) == os.read(reader, size + 100)


@virtually
def test_write_that_is_cancelled_half_way_returns_what_went_out():
    with pipe() as (reader, writer):
        with gs.scope() as scope:
            written = []
            task = scope.spawn(lambda: written.append(os.write(writer, bytes(1_000_000))))
            settle()
            task.cancel()
            settle()
        os.close(writer)

        assert 0 < written[0] < 1_000_000
        assert bytes(written[0]) == os.read(reader, 1_000_000)


@virtually
def test_write_to_a_pipe_without_reader_raises():
    with pipe() as (reader, writer):
        fill(writer)

        def wait():
            with pytest.raises(BrokenPipeError):
                os.write(writer, b"x")

        assert_parks(wait, lambda: os.close(reader))


@virtually
def test_write_to_a_terminal_parks_while_nobody_reads():
    master, slave = pty.openpty()
    tty.setraw(slave)
    try:
        got = []

        size = assert_parks(lambda: os.write(slave, bytes(200_000)), lambda: got.append(drain(master, 200_000)))

        assert (200_000, [bytes(200_000)]) == (size, got)
    finally:
        os.close(master)
        os.close(slave)


# ---- sendfile ----


@virtually
def test_sendfile_to_a_blocking_socket_parks(tmp_path):
    data = os.urandom(5_000_000)
    (tmp_path / "file").write_bytes(data)
    left, right = socket.socketpair()
    got = bytearray()

    def receive():
        while len(got) < len(data):
            got.extend(right.recv(65536))

    with left, right, open(tmp_path / "file", "rb") as file:
        assert len(data) == assert_parks(lambda: left.sendfile(file), receive)
        assert data == got
        assert left.getblocking() and os.get_blocking(left.fileno())


@virtually
def test_sendfile_is_cancelled_at_the_park(tmp_path):
    (tmp_path / "file").write_bytes(bytes(5_000_000))
    left, right = socket.socketpair()
    with left, right, open(tmp_path / "file", "rb") as file:
        assert_is_cancelled(lambda: left.sendfile(file))


@virtually
def test_sendfile_without_offset_moves_the_files_position(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    left, right = socket.socketpair()
    with left, right, open(tmp_path / "file", "rb", buffering=0) as file:
        file.seek(2)

        assert 5 == os.sendfile(left.fileno(), file.fileno(), None, 5)
        assert (b"23456", 7) == (right.recv(10), file.tell())
        assert 2 == os.sendfile(left.fileno(), file.fileno(), 0, 2)
        assert (b"01", 7) == (right.recv(10), file.tell())
        assert 0 == os.sendfile(left.fileno(), file.fileno(), 10, 5)


# ---- children ----


@contextlib.contextmanager
def child():
    """A child that ends with code 7 when its standard input ends."""
    with pipe() as (reader, writer):
        code = "import os, sys; os.read(0, 1); os._exit(7)"
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-S", "-c", code],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0), (os.POSIX_SPAWN_CLOSE, writer)],
        )
        try:
            yield pid, lambda: os.write(writer, b"x")
        finally:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


CHILD_WAITS = [
    pytest.param(lambda pid: os.waitpid(pid, 0), id="waitpid"),
    pytest.param(lambda pid: os.waitpid(-1, 0), id="waitpid, any"),
    pytest.param(lambda pid: os.waitpid(0, 0), id="waitpid, own group"),
    pytest.param(lambda pid: os.waitpid(pid, os.WUNTRACED), id="waitpid, also stopped"),
    pytest.param(lambda pid: os.wait(), id="wait"),
    pytest.param(lambda pid: os.wait3(0)[:2], id="wait3"),
    pytest.param(lambda pid: os.wait4(pid, 0)[:2], id="wait4"),
    pytest.param(lambda pid: os.wait4(pid=pid, options=0)[:2], id="wait4, by keyword"),
]


@pytest.mark.parametrize("wait", CHILD_WAITS)
@virtually
def test_waiting_for_a_child_parks(wait):
    with child() as (pid, end):
        found, status = assert_parks(lambda: wait(pid), end)

        assert (pid, 7) == (found, os.waitstatus_to_exitcode(status))


@pytest.mark.parametrize("wait", CHILD_WAITS)
@virtually
def test_cancelled_wait_for_a_child_leaves_its_status(wait):
    with child() as (pid, end):
        assert_is_cancelled(lambda: wait(pid))
        end()

        assert 7 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@virtually
def test_waitid_parks():
    with child() as (pid, end):
        found = assert_parks(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT), end)
        assert (pid, 7) == (found.si_pid, found.si_status)

        descriptor = os.pidfd_open(pid)
        assert 7 == os.waitid(os.P_PIDFD, descriptor, os.WEXITED).si_status
        os.close(descriptor)


@virtually
def test_wait_for_a_stopped_child_parks():
    with child() as (pid, _end):
        found, status = assert_parks(lambda: os.waitpid(pid, os.WUNTRACED), lambda: os.kill(pid, signal.SIGSTOP))

        assert pid == found and os.WIFSTOPPED(status)
        os.kill(pid, signal.SIGCONT)


@virtually
def test_wnohang_does_not_park():
    with child() as (pid, _end):
        assert (0, 0) == os.waitpid(pid, os.WNOHANG)
        assert None is os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


@virtually
def test_popen_wait_and_communicate_park():
    script = "import sys; sys.stdout.write(sys.stdin.read().upper())"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert 0 == assert_parks(process.wait, process.stdin.close)
    process.stdout.close()

    with gs.scope() as scope:
        tasks = [
            scope.spawn(
                subprocess.run, [sys.executable, "-c", script], input="a" * 300_000, capture_output=True, text=True
            )
            for _ in range(3)
        ]
    assert ["A" * 300_000] * 3 == [task.result().stdout for task in tasks]
