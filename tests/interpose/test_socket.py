# SPDX-License-Identifier: Apache-2.0
"""Sockets on virtual threads."""

import array
import contextlib
import errno
import http.server
import os
import socket
import threading
import urllib.request

import gossamer as gs
import pytest
from gossamer import _core
from waits import assert_is_cancelled, assert_parks, error_of, on_os_thread, settle, virtually, waiting_for


@pytest.fixture
def made_before():
    """A connected pair of TCP sockets, made before Gossamer starts."""
    with tcp_pair() as pair:
        yield pair


@contextlib.contextmanager
def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        right, _address = listener.accept()
        with left, right:
            yield left, right


@contextlib.contextmanager
def unix_pair():
    left, right = socket.socketpair()
    with left, right:
        yield left, right


@contextlib.contextmanager
def udp_pair():
    with socket.socket(type=socket.SOCK_DGRAM) as left, socket.socket(type=socket.SOCK_DGRAM) as right:
        left.bind(("127.0.0.1", 0))
        right.bind(("127.0.0.1", 0))
        left.connect(right.getsockname())
        right.connect(left.getsockname())
        yield left, right


PAIRS = [pytest.param(tcp_pair, id="tcp"), pytest.param(unix_pair, id="unix"), pytest.param(udp_pair, id="udp")]


def recv_into(sock):
    buffer = bytearray(10)
    return bytes(buffer[: sock.recv_into(buffer)])


def recvfrom_into(sock):
    buffer = bytearray(10)
    return bytes(buffer[: sock.recvfrom_into(buffer)[0]])


def recvmsg_into(sock):
    buffer = bytearray(10)
    return bytes(buffer[: sock.recvmsg_into([buffer])[0]])


READS = [
    pytest.param(lambda sock: sock.recv(10), id="recv"),
    pytest.param(recv_into, id="recv_into"),
    pytest.param(lambda sock: sock.recvfrom(10)[0], id="recvfrom"),
    pytest.param(recvfrom_into, id="recvfrom_into"),
    pytest.param(lambda sock: sock.recvmsg(10)[0], id="recvmsg"),
    pytest.param(recvmsg_into, id="recvmsg_into"),
]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("pair", PAIRS)
@virtually
def test_read_parks_until_there_is_data(pair, read):
    with pair() as (left, right):
        assert b"abc" == assert_parks(lambda: read(left), lambda: right.send(b"abc"))


@pytest.mark.parametrize("read", READS)
@virtually
def test_read_is_cancelled_at_the_park_and_loses_nothing(read):
    with tcp_pair() as (left, right):
        assert_is_cancelled(lambda: read(left))

        right.send(b"abc")

        assert b"abc" == read(left)


@pytest.mark.parametrize("read", READS)
@virtually
def test_read_times_out_while_others_run(read):
    with tcp_pair() as (left, _right):
        left.settimeout(0.01)

        assert (TimeoutError, "timed out") == assert_parks(lambda: error_of(read, left), lambda: None)


@pytest.mark.parametrize("read", READS)
@virtually
def test_non_blocking_read_does_not_park(read):
    with tcp_pair() as (left, _right):
        left.setblocking(False)
        before = _core.statistics()["parks"]

        assert BlockingIOError is error_of(read, left)[0]

        assert before == _core.statistics()["parks"]


@pytest.mark.parametrize("read", READS)
@virtually
def test_parked_reader_sees_the_end(read):
    with tcp_pair() as (left, right):
        assert b"" == assert_parks(lambda: read(left), lambda: right.shutdown(socket.SHUT_WR))
        assert b"" == read(left)


