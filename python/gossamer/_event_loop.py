# SPDX-License-Identifier: Apache-2.0
"""The asyncio event loop on the hub.

What decides the speed of a loop is C++ (``src/loop``); everything else is the standard library's own: this class is an
`asyncio.SelectorEventLoop` without a selector and without a self-pipe. Descriptors are watched by the hub that runs the
loop, other threads wake the hub, and signals come by a Python handler, which the hub runs in the main virtual thread.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import selectors
import signal
import socket
import sys
import weakref
from asyncio import base_events as _base_events
from asyncio import constants, coroutines, format_helpers, trsock
from asyncio.log import logger
from collections.abc import Callable, Mapping
from contextvars import Context
from types import FrameType
from typing import Any, cast

from gossamer import _core, _run, _sendfile
from gossamer._blocking import carrier_for_our_loop, leave_carrier_of_closed_loop

# Of these, names are used that are asyncio's own, and that type checkers do not know.
base_events: Any = _base_events

_core.adopt_asyncio(
    asyncio.Handle,
    asyncio.TimerHandle,
    asyncio.Future,
    asyncio.BaseTransport,
    asyncio.BufferedProtocol,
    getattr(asyncio.events, "_ThreadSafeHandle", None),
    asyncio.SelectorEventLoop,
    socket.socket,
    asyncio.StreamReaderProtocol,
    asyncio.StreamReader,
)
_core.set_interrupt_function_of_runner(asyncio.Runner._on_sigint)  # type: ignore[attr-defined]

from gossamer._transports import (  # noqa: E402 - stands on what was just adopted
    DatagramTransport,
    ReadPipeTransport,
    SocketTransport,
    WritePipeTransport,
)

_DATAGRAM_FAMILIES = {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}


def _is_plain(sock: object) -> bool:
    """Say whether a socket sends and receives as `socket.socket` does: a class of its own may not."""
    kind = type(sock)
    if kind is socket.socket:
        return True
    names = ("recv", "recv_into", "send", "sendmsg")
    return issubclass(kind, socket.socket) and all(getattr(kind, x) is getattr(socket.socket, x) for x in names)


class _NoSelector(selectors.BaseSelector):
    """What asyncio's own code asks of a loop's selector, answered by the loop."""

    def __init__(self) -> None:
        self._loop: EventLoop | None = None

    def attach(self, loop: EventLoop) -> None:
        self._loop = loop

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        raise NotImplementedError("a Gossamer loop has no selector: use add_reader() and add_writer()")

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        raise NotImplementedError("a Gossamer loop has no selector: use remove_reader() and remove_writer()")

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        raise NotImplementedError("a Gossamer loop has no selector")

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        watched = 0 if self._loop is None else self._loop._watched(fileobj)
        if not watched:
            raise KeyError(f"{fileobj!r} is not registered")
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        return selectors.SelectorKey(fileobj, fd, watched, None)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}

    def close(self) -> None:
        self._loop = None


class _Transports(weakref.WeakValueDictionary[int, Any]):
    """Which transport uses a descriptor: ours, which the loop knows, and asyncio's own, which are in the dictionary."""

    def __init__(self, loop: EventLoop) -> None:
        super().__init__()
        self._loop = weakref.ref(loop)

    def get(self, fd: int, default: Any = None) -> Any:
        loop = self._loop()
        transport = None if loop is None else loop._transport_of(fd)
        return super().get(fd, default) if transport is None else transport

    def __getitem__(self, fd: int) -> Any:
        transport = self.get(fd)
        if transport is None:
            raise KeyError(fd)
        return transport

    def __setitem__(self, fd: int, transport: Any) -> None:
        if isinstance(transport, _core.TransportBase):
            transport._loop._show_transport(fd, transport)
        else:
            super().__setitem__(fd, transport)

    def __delitem__(self, fd: int) -> None:
        transport = self[fd]
        if isinstance(transport, _core.TransportBase):
            transport._loop._hide_transport(fd, transport)
        else:
            super().__delitem__(fd)


_loops: weakref.WeakSet[EventLoop] = weakref.WeakSet()


def running_loops() -> dict[int, EventLoop]:
    """Return the loops that run, by the identities of the virtual threads that they run in."""
    return {loop._thread_id: loop for loop in list(_loops) if loop._thread_id is not None}


