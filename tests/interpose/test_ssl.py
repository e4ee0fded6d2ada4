# SPDX-License-Identifier: Apache-2.0
"""ssl in blocking mode on virtual threads, between two virtual threads of one carrier unless a test says otherwise.

A call that waits is seen parked by another virtual thread before it is woken. A call that blocked its carrier instead
would hang the test, and the time limit ends the run with a traceback.
"""

import asyncio
import contextlib
import os
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gossamer as gs
import pytest
from gossamer import _core
from waits import error_of, virtually, waiting_for

LONGEST = 60  # seconds that a test may take
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
BIG = bytes(range(256)) * 65536  # 16 MiB: more than the buffers of a socket pair hold


# ---- virtual threads ----


def settle() -> None:
    """Let every other virtual thread run until it waits for something that is not there yet."""
    quiet = 0
    while quiet < 3:
        gs.checkpoint()
        is_ready = any(status == "ready" for _ident, status, *_rest in _core.threads())
        quiet = 0 if is_ready else quiet + 1


def waiting(what: str, task: Any) -> None:
    """Let ``task`` run until it waits for ``what``."""
    settle()
    assert not task.done()
    assert [what] == waiting_for()


# ---- connections ----


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of localhost with its key, in one file."""
    folder = tmp_path_factory.mktemp("certificate")
    key, cert, both = folder / "key.pem", folder / "cert.pem", folder / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    return both


@pytest.fixture
def contexts(certificate: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a client and of its server."""
    client = ssl.create_default_context(cafile=str(certificate))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    server.load_verify_locations(certificate)
    return client, server


@contextlib.contextmanager
def sockets(contexts: tuple[ssl.SSLContext, ssl.SSLContext], **server_options: Any) -> Iterator[tuple[Any, Any]]:
    """A client's and a server's end of one connection, before the handshake."""
    left, right = socket.socketpair()
    with (
        contexts[0].wrap_socket(left, server_hostname="localhost", do_handshake_on_connect=False) as client,
        contexts[1].wrap_socket(right, server_side=True, do_handshake_on_connect=False, **server_options) as server,
    ):
        yield client, server


@contextlib.contextmanager
def connected(contexts: tuple[ssl.SSLContext, ssl.SSLContext], **options: Any) -> Iterator[tuple[Any, Any]]:
    """The same after the handshake, with nothing left to read at either end."""
    with sockets(contexts, **options) as (client, server):
        with gs.scope() as scope:
            scope.spawn(client.do_handshake)
            scope.spawn(server.do_handshake)
        server.sendall(b"!")
        assert b"!" == client.recv(1)  # the session tickets of TLS 1.3 came before it
        yield client, server


def receive(end: ssl.SSLSocket, size: int) -> bytes:
    """Exactly ``size`` bytes."""
    parts = []
    while size > 0:
        part = end.recv(size)
        assert part
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def fill(end: ssl.SSLSocket) -> None:
    """Write until the connection takes no more and the socket's timeout has passed."""
    with pytest.raises(TimeoutError):
        end.sendall(BIG)


# Each waiting call: its name in gossamer.dump(), the call, and what the other end does to wake it.
CALLS = [
    pytest.param("ssl.read", lambda end: end.recv(1), lambda other: other.send(b"x"), b"x", id="recv"),
    pytest.param("ssl.read", lambda end: end.read(1), lambda other: other.send(b"x"), b"x", id="read"),
    pytest.param(
        "ssl.read", lambda end: end.recv_into(bytearray(4)), lambda other: other.send(b"xyz"), 3, id="recv_into"
    ),
    pytest.param("ssl.write", lambda end: end.send(BIG), lambda other: receive(other, len(BIG)), len(BIG), id="send"),
    pytest.param("ssl.write", lambda end: end.sendall(BIG), lambda other: receive(other, len(BIG)), None, id="sendall"),
    pytest.param("ssl.shutdown", lambda end: end.unwrap().family, lambda other: other.unwrap(), 1, id="unwrap"),
]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize(("what", "call", "wake", "expected"), CALLS)
@virtually
def test_call_parks_until_the_other_end_acts(what, call, wake, expected, version, contexts):
    contexts[0].maximum_version = version
    with connected(contexts) as (client, server), gs.scope() as scope:
        task = scope.spawn(call, client)
        waiting(what, task)

        wake(server)

        assert expected == task.result()


