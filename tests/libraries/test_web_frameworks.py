# SPDX-License-Identifier: Apache-2.0
"""FastAPI and Django under uvicorn with our loop: 200 slow requests at once, none answered before the last has come.

Started as a user would, by ``gossamer run`` and by plain ``python``.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from web import LONGEST, WAYS, get_all, uvicorn

pytest.importorskip("uvicorn")

REQUESTS = 200
MOST_OS_THREADS = 12
DOCUMENTATION = Path(__file__).resolve().parents[2] / "docs" / "django.md"
# No query that runs, but who has asked for the gate and does not have it.
AT_GATE = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
OTHERS = "SELECT count(*) FROM pg_stat_activity WHERE datname IS NOT NULL AND pid <> pg_backend_pid()"

both_ways = pytest.mark.parametrize("way", WAYS)


@both_ways
def test_requests_in_an_async_handler_of_fastapi(way, http_server):
    """The backend answers nobody before all 200 requests wait there."""
    pytest.importorskip("fastapi")
    pytest.importorskip("requests")
    paths = [f"{number}?crowd={REQUESTS}" for number in range(REQUESTS)]

    with uvicorn(way, "fastapi_app:app", BACKEND=http_server) as port:
        answers = [json.loads(body) for _status, body in get_all(port, paths)]

    assert [f"/{number}" for number in range(REQUESTS)] == [answer["text"] for answer in answers]
    assert max(answer["os_threads"] for answer in answers) <= MOST_OS_THREADS


class Database:
    """The tests' own connection to the server."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def ask(self, query: str) -> Any:
        return self.connection.execute(query).fetchone()[0]

    def wait_until(self, query: str, expected: object) -> None:
        deadline = time.monotonic() + LONGEST
        while (answer := self.ask(query)) != expected:
            assert time.monotonic() < deadline, f"{query} is {answer}"
            time.sleep(0.01)

    @contextmanager
    def closed_gate(self) -> Iterator[None]:
        self.ask("SELECT pg_advisory_lock(1)")
        try:
            yield
        finally:
            self.ask("SELECT pg_advisory_unlock(1)")


@pytest.fixture
def database(postgres_server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A connection to a server that has an empty table of notes."""
    monkeypatch.setenv("PSYCOPG_IMPL", "python")
    psycopg = pytest.importorskip("psycopg", reason="psycopg finds no libpq", exc_type=ImportError)
    with psycopg.connect(f"host=127.0.0.1 port={postgres_server} user=postgres", autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS notes")
        connection.execute("CREATE TABLE notes (id bigserial PRIMARY KEY, text text)")
        yield Database(connection)


@contextmanager
def django(way: str, database: Database, folder: Path) -> Iterator[int]:
    """Serve the Django application, with the module that the documentation shows."""
    pytest.importorskip("django")
    (module,) = re.findall(r"^```python\n(.*?)^```", DOCUMENTATION.read_text(), re.MULTILINE | re.DOTALL)
    (folder / "task_connections.py").write_text(module)
    options = {"folder": folder, "POSTGRES_PORT": database.connection.info.port}
    with uvicorn(way, "django_app:application", "--lifespan=off", **options) as port:
        yield port


@pytest.mark.parametrize(
    ("way", "view"), [("gossamer run", "write"), ("python", "write"), ("gossamer run", "write_plainly")]
)
def test_django_views_have_transactions_of_their_own(way, view, database, tmp_path):
    """200 transactions have each written a note before the first of them goes on; what the odd ones undo is gone."""
    paths = [f"{view}/{number}" for number in range(REQUESTS)]

    with django(way, database, tmp_path) as port, ThreadPoolExecutor(1) as pool:
        with database.closed_gate():
            answers = pool.submit(get_all, port, paths)
            database.wait_until(AT_GATE, REQUESTS)

        assert [(200, str(number % 2 == 0)) for number in range(REQUESTS)] == answers.result()


@both_ways
def test_tasks_of_a_django_view_have_connections_of_their_own(way, database, tmp_path):
    with django(way, database, tmp_path) as port:
        assert [(200, "2 connections, ['kept']")] == get_all(port, ["overlap"])


def test_the_end_of_a_task_closes_its_connection_of_django(database, tmp_path):
    with django("gossamer run", database, tmp_path) as port:
        get_all(port, ["overlap"])

        database.wait_until(OTHERS, 0)


def test_a_client_that_goes_away_cancels_its_view_in_a_query(database, tmp_path):
    with django("gossamer run", database, tmp_path) as port, database.closed_gate():
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /write/0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            database.wait_until(AT_GATE, 1)

        database.wait_until(OTHERS, 0)

    assert 0 == database.ask("SELECT count(*) FROM notes")
