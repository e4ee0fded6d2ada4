# SPDX-License-Identifier: Apache-2.0
"""What asyncio documents of a loop, argument by argument, and what a loop of ours leaves to asyncio's own code."""

import asyncio
import inspect
import logging
import socket
import sys
import threading
import time
from asyncio import selector_events, sslproto, unix_events
from concurrent.futures import ThreadPoolExecutor

import gossamer as gs
import pytest
from gossamer._event_loop import (
    DatagramTransport,
    EventLoop,
    ReadPipeTransport,
    SocketTransport,
    WritePipeTransport,
)
from gossamer._tls import SSLTransport
from loops import new_loop, on_loop
from protocols import Recorder
from tasks import settle

# ---- the interface ----

CLASSES = {
    "loop": (EventLoop, asyncio.SelectorEventLoop),
    "socket": (SocketTransport, selector_events._SelectorSocketTransport),
    "datagram": (DatagramTransport, selector_events._SelectorDatagramTransport),
    "read pipe": (ReadPipeTransport, unix_events._UnixReadPipeTransport),
    "write pipe": (WritePipeTransport, unix_events._UnixWritePipeTransport),
    "tls": (SSLTransport, sslproto._SSLProtocolTransport),
}
# The classes of their own (bytes a read, the class of a queue) of asyncio's transports.
NOT_METHODS = {"max_size"}


def arguments(method):
    """The names, the kinds and the defaults of a method's parameters, beside the object."""
    parameters = list(inspect.signature(method).parameters.values())[1:]
    return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]


@pytest.mark.parametrize(("ours", "theirs"), CLASSES.values(), ids=CLASSES.keys())
def test_public_methods_take_the_arguments_of_asyncios(ours, theirs):
    names = [name for name in dir(theirs) if not name.startswith("_") and name not in NOT_METHODS]
    # Those of sock_* by name are asyncio's own methods', to which such a call is passed on.
    compared = [name for name in names if not name.startswith("sock_")]

    assert [] == [name for name in names if not hasattr(ours, name)]
    assert {name: arguments(getattr(theirs, name)) for name in compared} == {
        name: arguments(getattr(ours, name)) for name in compared
    }


# ---- create_task ----


@on_loop
async def test_a_task_has_the_name_the_context_and_the_factory_it_is_given():
    loop = asyncio.get_running_loop()
    made = []

    def factory(loop, coroutine, **options):
        made.append(sorted(options))
        return asyncio.Task(coroutine, loop=loop, **options)

    async def name():
        return asyncio.current_task().get_name()

    loop.set_task_factory(factory)
    assert factory is loop.get_task_factory()

    assert "one" == await loop.create_task(name(), name="one")
    assert 1 == len(made)
    with pytest.raises(TypeError, match="task factory must be a callable or None"):
        loop.set_task_factory(5)
    loop.set_task_factory(None)
    assert "two" == await loop.create_task(name(), name="two")
    assert 1 == len(made)


@on_loop
async def test_an_eager_task_of_a_loop_of_ours_parks_in_its_first_step():
    loop = asyncio.get_running_loop()
    order = []

    async def eager():
        order.append("begins")
        gs.checkpoint()
        order.append("goes on")

    loop.set_task_factory(asyncio.eager_task_factory)
    task = loop.create_task(eager())
    order.append("is made")
    await task

    assert ["begins", "is made", "goes on"] == order


@pytest.mark.skipif(sys.version_info < (3, 14), reason="from 3.14 on")
@on_loop
async def test_a_single_task_may_start_eagerly():
    async def eager():
        return 1

    assert asyncio.get_running_loop().create_task(eager(), eager_start=True).done()


# ---- executors and the shutdowns ----


@on_loop
async def test_the_default_executor_is_an_attribute_that_can_be_set_and_is_shut_down():
    loop = asyncio.get_running_loop()
    assert loop._default_executor is None

    loop.set_default_executor(ThreadPoolExecutor(1, thread_name_prefix="mine"))
    name = await loop.run_in_executor(None, lambda: threading.current_thread().name)
    executor = loop._default_executor
    await loop.shutdown_default_executor(timeout=60)

    assert name.startswith("mine")
    assert executor._shutdown
    with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
        loop.run_in_executor(None, print)


