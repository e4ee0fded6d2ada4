# SPDX-License-Identifier: Apache-2.0
"""TLS: what happens once in a connection's life. The rest is C++ (``src/loop/tls_transport.hpp``).

What happens when is asyncio's own (``asyncio.sslproto``), but where that loses data or never ends.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio import constants
from asyncio import sslproto as _sslproto
from asyncio import transports as _transports
from asyncio.log import logger
from typing import TYPE_CHECKING, Any

from gossamer import _core

if TYPE_CHECKING:
    from gossamer._event_loop import EventLoop

# Of these, names are used that are asyncio's own, and that type checkers do not know.
sslproto: Any = _sslproto
transports: Any = _transports

_core.adopt_tls(transports._FlowControlMixin, ssl.SSLError, ssl.SSLWantReadError, ssl.SSLSyscallError)

# What these do but for calling the object's _ssl._SSLSocket, unless somebody patches them: nothing.
_READ, _WRITE, _UNWRAP = ssl.SSLObject.read, ssl.SSLObject.write, ssl.SSLObject.unwrap
_DO_HANDSHAKE = ssl.SSLObject.do_handshake


def _is_thin(ssl_object: Any) -> bool:
    """Return whether the calls of an SSL object can go to what it calls itself."""
    its = type(ssl_object)
    return (
        its is ssl.SSLObject
        and its.read is _READ
        and its.write is _WRITE
        and its.do_handshake is _DO_HANDSHAKE
        and its.unwrap is _UNWRAP
    )


def _positive(name: str, seconds: float | None, default: float) -> float:
    if seconds is None:
        return default
    if seconds <= 0:
        raise ValueError(f"{name} should be a positive number, got {seconds}")
    return seconds


class SSLTransport(_core.TlsTransportBase, sslproto._SSLProtocolTransport, sslproto.SSLProtocol):  # type: ignore[misc]
    """A TLS connection: the protocol of the transport below it, and the transport of the protocol above.

    Of asyncio's two classes nothing but their names is used: programs ask for them with isinstance, or whether there
    is "ssl" in the name of a transport's class.
    """

    _handshake_timer: asyncio.TimerHandle | None = None
    _shutdown_timer: asyncio.TimerHandle | None = None
    _handshake_start: float | None = None

    def __init__(
        self,
        loop: EventLoop,
        protocol: asyncio.BaseProtocol,
        context: ssl.SSLContext | None,
        waiter: asyncio.Future[None] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        has_protocol_begun: bool = False,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        self._handshake_timeout = _positive(
            "ssl_handshake_timeout", ssl_handshake_timeout, constants.SSL_HANDSHAKE_TIMEOUT
        )
        self._shutdown_timeout = _positive("ssl_shutdown_timeout", ssl_shutdown_timeout, constants.SSL_SHUTDOWN_TIMEOUT)
        if not context:
            context = sslproto._create_transport_context(server_side, server_hostname)
        hostname = server_hostname if server_hostname and not server_side else None
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        ssl_object: Any = context.wrap_bio(incoming, outgoing, server_side=server_side, server_hostname=hostname)
        is_thin = _is_thin(ssl_object)
        self._loop = loop
        self._waiter = waiter
        self._sslobj = ssl_object
        self._sslcontext = context
        self._server_hostname = hostname
        self._extra = {"sslcontext": context}
        callee = ssl_object._sslobj if is_thin else ssl_object
        self._open(loop, protocol, callee, is_thin, incoming, outgoing, has_protocol_begun)

    # asyncio has two objects.
    _app_transport = _ssl_protocol = property(lambda self: self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known of the connection, TLS's own or that of the transport below."""
        if name in self._extra:
            return self._extra[name]
        below = self._transport
        return default if below is None else below.get_extra_info(name, default)

    _get_extra_info = get_extra_info

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks of flow control for writing, in bytes."""
        self._set_write_limits(
            *sslproto.add_flowcontrol_defaults(high, low, constants.FLOW_CONTROL_HIGH_WATER_SSL_WRITE)
        )

    def set_read_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks of flow control for reading, in encrypted bytes."""
        self._set_read_limits(*sslproto.add_flowcontrol_defaults(high, low, constants.FLOW_CONTROL_HIGH_WATER_SSL_READ))

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        self._force_close(None)

    def _force_close(self, error: BaseException | None) -> None:
        self._closed = True
        self._abort(error)

    # --- The protocol of the transport below ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        if self._closed:  # before there was anything to close
            transport._force_close(None)  # type: ignore[attr-defined]
            return
        if self._loop.get_debug():
            logger.debug("%r starts SSL handshake", self)
            self._handshake_start = self._loop.time()
        self._handshake_timer = self._loop.call_later(self._handshake_timeout, self._check_handshake_timeout)
        self._begin_handshake(transport)

    def connection_lost(self, error: BaseException | None) -> None:
        """Tell the protocol above, and whoever waits for the handshake."""
        protocol = self._lose()
        self._stop_timers()
        self._wake_waiter(error)
        if protocol is not None:
            protocol.connection_lost(error)

    def eof_received(self) -> bool:
        """End TLS too; return whether the transport below has to stay open for that."""
        if self._loop.get_debug():
            logger.debug("%r received EOF", self)
        try:
            return self._reach_eof()
        except Exception:
            self._transport.close()
            raise

    # --- Called from C++, by name, and by timers ---

    def _check_handshake_timeout(self) -> None:
        if self._state == "DO_HANDSHAKE":
            self._fatal_error(
                ConnectionAbortedError(
                    f"SSL handshake is taking longer than {self._handshake_timeout} seconds: aborting the connection"
                )
            )

    def _on_handshake_complete(self, error: Any) -> None:
        self._stop_timers()
        self._end_handshake(error is None)
        try:
            if error is not None:
                raise error
            peer_certificate = self._sslobj.getpeercert()
        except Exception as failure:
            error = None  # which would refer to this frame
            self._end_handshake(False)
            on_certificate = " on verifying the certificate" if isinstance(failure, ssl.CertificateError) else ""
            self._fatal_error(failure, f"SSL handshake failed{on_certificate}")
            self._wake_waiter(failure)
            return
        if self._handshake_start is not None:
            took = self._loop.time() - self._handshake_start
            logger.debug("%r: SSL handshake took %.1f ms", self, took * 1e3)
        self._extra.update(
            peercert=peer_certificate,
            cipher=self._sslobj.cipher(),
            compression=self._sslobj.compression(),
            ssl_object=self._sslobj,
        )
        protocol = self._note_made()
        if protocol is None:  # start_tls(): who waits for it is to have the new transport before the data comes
            self._wake_waiter()
            self._loop.call_soon(self._do_read)
        else:
            protocol.connection_made(self)
            self._wake_waiter()
            self._do_read()

    def _start_shutdown_timer(self) -> None:
        if self._shutdown_timer is None:
            self._shutdown_timer = self._loop.call_later(self._shutdown_timeout, self._check_shutdown_timeout)

    def _check_shutdown_timeout(self) -> None:
        if self._state in ("FLUSHING", "SHUTDOWN"):
            self._transport._force_close(TimeoutError("SSL shutdown timed out"))

    def _on_shutdown_complete(self, error: BaseException | None) -> None:
        self._stop_timers()
        if error is not None:
            self._fatal_error(error)
        elif self._transport is not None:
            self._loop.call_soon(self._transport.close)

    def _fatal_error(self, error: BaseException, message: str = "Fatal error on transport") -> None:
        if self._transport is not None:
            self._transport._force_close(error)
        if isinstance(error, OSError):
            if self._loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=error)
        elif not isinstance(error, asyncio.CancelledError):
            self._loop.call_exception_handler(
                {"message": message, "exception": error, "transport": self._transport, "protocol": self}
            )

    def _report(self, error: BaseException, method: str) -> None:
        self._loop.call_exception_handler(
            {"message": f"protocol.{method}() failed", "exception": error, "transport": self, "protocol": self}
        )

    def _warn_of_lost_write(self) -> None:
        logger.warning("SSL connection is closed")

    def _warn_of_open_end(self) -> None:
        logger.warning("returning true from eof_received() has no effect when using ssl")

    # --- The ends ---

    def _wake_waiter(self, error: Any = None) -> None:
        waiter = self._waiter
        if waiter is None:
            return
        self._waiter = None
        if waiter.cancelled():
            return
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)

    def _stop_timers(self) -> None:
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
            self._handshake_timer = None
        if self._shutdown_timer is not None:
            self._shutdown_timer.cancel()
            self._shutdown_timer = None