@pytest.mark.parametrize("end", [socket.socket.close, socket.socket.detach], ids=["close", "detach"])
@pytest.mark.parametrize("read", READS)
@virtually
def test_parked_reader_gets_ebadf_when_its_socket_goes(read, end):
    with tcp_pair() as (left, _right):

        def wait():
            with pytest.raises(OSError, match="Bad file descriptor") as caught:
                read(left)
            return caught.value.errno

        fd = left.fileno()
        assert errno.EBADF == assert_parks(wait, lambda: end(left))
        if end is socket.socket.detach:
            os.close(fd)


@pytest.mark.parametrize("read", READS)
@virtually
def test_shutdown_wakes_the_parked_reader(read):
    with tcp_pair() as (left, _right):
        assert b"" == assert_parks(lambda: read(left), lambda: left.shutdown(socket.SHUT_RD))


@virtually
def test_peeked_data_stays():
    with tcp_pair() as (left, right):
        assert b"ab" == assert_parks(lambda: left.recv(2, socket.MSG_PEEK), lambda: right.send(b"abc"))
        assert b"abc" == left.recv(10)


@virtually
def test_urgent_data_is_read_beside_the_stream():
    with tcp_pair() as (left, right):
        assert b"x" == assert_parks(lambda: left.recv(10), lambda: right.send(b"x"))  # drained, as far as is known
        right.send(b"!", socket.MSG_OOB)
        right.send(b"abc")

        assert b"!" == left.recv(1, socket.MSG_OOB)
        assert b"abc" == left.recv(10)
        assert (OSError, "[Errno 22] Invalid argument") == error_of(left.recv, 1, socket.MSG_OOB)
        assert b"def" == assert_parks(lambda: left.recv(10), lambda: right.send(b"def"))


@virtually
def test_waitall_waits_for_all():
    with tcp_pair() as (left, right):

        def wake():
            right.send(b"ab")
            settle()
            right.send(b"cd")

        assert b"abcd" == assert_parks(lambda: left.recv(4, socket.MSG_WAITALL), wake)
        buffer = bytearray(4)
        assert 4 == assert_parks(lambda: left.recv_into(buffer, 4, socket.MSG_WAITALL), wake)
        right.send(b"e")
        right.close()
        assert b"e" == left.recv(4, socket.MSG_WAITALL)


NON_WAITING = [
    pytest.param(lambda sock, flags: sock.recv(1, flags), id="recv"),
    pytest.param(lambda sock, flags: sock.recv_into(bytearray(1), 1, flags), id="recv_into"),
    pytest.param(lambda sock, flags: sock.recvfrom(1, flags), id="recvfrom"),
    pytest.param(lambda sock, flags: sock.recvfrom_into(bytearray(1), 1, flags), id="recvfrom_into"),
    pytest.param(lambda sock, flags: sock.recvmsg(1, 0, flags), id="recvmsg"),
    pytest.param(lambda sock, flags: sock.recvmsg_into([bytearray(1)], 0, flags), id="recvmsg_into"),
]


@pytest.mark.parametrize("flags", [socket.MSG_DONTWAIT, socket.MSG_ERRQUEUE], ids=["DONTWAIT", "ERRQUEUE"])
@pytest.mark.parametrize("read", NON_WAITING)
@virtually
def test_read_that_asks_not_to_wait_does_not_wait(read, flags):
    with tcp_pair() as (left, _right):
        assert BlockingIOError is error_of(read, left, flags)[0]


@pytest.mark.parametrize(
    "send",
    [
        pytest.param(lambda sock, data: sock.send(data, socket.MSG_DONTWAIT), id="send"),
        pytest.param(lambda sock, data: sock.sendall(data, socket.MSG_DONTWAIT), id="sendall"),
        pytest.param(lambda sock, data: sock.sendmsg([data], [], socket.MSG_DONTWAIT), id="sendmsg"),
    ],
)
@virtually
def test_send_that_asks_not_to_wait_does_not_wait(send):
    with tcp_pair() as (left, _right), pytest.raises(BlockingIOError):
        while True:
            send(left, bytes(65536))


