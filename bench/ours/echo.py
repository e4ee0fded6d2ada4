# SPDX-License-Identifier: Apache-2.0
"""An echo server as anyone would write it: a thread for each connection. Prints its port and serves until it is
killed.
"""

import socket
import threading


def serve(connection: socket.socket) -> None:
    """Send back what comes until the other side closes."""
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def main() -> None:
    """Accept for ever."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _address = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


main()
