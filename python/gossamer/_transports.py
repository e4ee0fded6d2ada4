# SPDX-License-Identifier: Apache-2.0
"""Transports: what happens rarely. The rest is C++ (``src/loop/transport_base.hpp``)."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
import warnings
from asyncio import constants, trsock
from asyncio.log import logger
from collections.abc import Callable
from contextvars import Context
from typing import Any

from gossamer import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gossamer._event_loop import EventLoop

_RETRY_DELAY = 0.001  # seconds, where the kernel does not tell when it takes a datagram
_SERVER_WANTS_TRANSPORTS = sys.version_info >= (3, 13)


class _Transport(_core.TransportBase):
    """What all of them have."""

    __slots__ = ()

    def __repr__(self) -> str:
        words = [type(self).__name__]
        if self._file is None:
            words.append("closed")
        elif self._closing:
            words.append("closing")
        words.append(f"fd={self._fileno}")
        return f"<{' '.join([*words, *self._states()])}>"

    def _states(self) -> list[str]:
        """Return what its text says of a transport at the end."""
        if self._file is None:
            return []
        size = self.get_write_buffer_size()
        return [
            "read=polling" if self.is_reading() else "read=idle",
            f"write=<{'polling' if size else 'idle'}, bufsize={size}>",
        ]

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if self._file is not None:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self._file.close()
            server = self._server
            if server is not None:
                server._detach(*([self] if _SERVER_WANTS_TRANSPORTS else []))

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        self._force_close(None)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks of flow control, in bytes."""
        if high is None:
            high = 64 * 1024 if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._set_limits(high, low)

    # --- Called from C++, by name ---

    def _warn_of_lost_write(self) -> None:
        logger.warning("socket.send() raised exception.")

    def _fatal_error(self, error: BaseException, message: str = "Fatal error on transport") -> None:
        if isinstance(error, OSError):
            if self._loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=error)
        else:
            self._report(error, message)
        self._force_close(error)

    def _report(self, error: BaseException, message: str) -> None:
        self._loop.call_exception_handler(
            {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
        )


class SocketTransport(_Transport, _core.SocketTransportBase, asyncio.Transport):
    """A connected stream socket."""

    # With a dictionary only once somebody sets an attribute of his own: without, calls of methods are specialised.
    __slots__ = ("__dict__", "__weakref__")
    _start_tls_compatible = True
    _sendfile_compatible = constants._SendfileMode.TRY_NATIVE

    def __init__(
        self,
        loop: EventLoop,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        context: Context | None = None,
    ) -> None:
        super().__init__(extra)
        self._open(loop, sock, protocol, waiter, server, context)

    def can_write_eof(self) -> bool:
        """Return True: the sending half can be closed alone."""
        return True

    def write_eof(self) -> None:
        """Close the sending half once everything is sent."""
        if self._closing or self._eof:
            return
        self._eof = True
        if not self.get_write_buffer_size():
            self._note_sent()
            self._sock.shutdown(socket.SHUT_WR)

    # --- What base_events' sendfile asks of a transport ---

    def _make_empty_waiter(self) -> asyncio.Future[None]:
        if self._empty_waiter is not None:
            raise RuntimeError("Empty waiter is already set")
        waiter: asyncio.Future[None] = self._loop.create_future()
        if not self.get_write_buffer_size():
            waiter.set_result(None)
        self._empty_waiter = waiter
        return waiter

    def _reset_empty_waiter(self) -> None:
        self._empty_waiter = None

    # --- Called from C++, by name ---

    def _become_empty(self) -> None:
        if self._empty_waiter is not None:
            self._empty_waiter.set_result(None)
        if self._closing:
            if not self._conn_lost:  # resume_writing() may have aborted it
                self._call_connection_lost(None)
        elif self._eof:
            self._sock.shutdown(socket.SHUT_WR)

    def _fatal_error(self, error: BaseException, message: str = "Fatal error on transport") -> None:
        if self._empty_waiter is not None and not self._empty_waiter.done():
            self._empty_waiter.set_exception(error)
        super()._fatal_error(error, message)


class DatagramTransport(_Transport, _core.DatagramTransportBase, asyncio.Transport, asyncio.DatagramTransport):
    """A datagram socket."""

    def __init__(
        self,
        loop: EventLoop,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(extra)
        self._open(loop, sock, protocol, address, waiter)

    def _retry_later(self) -> None:
        self._loop.call_later(_RETRY_DELAY, self._retry)


def _state_of_pipe(transport: _core.TransportBase, is_polling: bool) -> str:
    if transport._file is None:
        return "closed"
    if transport._loop.is_closed():
        return "open"
    return "polling" if is_polling else "idle"


class _PipeTransport(_Transport):
    """One end of a pipe."""

    __slots__ = ()
    if TYPE_CHECKING:
        _open: Callable[..., None]  # of the other base class

    def __init__(
        self,
        loop: EventLoop,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(extra)
        self._open(loop, pipe, protocol, waiter)


class ReadPipeTransport(_PipeTransport, _core.ReadPipeTransportBase, asyncio.ReadTransport):
    """The reading end of a pipe."""

    def _states(self) -> list[str]:
        return [_state_of_pipe(self, self.is_reading())]

    def _fatal_error(self, error: BaseException, message: str = "Fatal error on pipe transport") -> None:
        if isinstance(error, OSError) and error.errno != errno.EIO:  # which is how a terminal ends
            self._report(error, message)
        super()._fatal_error(error, message)


class WritePipeTransport(_PipeTransport, _core.WritePipeTransportBase, asyncio.Transport):
    """The writing end of a pipe."""

    def _states(self) -> list[str]:
        size = self.get_write_buffer_size()
        state = _state_of_pipe(self, size > 0)
        return [state] if state in ("open", "closed") else [state, f"bufsize={size}"]

    def can_write_eof(self) -> bool:
        """Return True."""
        return True

    def _warn_of_lost_write(self) -> None:
        logger.warning("pipe closed by peer or os.write(pipe, data) raised exception.")


_core.adopt_transports(SocketTransport, trsock.TransportSocket)