@pytest.mark.parametrize(("what", "call", "wake", "expected"), CALLS)
@virtually
def test_call_is_cancelled_at_the_park_and_the_connection_closes(what, call, wake, expected, contexts):
    ends = []

    def body(end):
        try:
            call(end)
        except asyncio.CancelledError:
            ends.append("cancelled")
            end.close()
            raise

    with connected(contexts) as (client, _server), gs.scope() as scope:
        task = scope.spawn(body, client)
        waiting(what, task)

        task.cancel()
        settle()

        assert ["cancelled"] == ends
        assert -1 == client.fileno()


@pytest.mark.parametrize(("what", "call", "wake", "expected"), CALLS)
@virtually
def test_call_times_out_while_others_run(what, call, wake, expected, contexts):
    messages = {
        "ssl.read": "The read operation timed out",
        "ssl.write": "The write operation timed out",
        "ssl.shutdown": "The read operation timed out",
    }
    with connected(contexts) as (client, _server), gs.scope() as scope:
        client.settimeout(0.05)
        task = scope.spawn(error_of, call, client)
        waiting(what, task)

        assert (TimeoutError, messages[what]) == task.result()
        assert 0.05 == client.gettimeout()


@pytest.mark.parametrize("side", [0, 1], ids=["client", "server"])
@virtually
def test_handshake_parks_until_the_other_side_answers(side, contexts):
    with sockets(contexts) as ends, gs.scope() as scope:
        task = scope.spawn(ends[side].do_handshake)
        waiting("ssl.do_handshake", task)

        ends[1 - side].do_handshake()

        assert task.result() is None
        assert ends[0].version() == ends[1].version()


@pytest.mark.parametrize("side", [0, 1], ids=["client", "server"])
@virtually
def test_handshake_is_cancelled_at_the_park(side, contexts):
    with sockets(contexts) as ends, gs.scope() as scope:
        task = scope.spawn(ends[side].do_handshake)
        waiting("ssl.do_handshake", task)

        task.cancel()
        settle()

        assert task.done()
        assert ends[side].version() is None


@pytest.mark.parametrize("side", [0, 1], ids=["client", "server"])
@virtually
def test_handshake_times_out_with_the_message_of_plain_python(side, contexts):
    with sockets(contexts) as ends:
        ends[side].settimeout(0.02)
        plain = run_on_os_thread(error_of, ends[side].do_handshake)
    with sockets(contexts) as ends:
        ends[side].settimeout(0.02)

        assert plain == error_of(ends[side].do_handshake)


