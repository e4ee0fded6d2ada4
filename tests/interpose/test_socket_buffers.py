# SPDX-License-Identifier: Apache-2.0
"""recv and sendall on virtual threads: which buffer they use does not show, and what they refuse they refuse as
ever.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import gossamer as gs
import pytest


def in_virtual_thread[T](work: Callable[[socket.socket, socket.socket], T]) -> T:
    """Run ``work`` on a connected pair of TCP sockets, as the main virtual thread."""

    def main() -> T:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            left = socket.create_connection(listener.getsockname())
            right, _address = listener.accept()
        with left, right:
            return work(left, right)

    return gs.run(main)


def read_exactly(source: socket.socket, size: int, at_a_time: int) -> bytes:
    """Read ``size`` bytes."""
    parts: list[bytes] = []
    while size > 0:
        parts.append(source.recv(min(size, at_a_time)))
        size -= len(parts[-1])
    return b"".join(parts)


@pytest.mark.parametrize("at_a_time", [1, 1000, 65_536, 65_537, 1 << 20])
def test_recv_returns_what_was_sent_whatever_size_it_asks_for(at_a_time: int) -> None:
    """Small and big reads of one socket follow each other: each gets its own bytes."""
    chunks = [bytes([number]) * size for number, size in enumerate([10, 40_000, 3, 300_000, 100, 20_000, 1])]

    def work(left: socket.socket, right: socket.socket) -> list[bytes]:
        received = []
        with gs.scope() as scope:
            for chunk in chunks:
                scope.spawn(left.sendall, chunk)
                received.append(read_exactly(right, len(chunk), at_a_time))
        return received

    assert chunks == in_virtual_thread(work)


def test_readers_that_park_do_not_share_a_buffer() -> None:
    """Two virtual threads parked in recv at once each get the bytes of their own socket."""

    def work(left: socket.socket, right: socket.socket) -> tuple[bytes, bytes]:
        with gs.scope() as scope:
            first = scope.spawn(left.recv, 65_536)
            second = scope.spawn(right.recv, 65_536)
            gs.checkpoint()
            left.sendall(b"for right")
            right.sendall(b"for left")
        return first.result(), second.result()

    assert (b"for left", b"for right") == in_virtual_thread(work)


REFUSED = [
    lambda source: source.recv(),
    lambda source: source.recv("4"),
    lambda source: source.recv(-1),
    lambda source: source.recv(1 << 70),
    lambda source: source.recv(4.0),
    lambda source: source.recv(4, 0, 0),
    lambda source: source.recv(*(-1,)),
]


@pytest.mark.parametrize("call", REFUSED)
def test_recv_refuses_what_the_original_refuses(call: Callable[[socket.socket], bytes]) -> None:
    """Type and message of the error are those on an ordinary thread."""
    left, right = socket.socketpair()
    with left, right, pytest.raises((TypeError, ValueError, OverflowError)) as expected:
        call(left)

    with pytest.raises(expected.type) as raised:
        in_virtual_thread(lambda left, _right: call(left))

    assert str(expected.value) == str(raised.value)


@pytest.mark.parametrize("data", ["text", 5, None])
def test_sendall_refuses_what_is_not_bytes(data: object) -> None:
    """As on an ordinary thread."""

    def work(left: socket.socket, _right: socket.socket) -> None:
        left.sendall(data)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="bytes-like object is required"):
        in_virtual_thread(work)


def test_methods_taken_from_the_type_and_from_an_object_are_the_same_call() -> None:
    """`socket.socket.recv(s, n)`, a bound method kept for later, and `s.recv(n)` all park and receive."""

    def work(left: socket.socket, right: socket.socket) -> bytes:
        bound = right.recv
        readers = [lambda: right.recv(1), lambda: bound(1), lambda: socket.socket.recv(right, 1)]
        with gs.scope() as scope:
            tasks = [scope.spawn(reader) for reader in readers]
            gs.checkpoint()
            left.sendall(b"abc")
        return b"".join(sorted(task.result() for task in tasks))

    assert b"abc" == in_virtual_thread(work)


def test_recv_of_another_type_is_refused() -> None:
    """The descriptor checks its first argument before anything is read of it."""

    def work(_left: socket.socket, _right: socket.socket) -> None:
        socket.socket.recv(object(), 1)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="socket"):
        in_virtual_thread(work)