async def start_tls(
    loop: EventLoop,
    transport: Any,
    protocol: asyncio.BaseProtocol,
    context: ssl.SSLContext,
    **options: Any,
) -> SSLTransport | None:
    """Upgrade a transport: return the one that ``protocol`` uses from now on; None: it was closed meanwhile."""
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f"sslcontext is expected to be an instance of ssl.SSLContext, got {context!r}")
    if not getattr(transport, "_start_tls_compatible", False):
        raise TypeError(f"transport {transport!r} is not supported by start_tls()")
    waiter: asyncio.Future[None] = loop.create_future()
    tls = SSLTransport(loop, protocol, context, waiter, has_protocol_begun=True, **options)
    # So that nothing comes before connection_made() was called.
    transport.pause_reading()
    if options.get("server_side"):
        _take_over_unread(protocol, tls)
    transport.set_protocol(tls)
    made = loop.call_soon(tls.connection_made, transport)
    resumed = loop.call_soon(transport.resume_reading)
    try:
        await waiter
    except BaseException:
        transport.close()
        made.cancel()
        resumed.cancel()
        raise
    return None if tls._transport is None else tls


def _take_over_unread(protocol: Any, tls: SSLTransport) -> None:
    """What came with the wish for TLS is the beginning of the handshake."""
    if isinstance(protocol, asyncio.StreamReaderProtocol):
        reader: Any = getattr(protocol, "_stream_reader", None)
        if reader is not None and reader._buffer:
            tls._incoming.write(reader._buffer)
            reader._buffer.clear()
