# SPDX-License-Identifier: Apache-2.0
"""The demo's site: a small HTTP/1.1 server that holds each answer back, as a server far away would.

One process and one thread hold thousands of connections: all answers are built before the first request, so that a
request costs a dictionary look-up and a timer. Once it listens, it prints one line of JSON: its ``port``, the number of
``pages``, and the ``digest`` of what a complete crawl has to store.
"""

import argparse
import asyncio
import json
import sys

from digest import digest_of_rows
from pages import Page, build_pages

MAX_HEAD_BYTES = 64 * 1024
BACKLOG = 4096


class Answers:
    """The complete answer to each request, by path."""

    def __init__(self, pages: list[Page], failing: int) -> None:
        """``failing`` is the number of the page that answers 500: 1 is the root page, 0 is none."""
        self._by_path = {page.path.encode(): _answer(b"200 OK", page) for page in pages}
        if failing:
            self._by_path[pages[failing - 1].path.encode()] = _error(b"500 Internal Server Error")
        self._not_found = _error(b"404 Not Found")
        self._bad_request = _error(b"400 Bad Request")

    def find(self, head: bytes) -> tuple[bytes, bool]:
        """Returns the answer to a request's head, and whether the connection stays open after it."""
        request, _, fields = head.partition(b"\r\n")
        method, _, rest = request.partition(b" ")
        path, _, version = rest.partition(b" ")
        if method != b"GET" or version != b"HTTP/1.1":
            return self._bad_request, False
        return self._by_path.get(path, self._not_found), b"connection: close" not in fields.lower()


def _answer(status: bytes, page: Page) -> bytes:
    head = f"Content-Type: {page.content_type}\r\nContent-Length: {len(page.body)}\r\n\r\n"
    return b"HTTP/1.1 " + status + b"\r\n" + head.encode() + page.body


def _error(status: bytes) -> bytes:
    return _answer(status, Page("", "text/plain", status + b"\n"))


class Connection(asyncio.Protocol):
    """One connection: its requests are answered one at a time, in order, each after the delay."""

    def __init__(self, answers: Answers, delay: float) -> None:
        self._answers = answers
        self._delay = delay
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # a stream's, always
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._timer is None:
            self._start_answer()

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _start_answer(self) -> None:
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if end:
            self._received = rest
            answer, stays_open = self._answers.find(head)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._delay, self._finish_answer, answer, stays_open)
        elif len(head) > MAX_HEAD_BYTES:
            self._transport.abort()

    def _finish_answer(self, answer: bytes, stays_open: bool) -> None:
        self._timer = None
        self._transport.write(answer)
        if stays_open:
            self._start_answer()
        else:
            self._transport.close()


async def serve(pages: list[Page], *, delay: float, failing: int, until_eof: bool) -> None:
    """Serves the pages until the process ends or, with ``until_eof``, until standard input does."""
    loop = asyncio.get_running_loop()
    answers = Answers(pages, failing)
    server = await loop.create_server(lambda: Connection(answers, delay), "127.0.0.1", 0, backlog=BACKLOG)
    port = server.sockets[0].getsockname()[1]
    digest = digest_of_rows(page.row() for page in pages)
    print(json.dumps({"port": port, "pages": len(pages), "digest": digest}), flush=True)
    stopped = asyncio.Event()
    if until_eof:
        loop.add_reader(sys.stdin.fileno(), stopped.set)
    await stopped.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve the standard library as a slow web site on 127.0.0.1.")
    parser.add_argument("--pages", type=int, default=3200, help="how many pages (default: 3200)")
    parser.add_argument("--delay", type=float, default=0.5, help="seconds each answer is held back (default: 0.5)")
    parser.add_argument("--fail", type=int, default=0, metavar="N", help="make the N-th page answer 500; 1 is the root")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    arguments = parser.parse_args()
    pages = build_pages(arguments.pages)
    if not 0 <= arguments.fail <= len(pages):
        parser.error(f"--fail: there are only {len(pages)} pages")
    try:
        asyncio.run(serve(pages, delay=arguments.delay, failing=arguments.fail, until_eof=arguments.until_eof))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
