# SPDX-License-Identifier: Apache-2.0
"""The load of the TLS row, as echo_load.cpp is of the others: tls_load.py CONNECTIONS BYTES SLICES SLICE_MS PORT:PID...

In a slice each connection sends and receives by turns; with 0 bytes a message, an operation is a new connection, with
its handshake and one byte each way. The servers take turns in slices, in alternating order. Prints a JSON list with an
object for each server.
"""

import json
import socket
import ssl
import sys
import time


class Load:
    """The connections to one server, and what was counted."""

    def __init__(self, port: int, pid: int, connections: int, size: int) -> None:
        self._port = port
        self._context = ssl.create_default_context()
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        self._sockets = [self._connect() for _ in range(connections if size else 0)]
        self._message = bytes(size)
        self._clock = ~pid << 3 | 2  # the CPU clock of a process: clock_getcpuclockid(3)
        self.figures = {"operations": 0, "wall_ns": 0, "cpu_ns": 0}
        self._round()

    def _connect(self) -> ssl.SSLSocket:
        sock = self._context.wrap_socket(socket.create_connection(("127.0.0.1", self._port)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _round(self) -> int:
        if not self._sockets:
            with self._connect() as sock:
                sock.sendall(b"1")
                sock.recv(1)
            return 1
        for sock in self._sockets:
            sock.sendall(self._message)
        for sock in self._sockets:
            left = len(self._message)
            while left:
                left -= len(sock.recv(left))
        return len(self._sockets)

    def run_slice(self, milliseconds: int) -> None:
        """Send and receive for so long."""
        wall, cpu = time.monotonic_ns(), time.clock_gettime_ns(self._clock)
        while time.monotonic_ns() - wall < milliseconds * 1_000_000:
            self.figures["operations"] += self._round()
        self.figures["wall_ns"] += time.monotonic_ns() - wall
        self.figures["cpu_ns"] += time.clock_gettime_ns(self._clock) - cpu


def main() -> None:
    """Run the command line."""
    connections, size, slices, milliseconds = map(int, sys.argv[1:5])
    servers = [server.split(":") for server in sys.argv[5:]]
    loads = [Load(int(port), int(pid), connections, size) for port, pid in servers]
    for number in range(slices):
        for load in loads if number % 2 == 0 else reversed(loads):
            load.run_slice(milliseconds)
    print(json.dumps([load.figures for load in loads]))


main()