@virtually
def test_one_virtual_thread_reads_while_another_writes_the_same_connection(contexts):
    def echo(end):
        for _ in range(4):
            end.sendall(receive(end, len(BIG) // 4))

    with connected(contexts) as (client, server), gs.scope() as scope:
        scope.spawn(echo, server)
        reader = scope.spawn(receive, client, len(BIG))
        client.sendall(BIG)

        assert BIG == reader.result()


@pytest.mark.parametrize("timeout", [None, 30], ids=["blocking", "timeout"])
@virtually
def test_writes_of_two_virtual_threads_do_not_mix(timeout, contexts):
    """OpenSSL continues a write that would block with the buffer of whoever writes next, or refuses it."""
    with connected(contexts) as (client, server), gs.scope() as scope:
        client.settimeout(timeout)
        first = scope.spawn(client.sendall, b"1" * len(BIG))
        waiting("ssl.write", first)
        longer = scope.spawn(client.sendall, b"2" * 2 * len(BIG))
        shorter = scope.spawn(client.sendall, b"3")
        settle()
        assert [False, False] == [longer.done(), shorter.done()]

        received = receive(server, 3 * len(BIG) + 1)

        assert b"1" * len(BIG) == received[: len(BIG)]
        assert (2 * len(BIG), 1) == (received.count(b"2"), received.count(b"3"))


@virtually
def test_write_that_waits_for_another_times_out(contexts):
    with connected(contexts) as (client, server), gs.scope() as scope:
        first = scope.spawn(client.sendall, BIG)
        waiting("ssl.write", first)
        client.settimeout(0.02)

        assert (TimeoutError, "The write operation timed out") == error_of(client.sendall, b"x")

        assert BIG == receive(server, len(BIG))


@virtually
def test_buffer_cannot_be_resized_while_a_call_waits_with_it(contexts):
    with connected(contexts) as (client, server), gs.scope() as scope:
        into, out = bytearray(4), bytearray(BIG)
        reader = scope.spawn(client._sslobj.read, 4, into)
        writer = scope.spawn(server._sslobj.write, out)
        settle()

        for buffer in (into, out):
            with pytest.raises(BufferError):
                buffer.append(0)

        reader.cancel()
        writer.cancel()
    into.append(0)
    out.append(0)


@virtually
def test_close_in_another_virtual_thread_ends_a_read(contexts):
    with connected(contexts) as (client, _server), gs.scope() as scope:
        task = scope.spawn(error_of, client.recv, 1)
        waiting("ssl.read", task)

        client.close()

        assert (OSError, "[Errno 9] Bad file descriptor") == task.result()


# ---- ends of a connection ----


@virtually
def test_unwrap_gives_back_the_socket_and_its_blocking_descriptor(contexts):
    with connected(contexts) as (client, server), gs.scope() as scope:
        task = scope.spawn(client.unwrap)
        waiting("ssl.shutdown", task)
        assert not os.get_blocking(client.fileno())

        assert server is server.unwrap()

        assert client is task.result()
        assert [True, True] == [os.get_blocking(end.fileno()) for end in (client, server)]
        client.sendall(b"plain")
        assert b"plain" == server.recv(5)


@virtually
def test_unwrap_keeps_the_timeout_of_the_socket(contexts):
    with connected(contexts) as (client, server), gs.scope() as scope:
        client.settimeout(30)
        task = scope.spawn(client.unwrap)

        server.unwrap()

        task.result()
        assert (30, False) == (client.gettimeout(), os.get_blocking(client.fileno()))


@virtually
def test_close_notify_ends_a_parked_read(contexts):
    with connected(contexts) as (client, server), gs.scope() as scope:
        task = scope.spawn(client.recv, 1)
        waiting("ssl.read", task)
        server.settimeout(0.01)

        with pytest.raises(TimeoutError):
            server.unwrap()

        assert b"" == task.result()


def ragged_end(contexts: tuple[ssl.SSLContext, ssl.SSLContext], suppress: bool) -> object:
    """What a read in plain Python says when the other end closes without a close_notify."""
    with sockets(contexts, suppress_ragged_eofs=suppress) as (client, server):
        thread = threading.Thread(target=server.do_handshake)
        thread.start()
        client.do_handshake()
        thread.join()
        server.sendall(b"!")
        client.recv(1)  # what a closed end has not read resets the connection, the session tickets of TLS 1.3 too
        client.close()
        return outcome_of(server.recv, 1)


def outcome_of(call: Callable[..., Any], *args: Any) -> object:
    """What the call returns, or the class of what it raises."""
    try:
        return call(*args)
    except OSError as error:
        return type(error)


@pytest.mark.parametrize("suppress", [True, False])
def test_ragged_end_of_file_ends_a_parked_read_as_in_plain_python(suppress, contexts):
    @virtually
    def test():
        with connected(contexts, suppress_ragged_eofs=suppress) as (client, server), gs.scope() as scope:
            task = scope.spawn(outcome_of, server.recv, 1)
            waiting("ssl.read", task)

            client.close()

            assert plain == task.result()

    plain = ragged_end(contexts, suppress)
    test()


@virtually
def test_calls_of_a_closed_connection_fail_as_in_plain_python(contexts):
    with connected(contexts) as (client, _server):
        raw = client._sslobj
        client.close()

        assert (ssl.SSLError, "Underlying socket connection gone") == tuple(
            part if isinstance(part, type) else part.partition(" (_ssl.c")[0] for part in error_of(raw.shutdown)
        )


# ---- more of TLS ----


@virtually
def test_post_handshake_authentication_runs_on_parked_ends(contexts, certificate):
    client_context, server_context = contexts
    client_context.post_handshake_auth = server_context.post_handshake_auth = True
    client_context.load_cert_chain(certificate)
    server_context.verify_mode = ssl.CERT_REQUIRED

    with connected(contexts) as (client, server), gs.scope() as scope:
        assert not server.getpeercert()
        reader = scope.spawn(client.recv, 1)
        waiting("ssl.read", reader)
        server.verify_client_post_handshake()
        server.sendall(b"?")
        assert b"?" == reader.result()
        client.sendall(b"!")

        assert b"!" == server.recv(1)
        assert ((("commonName", "localhost"),),) == server.getpeercert()["subject"]


@virtually
def test_sendfile_on_tls_sends_the_file(contexts, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(BIG)

    with connected(contexts) as (client, server), path.open("rb") as file, gs.scope() as scope:
        reader = scope.spawn(receive, server, len(BIG))

        assert len(BIG) == client.sendfile(file)
        assert BIG == reader.result()


@virtually
def test_makefile_reads_lines_of_a_connection(contexts):
    with connected(contexts) as (client, server), client.makefile("rb") as lines, gs.scope() as scope:
        task = scope.spawn(lines.readline)
        waiting("ssl.read", task)

        server.sendall(b"one\ntwo\n")

        assert [b"one\n", b"two\n"] == [task.result(), lines.readline()]


@virtually
def test_callback_of_the_handshake_may_wait(contexts):
    """The server name callback runs Python inside OpenSSL, on the stack of the virtual thread."""
    gate = threading.Event()
    contexts[1].sni_callback = lambda _socket, _name, _context: gate.wait() and None

    with sockets(contexts) as (client, server), gs.scope() as scope:
        tasks = [scope.spawn(client.do_handshake), scope.spawn(server.do_handshake)]
        settle()
        assert {"ssl.do_handshake"} < set(waiting_for())

        gate.set()

        assert [None, None] == [task.result() for task in tasks]


@virtually
def test_listening_ssl_socket_serves_a_connecting_one(contexts):
    def serve(listener):
        end, _address = listener.accept()
        with end:
            end.sendall(receive(end, 4).upper())
            end.unwrap()

    with (
        contexts[1].wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True) as listener,
        contexts[0].wrap_socket(socket.socket(), server_hostname="localhost") as client,
        gs.scope() as scope,
    ):
        server = scope.spawn(serve, listener)
        waiting("socket.accept", server)

        client.connect(listener.getsockname())
        client.sendall(b"ping")

        assert b"PING" == client.recv(4)
        client.unwrap()


@virtually
def test_get_server_certificate_between_virtual_threads(contexts, certificate):
    def serve(listener):
        with contextlib.suppress(OSError):
            listener.accept()[0].close()

    with (
        contexts[1].wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True) as listener,
        gs.scope() as scope,
    ):
        scope.spawn(serve, listener)

        pem = ssl.get_server_certificate(listener.getsockname(), ca_certs=str(certificate))

    assert certificate.read_text().endswith(pem)


@virtually
def test_connection_in_memory_never_waits(contexts):
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    end = contexts[0].wrap_bio(inward, outward, server_hostname="localhost")
    before = _core.statistics()["parks"]

    with pytest.raises(ssl.SSLWantReadError):
        end.do_handshake()

    assert before == _core.statistics()["parks"]


@pytest.mark.parametrize("call", [lambda end: end.recv(1), lambda end: end.unwrap()], ids=["recv", "unwrap"])
@virtually
def test_non_blocking_connection_never_waits(call, contexts):
    with connected(contexts) as (client, _server):
        client.setblocking(False)
        before = _core.statistics()["parks"]

        with pytest.raises(ssl.SSLWantReadError):
            call(client)

        assert before == _core.statistics()["parks"]


# ---- OS threads beside virtual ones ----


def run_on_os_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Run the function on an OS thread while the virtual ones run on; return its result."""
    results: list[Any] = []
    done = threading.Event()

    def body() -> None:
        try:
            results.append(function(*args))
        finally:
            done.set()

    threading.Thread(target=body).start()
    done.wait()
    return results[0]


@pytest.mark.parametrize("timeout", [None, 30], ids=["blocking", "timeout"])
@virtually
def test_os_thread_waits_on_a_connection_that_virtual_threads_use(timeout, contexts):
    with connected(contexts) as (client, server), gs.scope() as scope:
        client.settimeout(timeout)

        def answer():
            server.sendall(receive(server, len(BIG)))
            server.unwrap()

        def ask():
            client.sendall(BIG)
            answer = receive(client, len(BIG))
            return answer, client.unwrap() is client

        scope.spawn(answer)

        assert (BIG, True) == run_on_os_thread(ask)


@virtually
def test_os_thread_that_waits_on_a_shared_connection_uses_no_processor_time(contexts):
    """The original's own loop would spin on a descriptor that we made non-blocking."""

    def read():
        before = resource.getrusage(resource.RUSAGE_THREAD)
        data = client.recv(1)
        after = resource.getrusage(resource.RUSAGE_THREAD)
        return data, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def answer():
        time.sleep(0.5)  # not to order anything: this is how long the other one could spin
        server.sendall(b"x")

    with connected(contexts) as (client, server), gs.scope() as scope:
        scope.spawn(answer)

        data, seconds = run_on_os_thread(read)

    assert b"x" == data
    assert seconds < 0.25


@pytest.mark.parametrize("timeout", [None, 30], ids=["blocking", "timeout"])
@virtually
def test_os_thread_reads_while_a_virtual_thread_writes_the_same_connection(timeout, contexts):
    """OpenSSL, used by two at once, tells one of them that it waits for what the other does."""
    size, count = 1024, 1000
    for _ in range(20):
        with connected(contexts) as (client, server), gs.scope() as scope:
            client.settimeout(timeout)
            scope.spawn(lambda: [server.sendall(receive(server, size)) for _ in range(count)])
            scope.spawn(lambda: [client.sendall(b"y" * size) for _ in range(count)])

            received = run_on_os_thread(receive, client, size * count)

            assert size * count == received.count(b"y")


def test_connection_of_a_run_that_ended_still_blocks(contexts):
    with contextlib.ExitStack() as stack:
        client, server = gs.run(lambda: stack.enter_context(connected(contexts)))
        thread = threading.Thread(target=server.sendall, args=(b"x",))
        thread.start()

        assert b"x" == client.recv(1)
        thread.join()


# ---- when it is installed ----


def run_child(code: str) -> str:
    """Run the code under plain Python in a child process; return what it printed."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONGEST)
    assert "" == result.stderr
    return result.stdout


@pytest.mark.parametrize("when", ["before", "after"])
def test_import_order_does_not_matter(when, certificate):
    """A method bound before Gossamer started parks, and so does one of a module that was imported after."""
    early, late = ("import ssl", "") if when == "before" else ("", "import ssl")
    code = f"""
{early}
import sys, socket, gossamer
assert ("_ssl" in sys.modules) is {when == "before"}
def main():
    {late or "pass"}
    from gossamer import _core
    left, right = socket.socketpair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    end = context.wrap_socket(left, do_handshake_on_connect=False)
    with gossamer.scope() as scope:
        task = scope.spawn(end.do_handshake)
        while not (waits := [what for _ident, status, what, *_rest in _core.threads() if status == "parked"]):
            gossamer.checkpoint()
        print(waits)
        task.cancel()
    right.close()
    end.close()
if {when == "before"}:
    import ssl
gossamer.run(main)
"""
    code = code.replace("def main():", "def main():\n    global ssl", 1)

    assert "['ssl.do_handshake']\n" == run_child(code)


def test_program_that_needs_no_tls_does_not_import_it():
    assert "False\n" == run_child("import sys, gossamer; gossamer.run(lambda: print('_ssl' in sys.modules))")
