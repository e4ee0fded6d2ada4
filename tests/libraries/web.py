# SPDX-License-Identifier: Apache-2.0
"""uvicorn with our loop, started as a user would, and a crowd of requests to it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
LONGEST = 60  # seconds that a crowd of requests may take
WAYS = {"gossamer run": ["gossamer", "run", "-m", "uvicorn"], "python": ["uvicorn"]}


@contextmanager
def uvicorn(way: str, application: str, *options: str, folder: Path = HERE, **environment: object) -> Iterator[int]:
    """Serve the application; the port. It stops at SIGINT, and must have logged nothing but INFO."""
    command = [sys.executable, "-m", *WAYS[way], "--loop", "gossamer:new_event_loop", "--port", "0"]
    path = os.pathsep.join([str(folder), str(HERE), os.environ.get("PYTHONPATH", "")])
    variables = os.environ | {name: str(value) for name, value in environment.items()} | {"PYTHONPATH": path}
    command += ["--no-access-log", *options, application]
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as server:
        try:
            log = []
            for line in server.stderr:
                log.append(line)
                if running := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
                    yield int(running[1])
                    server.send_signal(signal.SIGINT)
            assert [] == [line for line in log if not line.startswith("INFO:")]
            assert 0 == server.wait()
        finally:
            server.kill()


def get_all(port: int, paths: list[str]) -> list[tuple[int, str]]:
    """Get each path over a connection of its own, all at once; the statuses and bodies."""

    async def get(path: str) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /{path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), body.decode()

    async def main() -> list[tuple[int, str]]:
        async with asyncio.timeout(LONGEST):
            return await asyncio.gather(*map(get, paths))

    return asyncio.run(main())