def test_shutdown_asyncgens_closes_generators_which_may_wait():
    closed = []

    async def numbers():
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            time.sleep(0.001)
            closed.append(True)

    async def begin():
        return await anext(generator)

    generator = numbers()
    with new_loop() as loop:
        assert 1 == loop.run_until_complete(begin())
        loop.run_until_complete(loop.shutdown_asyncgens())

        assert [True] == closed


# ---- debug mode ----


@on_loop
async def test_debug_mode_refuses_a_call_from_another_thread():
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    errors = []

    def call():
        for method, arguments in ((loop.call_soon, []), (loop.call_later, [1]), (loop.call_at, [1])):
            try:
                method(*arguments, print)
            except RuntimeError as error:
                errors.append(str(error))
        loop.call_soon_threadsafe(int)

    await loop.run_in_executor(None, call)

    assert 3 == len(errors)
    assert all("Non-thread-safe operation" in error for error in errors)


@on_loop
async def test_debug_mode_tells_of_a_slow_callback(caplog):
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0  # everything is slow

    def slow():
        pass

    with caplog.at_level(logging.WARNING, "asyncio"):
        loop.call_soon(slow)
        await settle()
        loop.slow_callback_duration = 1000
        caplog.clear()
        loop.call_soon(slow)
        await settle()
        assert [] == caplog.messages
        loop.slow_callback_duration = 0
        loop.call_soon(slow)
        await settle()

    assert any("slow() at" in message and "took" in message for message in caplog.messages)


# ---- servers and connections ----


@on_loop
async def test_a_server_begins_when_it_is_told_to():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Recorder, "127.0.0.1", 0, start_serving=False)
    address = server.sockets[0].getsockname()
    assert not server.is_serving()
    with pytest.raises(ConnectionRefusedError):
        await loop.create_connection(Recorder, *address)

    await server.start_serving()
    await server.start_serving()
    transport, _ = await loop.create_connection(Recorder, *address)
    serving = asyncio.create_task(server.serve_forever())
    await settle()
    with pytest.raises(RuntimeError, match="is already being awaited"):
        await server.serve_forever()
    transport.abort()
    serving.cancel()

    with pytest.raises(asyncio.CancelledError):
        await serving
    assert not server.is_serving()


@pytest.mark.skipif(sys.version_info < (3, 13), reason="from 3.13 on")
@pytest.mark.parametrize("end", ["close_clients", "abort_clients"])
@on_loop
async def test_a_server_ends_its_clients(end):
    loop = asyncio.get_running_loop()
    made = []

    def protocol():
        made.append(Recorder())
        return made[-1]

    server = await loop.create_server(protocol, "127.0.0.1", 0, keep_alive=True, reuse_port=True)
    listening = server.sockets[0]
    assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
    transport, client = await loop.create_connection(Recorder, *listening.getsockname())
    while not made:
        await asyncio.sleep(0)
    server.close()
    closing = asyncio.create_task(server.wait_closed())
    await settle()
    assert not closing.done()

    getattr(server, end)()
    await closing
    await client.lost()

    assert ("lost", None) == made[0].calls[-1]
    assert transport.is_closing()


@on_loop
async def test_a_connection_that_fails_tells_of_every_address():
    loop = asyncio.get_running_loop()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]

        with pytest.raises(ExceptionGroup) as caught:
            await loop.create_connection(Recorder, "127.0.0.1", port, all_errors=True)
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(Recorder, "127.0.0.1", port, happy_eyeballs_delay=0.25, interleave=1)

    assert [ConnectionRefusedError] == [type(error) for error in caught.value.exceptions]


@on_loop
async def test_a_socket_that_somebody_else_accepted_is_taken():
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
        with client:
            client.sendall(b"x")
            transport, protocol = await loop.connect_accepted_socket(Recorder, accepted)
            await protocol.until(lambda: protocol.received)
            transport.close()
            await protocol.lost()

    assert b"x" == protocol.received
    assert transport.is_closing()
