# SPDX-License-Identifier: Apache-2.0
"""Servers: connections are accepted and set up in C++, without a task each."""

import asyncio
import contextlib
import contextvars
import os
import resource
import socket
import sys
from asyncio import constants

import pytest
from loops import collect_errors, new_loop, on_loop, run_on_thread
from protocols import Recorder

variable = contextvars.ContextVar("variable", default="none")


@contextlib.asynccontextmanager
async def serving(factory, family=socket.AF_INET, address=("127.0.0.1", 0), **options):
    """A server of the protocol, and what a client connects to."""
    loop = asyncio.get_running_loop()
    listener = socket.socket(family)
    listener.bind(address)
    async with await loop.create_server(factory, sock=listener, **options) as server:
        yield server, listener.getsockname()


def connected_to(address, family=socket.AF_INET):
    client = socket.socket(family)
    client.connect(address)
    client.setblocking(False)
    return client


@contextlib.contextmanager
def no_more_descriptors():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def accepted(made, count=1):
    """Wait until so many protocols had connection_made called."""
    while len(made) < count:
        await asyncio.sleep(0)


class Server(Recorder):
    """Notes itself in a list of the test's when it is connected."""

    def __init__(self, made):
        super().__init__()
        self.made = made

    def connection_made(self, transport):
        super().connection_made(transport)
        self.made.append(self)


@on_loop
async def test_a_plain_connection_needs_no_task():
    tasks = []

    class Counter(asyncio.Protocol):
        def __init__(self):
            tasks.append(asyncio.all_tasks())

        def connection_made(self, transport):
            tasks.append(asyncio.all_tasks())
            transport.close()

    async with serving(Counter) as (_server, address):
        with connected_to(address) as client:
            assert b"" == await asyncio.get_running_loop().sock_recv(client, 1)

    assert [{asyncio.current_task()}] * 2 == tasks


@on_loop
async def test_a_burst_of_connections_is_accepted_whole():
    made = []
    async with serving(lambda: Server(made), backlog=10) as (_server, address):
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(connected_to(address))
            await accepted(made, 8)
        for protocol in made:
            await protocol.lost()

        assert [[("eof",), ("lost", None)]] * 8 == [protocol.calls for protocol in made]


@on_loop
async def test_a_backlog_of_none_is_room_for_one():
    made = []
    async with serving(lambda: Server(made), backlog=0) as (_server, address):
        with connected_to(address):
            await accepted(made)
        await made[0].lost()


@pytest.mark.parametrize(
    ("family", "address"),
    [
        (socket.AF_INET, ("127.0.0.1", 0)),
        (socket.AF_INET6, ("::1", 0)),
        (socket.AF_UNIX, b"\0gossamer-%d" % os.getpid()),
    ],
    ids=["inet", "inet6", "abstract"],
)
def test_a_transport_knows_its_addresses(family, address):
    async def main():
        made = []
        async with serving(lambda: Server(made), family, address) as (_server, listening):
            with connected_to(listening, family) as client:
                await accepted(made)
                sock = made[0].transport.get_extra_info("socket")
                known = {name: made[0].transport.get_extra_info(name) for name in ("sockname", "peername")}
                assert {"sockname": sock.getsockname(), "peername": sock.getpeername()} == known
                assert client.getsockname() == known["peername"]
                assert (family, socket.SOCK_STREAM, 0) == (sock.family, sock.type, sock.proto)
                assert sock.gettimeout() == 0
                assert not os.get_inheritable(sock.fileno())
            await made[0].lost()

    run_on_thread(main())


