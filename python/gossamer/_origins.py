# SPDX-License-Identifier: Apache-2.0
"""The lines of a test that open a file or a socket, and that start a thread.

An audit hook notes them (PEP 578), which the interpreter cannot take off again: it is there from the first test inside
Gossamer on, and does nothing between tests.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import weakref
from typing import Any

from gossamer._dump import is_of_program


class Origins:
    """What was opened and started since the last `forget`, and by which line."""

    def __init__(self) -> None:
        self._of_path: dict[str, str] = {}
        self._of_socket: list[tuple[weakref.ref[socket.socket], str]] = []
        self._of_thread: weakref.WeakKeyDictionary[threading.Thread, str] = weakref.WeakKeyDictionary()

    def forget(self) -> None:
        """Begin anew."""
        self.__init__()  # type: ignore[misc]

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Called for each audit event."""
        if event == "open":
            if isinstance(arguments[0], str | bytes):
                self._of_path[os.path.abspath(os.fsdecode(arguments[0]))] = _line()
        elif event == "socket.__new__":
            self._of_socket.append((weakref.ref(arguments[0]), _line()))
        else:
            thread = getattr(arguments[0], "__self__", None)
            if isinstance(thread, threading.Thread):
                self._of_thread[thread] = _line()

    def of_descriptor(self, number: int, target: str) -> str:
        """Where an open descriptor is from, "" where that is not known."""
        for reference, line in self._of_socket:
            known = reference()
            if known is not None and known.fileno() == number:
                return line
        return next((line for path, line in self._of_path.items() if os.path.realpath(path) == target), "")

    def of_thread(self, ident: int) -> str:
        """Where a thread was started, "" where that is not known."""
        thread = threading._active.get(ident)  # type: ignore[attr-defined]
        return "" if thread is None else self._of_thread.get(thread, "")


def _line() -> str:
    frame: Any = sys._getframe(2)
    while frame is not None:
        if is_of_program(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return ""


_EVENTS = frozenset(("open", "socket.__new__", "_thread.start_new_thread", "_thread.start_joinable_thread"))
_current: Origins | None = None
_is_hooked = False


def note_in(origins: Origins | None) -> None:
    """Have what is opened and started from now on noted in ``origins``; None: not at all."""
    global _current, _is_hooked
    _current = origins
    if not _is_hooked:
        _is_hooked = True
        sys.addaudithook(_note)


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    origins = _current
    if origins is not None and event in _EVENTS:
        origins.note(event, arguments)
