# SPDX-License-Identifier: Apache-2.0
"""The demo's site serves the same pages each time, slowly, to many clients at once."""

import http.client
import re
import socket
import time
from collections import Counter

import pytest
from pages import build_pages

REQUEST = b"GET %s HTTP/1.1\r\nHost: here\r\n\r\n"


def receive_until(connection: socket.socket, end: bytes) -> bytes:
    received = b""
    while not received.endswith(end) and (data := connection.recv(65536)):
        received += data
    return received


@pytest.mark.parametrize("count", [1, 3, 60, 500])
def test_there_are_exactly_as_many_pages_as_asked_for(count):
    pages = build_pages(count)

    assert count == len({page.path for page in pages})


def test_the_same_installation_gives_the_same_pages():
    assert build_pages(500) == build_pages(500)


def test_every_page_is_at_most_two_steps_from_the_root():
    pages = {page.path: page for page in build_pages(500)}
    reached, fresh = set(), {"/"}

    for _ in range(2):
        reached |= fresh
        links = [re.findall(rb'href="([^"]+)"', pages[path].body) for path in fresh if pages[path].links]
        fresh = {link.decode() for page_links in links for link in page_links} - reached

    assert set(pages) == reached | fresh


def test_only_index_pages_have_links():
    kinds = Counter((page.path.endswith("/"), "html" in page.content_type, page.links > 0) for page in build_pages(500))

    assert {(True, True, True), (False, False, False)} == set(kinds)


def test_an_answer_is_held_back_for_the_delay(start_site):
    site = start_site(pages=10, delay=0.2)
    client = http.client.HTTPConnection("127.0.0.1", site.port, timeout=30)

    start = time.monotonic()
    client.request("GET", "/")
    client.getresponse().read()

    assert time.monotonic() - start >= 0.2
    client.close()


def test_a_connection_serves_one_request_after_the_other(start_site):
    site = start_site(pages=10, delay=0.01)
    client = http.client.HTTPConnection("127.0.0.1", site.port, timeout=30)
    client.connect()
    first_socket = client.sock

    statuses = []
    for path in ("/", "/stdlib/", "/no-such-page"):
        client.request("GET", path)
        response = client.getresponse()
        response.read()
        statuses.append(response.status)

    assert [200, 200, 404] == statuses
    assert first_socket is client.sock
    client.close()


def test_requests_sent_at_once_are_answered_in_order(start_site):
    site = start_site(pages=10, delay=0.01)

    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as connection:
        connection.sendall(REQUEST % b"/" + REQUEST % b"/no-such-page" + REQUEST % b"/stdlib/")
        connection.sendall(b"POST / HTTP/1.1\r\n\r\n")
        received = receive_until(connection, b"400 Bad Request\n")

    assert [b"200", b"404", b"200", b"400"] == re.findall(rb"^HTTP/1.1 (\d+)", received, re.MULTILINE)


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.0\r\n\r\n", b"GET /x HTTP/1.1\r\nConnection: close\r\n\r\n", b"\r\n\r\n"]
)
def test_the_site_closes_after_an_answer_that_is_the_last(start_site, head):
    site = start_site(pages=10, delay=0.01)

    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as connection:
        connection.sendall(head)
        received = receive_until(connection, b"never")  # until the end of the stream

    assert received.startswith(b"HTTP/1.1 4")


def test_two_hundred_clients_wait_at_the_same_time(start_site):
    site = start_site(pages=10, delay=0.2)
    clients = [socket.create_connection(("127.0.0.1", site.port), timeout=30) for _ in range(200)]

    start = time.monotonic()
    for client in clients:
        client.sendall(REQUEST % b"/no-such-page")
    answers = {receive_until(client, b"404 Not Found\n")[:12] for client in clients}
    seconds = time.monotonic() - start

    assert {b"HTTP/1.1 404"} == answers
    assert seconds < 200 * 0.2 / 4  # one after the other would take 40 seconds
    for client in clients:
        client.close()


def test_the_site_ends_when_its_standard_input_does(start_site):
    site = start_site(pages=10, delay=0.01)

    site.process.stdin.close()

    assert 0 == site.process.wait(timeout=30)