@on_loop
async def test_contexts_are_those_of_asyncio():
    seen = []

    class Protocol(asyncio.Protocol):
        def __init__(self):
            seen.append(variable.get())
            variable.set("factory")

        def connection_made(self, transport):
            self.transport = transport
            seen.append(variable.get())
            variable.set("connection_made")

        def data_received(self, data):
            seen.append(variable.get())
            self.transport.close()

    variable.set("server")
    async with serving(Protocol) as (_server, address):
        variable.set("later")
        for _ in range(2):
            with connected_to(address) as client:
                client.send(b"x")
                assert b"" == await asyncio.get_running_loop().sock_recv(client, 1)

    # From 3.15 on a connection has one context, a copy of its server's.
    data = "connection_made" if sys.version_info >= (3, 15) else "factory"
    assert ["server", "factory", data] * 2 == seen


@on_loop
async def test_a_factory_that_fails_costs_its_connection_alone():
    made = []

    def factory():
        if not made:
            made.append(None)
            raise LookupError("no protocol")
        return Server(made)

    loop = asyncio.get_running_loop()
    errors = collect_errors()
    async with serving(factory) as (_server, address):
        with connected_to(address) as client:
            assert b"" == await loop.sock_recv(client, 1)
        with connected_to(address):
            await accepted(made, 2)
        await made[1].lost()

    assert [] == errors  # as asyncio has it


@on_loop
async def test_debug_mode_tells_of_a_factory_that_fails():
    asyncio.get_running_loop().set_debug(True)

    def factory():
        raise LookupError("no protocol")

    errors = collect_errors()
    async with serving(factory) as (_server, address):
        with connected_to(address) as client:
            assert b"" == await asyncio.get_running_loop().sock_recv(client, 1)

    assert ["Error on transport creation for incoming connection"] == [error["message"] for error in errors]


@on_loop
async def test_what_connection_made_raises_is_reported_and_the_connection_stays():
    made = []

    class Failing(Server):
        def connection_made(self, transport):
            super().connection_made(transport)
            raise LookupError("failed")

    errors = collect_errors()
    async with serving(lambda: Failing(made)) as (_server, address):
        with connected_to(address) as client:
            client.send(b"still there")
            await accepted(made)
            await made[0].until(lambda: made[0].received == b"still there")
        await made[0].lost()

    assert [LookupError] == [type(error["exception"]) for error in errors]
    assert "connection_made" in errors[0]["message"]


def test_a_factory_may_end_the_program_and_the_loop_goes_on_afterwards():
    made = []

    def factory():
        if not made:
            made.append(None)
            raise KeyboardInterrupt
        return Server(made)

    with new_loop() as loop, socket.create_server(("127.0.0.1", 0)) as listener:
        server = loop.run_until_complete(loop.create_server(factory, sock=listener))
        with connected_to(listener.getsockname()), connected_to(listener.getsockname()):
            with pytest.raises(KeyboardInterrupt):
                loop.run_until_complete(accepted(made, 2))
            loop.run_until_complete(accepted(made, 2))
        loop.run_until_complete(made[1].lost())
        server.close()


@on_loop
async def test_a_factory_may_close_its_server():
    made = []
    servers = []

    def factory():
        servers[0].close()
        return Server(made)

    async with serving(factory) as (server, address):
        servers.append(server)
        with connected_to(address) as client, contextlib.suppress(ConnectionResetError):
            assert b"" == await asyncio.get_running_loop().sock_recv(client, 1)

    assert [] == made  # the server that it belongs to is gone


@on_loop
async def test_out_of_descriptors_accepting_pauses_and_goes_on(monkeypatch):
    monkeypatch.setattr(constants, "ACCEPT_RETRY_DELAY", 0.001)
    made = []
    errors = collect_errors()
    async with serving(lambda: Server(made)) as (_server, address):
        with socket.socket() as client:
            with no_more_descriptors():
                client.connect(address)
                while len(errors) < 2:
                    await asyncio.sleep(0)
            await accepted(made)
        await made[0].lost()

    assert {"socket.accept() out of system resource"} == {error["message"] for error in errors}
    assert isinstance(errors[0]["socket"], asyncio.trsock.TransportSocket)