class EventLoop(_core.EventLoopBase, asyncio.SelectorEventLoop):
    """An asyncio event loop that runs in a virtual thread, beside others.

    Make one with `gossamer.new_event_loop`. On an ordinary thread it enters Gossamer for as long as it runs.
    """

    # asyncio's own, which type checkers do not know.
    _thread_id: int | None
    _ssock: Any
    _csock: Any
    _internal_fds: int
    _current_handle: asyncio.Handle | None
    _transports: Any
    _signal_handlers: dict[int, asyncio.Handle]
    _ensure_fd_no_transport: Callable[[Any], None]
    _check_closed: Callable[[], None]
    _check_signal: Callable[[Any], None]
    _handle_signal: Callable[[int], None]

    def __init__(self, blocking: str | None = None) -> None:
        """Make a loop; ``blocking`` None: a blocking call in a task does what it does where the loop is run."""
        selector = _NoSelector()
        super().__init__(selector)
        selector.attach(self)
        self._transports = _Transports(self)
        self._acceptors: dict[socket.socket, _core.Acceptor] = {}
        self._blocking = blocking
        _loops.add(self)

    def _make_self_pipe(self) -> None:
        self._ssock = self._csock = None
        self._internal_fds += 1  # the hub's wake-up stands for it

    def _close_self_pipe(self) -> None:
        self._internal_fds -= 1

    def run_forever(self) -> None:
        """Run until `stop` is called. Parks the calling virtual thread while there is nothing to do."""
        with carrier_for_our_loop(self._blocking):
            super().run_forever()

    def close(self) -> None:
        """Close the loop: what is queued is forgotten."""
        super().close()
        self._forget_everything()
        leave_carrier_of_closed_loop()

    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        context: Context | None = None,
    ) -> asyncio.Transport:
        if not _is_plain(sock):
            # Whatever has methods of its own is the business of asyncio's own transport, which calls them.
            make: Callable[..., asyncio.Transport] = super()._make_socket_transport  # type: ignore[misc]
            return make(sock, protocol, waiter, extra=extra, server=server)
        self._ensure_fd_no_transport(sock)
        return SocketTransport(self, sock, protocol, waiter, extra, server, context)

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: Any,
        waiter: asyncio.Future[None] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        ssl_handshake_timeout: float | None = constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = constants.SSL_SHUTDOWN_TIMEOUT,
        context: Context | None = None,
    ) -> Any:
        self._ensure_fd_no_transport(rawsock)
        from gossamer._tls import SSLTransport  # imports ssl, which an interpreter may lack

        tls = SSLTransport(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side=server_side,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        if _is_plain(rawsock):
            SocketTransport(self, rawsock, tls, None, extra, server, context)
        else:
            self._make_socket_transport(rawsock, tls, extra=extra, server=server)
        return tls

    async def start_tls(
        self,
        transport: Any,
        protocol: asyncio.BaseProtocol,
        sslcontext: Any,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> Any:
        """Upgrade ``transport`` to TLS; return the transport that ``protocol`` uses from now on."""
        from gossamer._tls import start_tls

        return await start_tls(
            self,
            transport,
            protocol,
            sslcontext,
            server_side=server_side,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )

    def _make_datagram_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Any:
        if type(sock) is not socket.socket or sock.family not in _DATAGRAM_FAMILIES:
            make: Callable[..., Any] = super()._make_datagram_transport  # type: ignore[misc]
            return make(sock, protocol, address, waiter, extra)
        self._ensure_fd_no_transport(sock)
        return DatagramTransport(self, sock, protocol, address, waiter, extra)

    def _make_read_pipe_transport(
        self,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> asyncio.ReadTransport:
        return ReadPipeTransport(self, pipe, protocol, waiter, extra)

    def _make_write_pipe_transport(
        self,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> asyncio.WriteTransport:
        return WritePipeTransport(self, pipe, protocol, waiter, extra)

    async def _sendfile_fallback(self, transp: Any, file: Any, offset: int, count: int | None) -> int:
        if isinstance(transp, _core.TransportBase):
            return await _sendfile.send_in_pieces(self, transp, file, offset, count)
        fall_back: Any = super()._sendfile_fallback  # type: ignore[misc]
        return cast("int", await fall_back(transp, file, offset, count))

    # --- Servers ---

    def _start_serving(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        sslcontext: Any = None,
        server: Any = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = constants.SSL_SHUTDOWN_TIMEOUT,
        context: Context | None = None,
    ) -> None:
        if type(sock) is not socket.socket:
            # Whatever has methods of its own is the business of asyncio's own code.
            start: Callable[..., None] = super()._start_serving  # type: ignore[misc]
            timeouts = ssl_handshake_timeout, ssl_shutdown_timeout
            start(protocol_factory, sock, sslcontext, server, backlog, *timeouts, **_given(context))
            return

        def accept_tls(connection: socket.socket, peername: Any, own_context: Context | None) -> None:
            protocol = protocol_factory()
            self._make_ssl_transport(
                connection,
                protocol,
                sslcontext,
                self._waiter_that_notes(protocol) if self.get_debug() else None,
                server_side=True,
                extra={"peername": peername},
                server=server,
                ssl_handshake_timeout=ssl_handshake_timeout,
                ssl_shutdown_timeout=ssl_shutdown_timeout,
                context=own_context,
            )

        self._stop_accepting(sock)
        self._acceptors[sock] = self._accept_on(
            sock, protocol_factory, server, backlog, context, accept_tls if sslcontext else None
        )

    def _waiter_that_notes(self, protocol: asyncio.BaseProtocol) -> asyncio.Future[None]:
        """Return what a handshake that fails is told to the exception handler by."""

        def note(waiter: asyncio.Future[None]) -> None:
            error = waiter.exception()
            if error is not None:
                self._note_refused_connection(error, protocol)

        waiter = self.create_future()
        waiter.add_done_callback(note)
        return waiter

    def _stop_serving(self, sock: socket.socket) -> None:
        self._stop_accepting(sock)
        super()._stop_serving(sock)  # type: ignore[misc]

    def _stop_accepting(self, sock: socket.socket) -> None:
        acceptor = self._acceptors.pop(sock, None)
        if acceptor is not None:
            acceptor.stop()

    # --- Called from C++, by name ---

    def _resume_accepting_later(self, acceptor: _core.Acceptor) -> None:
        self.call_later(constants.ACCEPT_RETRY_DELAY, acceptor.resume)

    def _report_accept_error(self, message: str, error: OSError, sock: socket.socket) -> None:
        self.call_exception_handler({"message": message, "exception": error, "socket": trsock.TransportSocket(sock)})

    def _note_connection(self, server: Any, peername: Any, connection: socket.socket) -> None:
        logger.debug("%r got a new connection from %r: %r", server, peername, connection)

    def _note_refused_connection(self, error: BaseException, protocol: asyncio.BaseProtocol | None) -> None:
        if not self.get_debug():
            return
        context = {"message": "Error on transport creation for incoming connection", "exception": error}
        if protocol is not None:
            context["protocol"] = protocol
        self.call_exception_handler(context)

    def _run_debugging(self, handle: asyncio.Handle | None) -> None:
        self._current_handle = handle
        try:
            start = self.time()
            cast("asyncio.Handle", handle)._run()
            duration = self.time() - start
            if duration >= self.slow_callback_duration:
                logger.warning("Executing %s took %.3f seconds", base_events._format_handle(handle), duration)
        finally:
            self._current_handle = None
            handle = None  # a traceback that keeps this frame does not keep what was called

    def _report_callback_error(self, handle: Any, error: BaseException) -> None:
        callback = format_helpers._format_callback_source(handle._callback, handle._args)
        context = {"message": f"Exception in callback {callback}", "exception": error, "handle": handle}
        if handle._source_traceback:
            context["source_traceback"] = handle._source_traceback
        self.call_exception_handler(context)

    def _report_turn_error(self, owner: Any, error: BaseException) -> None:
        self.call_exception_handler({"message": f"Exception in {owner!r}", "exception": error})

    def _trace_of_caller(self) -> Any:
        return format_helpers.extract_stack(sys._getframe(1))

    # --- Signals ---

    def add_signal_handler[*Ts](self, sig: int, callback: Callable[[*Ts], Any], *args: *Ts) -> None:
        """Call ``callback(*args)`` in the loop after the signal ``sig``.

        Raises:
            ValueError: There is no such signal.
            RuntimeError: It cannot be caught, or this is not the main thread.
        """
        if coroutines.iscoroutine(callback) or inspect.iscoroutinefunction(callback):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        self._check_signal(sig)
        self._check_closed()
        handle = asyncio.Handle(callback, args, self, None)
        try:
            signal.signal(sig, self._note_signal)
            signal.siginterrupt(sig, False)
        except ValueError as error:
            raise RuntimeError(str(error)) from None
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise RuntimeError(f"sig {sig} cannot be caught") from None
            raise
        self._signal_handlers[sig] = handle

    def _note_signal(self, sig: int, _frame: FrameType | None) -> None:
        self._handle_signal(sig)

    def remove_signal_handler(self, sig: int) -> bool:
        """Take a signal's handler back; return whether there was one."""
        self._check_signal(sig)
        if self._signal_handlers.pop(sig, None) is None:
            return False
        try:
            signal.signal(sig, signal.default_int_handler if sig == signal.SIGINT else signal.SIG_DFL)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise RuntimeError(f"sig {sig} cannot be caught") from None
            raise
        return True


def _given(context: Context | None) -> dict[str, Context]:
    """Return the argument ``context``, if there is one: not every version's methods have it."""
    return {} if context is None else {"context": context}


def new_event_loop(*, blocking: str = "park") -> EventLoop:
    """Return a new event loop on the hub, for ``asyncio.Runner(loop_factory=...)`` or ``asyncio.run``.

    Args:
        blocking: What a blocking call in a task of the loop does, see `blocking_in_tasks`: "park", "block" or "error".

    Raises:
        ValueError: It is none of them.
    """
    if blocking not in _run.BLOCKING:
        raise ValueError(f"blocking={blocking!r} is none of {', '.join(map(repr, _run.BLOCKING))}")
    return EventLoop(blocking)