def receive_all(sock, size):
    data = bytearray()
    while len(data) < size:
        data += sock.recv(size - len(data))
    return bytes(data)


# ---- sending ----


@pytest.mark.parametrize("pair", PAIRS[:2])
@virtually
def test_sendall_of_50_megabytes_arrives_whole(pair):
    data = os.urandom(1_000_000) * 50
    with pair() as (left, right), gs.scope() as scope:
        got = scope.spawn(receive_all, right, len(data))
        scope.spawn(left.sendall, data)

        assert data == got.result()


@virtually
def test_send_parks_is_cancelled_and_times_out_while_the_peer_does_not_read():
    with tcp_pair() as (left, right):
        left.setblocking(False)
        size = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                size += left.send(bytes(65536))
        left.setblocking(True)
        for send in (left.send, left.sendall, lambda data: left.sendmsg([data])):
            assert_is_cancelled(lambda send=send: send(b"x" * 100))
        left.settimeout(0.01)
        assert TimeoutError is error_of(left.send, b"x")[0]
        left.settimeout(None)

        assert 1 == assert_parks(lambda: left.send(b"x"), lambda: receive_all(right, size))


@virtually
def test_datagrams_keep_their_borders_and_senders():
    with (
        socket.socket(type=socket.SOCK_DGRAM) as left,
        socket.socket(type=socket.SOCK_DGRAM) as right,
    ):
        left.bind(("127.0.0.1", 0))
        right.bind(("127.0.0.1", 0))

        def wake():
            right.sendto(b"one", left.getsockname())
            right.sendto(b"", left.getsockname())

        assert (b"one", right.getsockname()) == assert_parks(lambda: left.recvfrom(100), wake)
        assert (b"", right.getsockname()) == left.recvfrom(100)


@virtually
def test_descriptors_are_passed():
    with unix_pair() as (left, right), tcp_pair() as (sent, _peer):
        message = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sent.fileno()]))]

        data, extra, _flags, _address = assert_parks(
            lambda: left.recvmsg(10, socket.CMSG_LEN(4)), lambda: right.sendmsg([b"fd"], message)
        )

        received = array.array("i", extra[0][2])[0]
        assert b"fd" == data
        assert os.path.sameopenfile(received, sent.fileno())
        os.close(received)


# ---- connecting ----


@virtually
def test_accept_parks_is_cancelled_and_times_out():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert_is_cancelled(listener.accept)
        listener.settimeout(0.01)
        assert (TimeoutError, "timed out") == error_of(listener.accept)
        listener.settimeout(None)

        with socket.socket() as client:
            server, address = assert_parks(listener.accept, lambda: client.connect(listener.getsockname()))

            assert client.getsockname() == address
            server.close()


@virtually
def test_accepted_socket_is_blocking():
    with tcp_pair() as (_left, right):
        assert None is right.gettimeout()
        assert os.get_blocking(right.fileno())


@virtually
def test_closing_a_listener_ends_accept_with_ebadf():
    listener = socket.create_server(("127.0.0.1", 0))

    assert (OSError, "[Errno 9] Bad file descriptor") == assert_parks(lambda: error_of(listener.accept), listener.close)


@virtually
def test_listener_is_shared_with_an_os_thread():
    with socket.create_server(("127.0.0.1", 0)) as listener, gs.scope() as scope:
        on_other = on_os_thread(listener.accept)
        task = scope.spawn(listener.accept)
        settle()
        with socket.create_connection(listener.getsockname()), socket.create_connection(listener.getsockname()):
            for server, _address in (task.result(), on_other()):
                assert os.get_blocking(server.fileno())
                server.close()


@virtually
def test_refused_connection_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with socket.socket() as client:
        assert (ConnectionRefusedError, "[Errno 111] Connection refused") == error_of(client.connect, address)
    with socket.socket() as client:
        assert errno.ECONNREFUSED == client.connect_ex(address)