@on_loop
async def test_a_server_closed_while_accepting_is_paused_stays_closed(monkeypatch):
    monkeypatch.setattr(constants, "ACCEPT_RETRY_DELAY", 0)
    errors = collect_errors()
    async with serving(asyncio.Protocol) as (server, address):
        with socket.socket() as client, no_more_descriptors():
            client.connect(address)
            while not errors:
                await asyncio.sleep(0)
            server.close()
            count = len(errors)
            for _ in range(40):
                await asyncio.sleep(0)

    assert count == len(errors)


@on_loop
async def test_a_listening_socket_closed_by_its_user_is_forgotten():
    loop = asyncio.get_running_loop()
    made = []
    listener = socket.create_server(("127.0.0.1", 0))
    server = await loop.create_server(lambda: Server(made), sock=listener)
    fd = listener.fileno()
    listener.close()
    async with serving(lambda: Server(made)) as (other, address):
        assert fd == other.sockets[0].fileno()
        with connected_to(address):
            await accepted(made)
        await made[0].lost()
        with pytest.raises(ValueError, match="-1"):  # as asyncio has it
            server.close()
        with connected_to(address):
            await accepted(made, 2)
        await made[1].lost()

    assert {} == loop._acceptors


@on_loop
async def test_a_subclass_of_socket_has_its_own_accept_called():
    calls = []

    class Listener(socket.socket):
        def accept(self):
            calls.append("accept")
            return super().accept()

    made = []
    listener = Listener()
    listener.bind(("127.0.0.1", 0))
    async with await asyncio.get_running_loop().create_server(lambda: Server(made), sock=listener):
        with connected_to(listener.getsockname()):
            await accepted(made)
        await made[0].lost()

    assert "accept" in calls


@on_loop
async def test_what_connection_lost_raises_is_reported_and_everything_is_closed():
    made = []

    class Failing(Server):
        def connection_lost(self, error):
            super().connection_lost(error)
            raise LookupError("failed")

    errors = collect_errors()
    async with serving(lambda: Failing(made)) as (_server, address):
        with connected_to(address):
            await accepted(made)
            sock = made[0].transport.get_extra_info("socket")
        await made[0].lost()

    assert [LookupError] == [type(error["exception"]) for error in errors]
    assert -1 == sock.fileno()


@pytest.mark.skipif(sys.version_info < (3, 13), reason="servers know their connections from 3.13 on")
@on_loop
async def test_a_connection_aborted_before_it_is_made_is_made_and_then_lost():
    calls = []

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport):
            calls.append("made")

        def connection_lost(self, error):
            calls.append("lost")

    servers = []

    def factory():
        asyncio.get_running_loop().call_soon(servers[0].abort_clients)
        return Protocol()

    async with serving(factory) as (server, address):
        servers.append(server)
        with connected_to(address) as client:
            assert b"" == await asyncio.get_running_loop().sock_recv(client, 1)

    assert ["made", "lost"] == calls


@on_loop
async def test_a_connection_may_be_closed_in_connection_made():
    class Closer(Recorder):
        def connection_made(self, transport):
            transport.write(b"bye")
            transport.close()

    loop = asyncio.get_running_loop()
    protocols = []

    def factory():
        protocols.append(Closer())
        return protocols[-1]

    async with serving(factory) as (_server, address):
        with connected_to(address) as client:
            client.send(b"ignored")
            assert b"bye" == await loop.sock_recv(client, 10)
            await protocols[0].lost()

    assert [("lost", None)] == protocols[0].calls


@on_loop
async def test_no_transport_is_kept_in_the_loops_table_after_its_end():
    made = []
    loop = asyncio.get_running_loop()
    async with serving(lambda: Server(made)) as (_server, address):
        with connected_to(address):
            await accepted(made)
            fd = made[0].transport.get_extra_info("socket").fileno()
            assert made[0].transport is loop._transports[fd]
            with pytest.raises(RuntimeError, match="is used by transport"):
                loop.add_reader(fd, print)
        await made[0].lost()

    assert None is loop._transports.get(fd)
    with pytest.raises(KeyError):
        loop._transports[fd]