@contextlib.contextmanager
def full_backlog():
    """The address of a listener whose queue is full: a further connect waits."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()


@virtually
def test_connect_to_a_full_backlog_parks_times_out_and_is_cancelled():
    with full_backlog() as address:
        with socket.socket() as client:
            client.settimeout(0.01)
            outcome = assert_parks(lambda: error_of(client.connect, address), lambda: None)
            assert (TimeoutError, "timed out") == outcome
        with socket.socket() as client:
            client.settimeout(0.01)
            assert errno.EAGAIN == client.connect_ex(address)
        with socket.socket() as client:
            assert_is_cancelled(lambda: client.connect(address))


@virtually
def test_unix_connect_to_a_full_backlog_waits_for_room(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(tmp_path / "socket"))
        client = stack.enter_context(socket.socket(socket.AF_UNIX))

        assert_parks(lambda: client.connect(str(tmp_path / "socket")), lambda: listener.accept()[0].close())


@virtually
def test_connected_socket_keeps_its_blocking_mode():
    with tcp_pair() as (left, right):
        assert_parks(lambda: left.recv(1), lambda: right.send(b"x"))
        for sock in (left, right):
            assert sock.getblocking() and os.get_blocking(sock.fileno())
        left.settimeout(5)
        assert (5.0, True) == (left.gettimeout(), left.getblocking())
        left.settimeout(0)
        assert (0.0, False) == (left.gettimeout(), left.getblocking())


@virtually
def test_numeric_addresses_do_not_use_the_pool():
    """Name resolution goes to OS threads; an address that needs none must not."""
    before = os.listdir("/proc/self/task")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        socket.getaddrinfo("127.0.0.1", port)
        socket.getaddrinfo("::1", port)
        with socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", ("127.0.0.1", port))

    assert before == os.listdir("/proc/self/task")


# ---- what stands on sockets ----


def test_sockets_from_before_the_start_park(made_before):
    left, right = made_before
    recv = left.recv

    @virtually
    def test():
        assert b"x" == assert_parks(lambda: recv(1), lambda: right.send(b"x"))

    test()


@virtually
def test_file_of_a_socket_parks():
    with tcp_pair() as (left, right), left.makefile("rw", encoding="utf-8", newline="\n") as file:
        assert "line\n" == assert_parks(file.readline, lambda: right.send(b"line\n"))
        file.write("answer\n")
        file.flush()
        assert b"answer\n" == right.recv(100)


@virtually
def test_two_virtual_threads_read_one_socket():
    with tcp_pair() as (left, right), gs.scope() as scope:
        tasks = [scope.spawn(left.recv, 1) for _ in range(2)]
        settle()
        assert ["socket.recv"] * 2 == waiting_for()
        right.send(b"xy")

        assert {b"x", b"y"} == {task.result() for task in tasks}


@virtually
def test_os_thread_and_virtual_thread_talk():
    with tcp_pair() as (left, right):
        received = on_os_thread(receive_all, right, 3_000_000)

        left.sendall(bytes(3_000_000))

        assert bytes(3_000_000) == received()


@virtually
def test_many_requests_on_one_os_thread():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.path.encode())

        def log_message(self, *args):
            pass

    class Server(http.server.HTTPServer):
        request_queue_size = 600

        def process_request(self, request, client_address):
            scope.spawn(self.answer, request, client_address)

        def answer(self, request, client_address):
            self.finish_request(request, client_address)
            self.shutdown_request(request)

    def fetch(number):
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/{number}") as answer:
            return answer.read()

    with Server(("127.0.0.1", 0), Handler) as server, gs.scope() as scope:
        serving = scope.spawn(server.serve_forever)
        tasks = [scope.spawn(fetch, number) for number in range(500)]
        answers = [task.result() for task in tasks]
        server.shutdown()
        serving.result()

    assert [f"/{number}".encode() for number in range(500)] == answers
    assert 1 == threading.active_count()
