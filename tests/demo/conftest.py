# SPDX-License-Identifier: Apache-2.0
"""Sites and crawls as child processes; every one of them is ended with its test."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
CRAWLER = ROOT / "examples" / "crawl.py"
sys.path.append(str(DEMO))  # last, because it has a module named `site`

from digest import digest_of_rows  # noqa: E402


@dataclass
class RunningSite:
    """A site in a child process, and what it announced."""

    process: subprocess.Popen
    port: int
    pages: int
    digest: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


@dataclass
class FinishedCrawl:
    """What a crawl exited with, wrote and stored; the rows have paths for URLs."""

    exit_code: int
    output: str
    errors: str
    rows: list[tuple]

    @property
    def digest(self) -> str:
        return digest_of_rows(self.rows)


@pytest.fixture
def start_site() -> Iterator[Callable[..., RunningSite]]:
    """A function that starts a site with the options given, e.g. ``start_site(pages=60, delay=0.01)``."""
    with ExitStack() as processes:

        def start(**options: float) -> RunningSite:
            command = [sys.executable, str(DEMO / "site.py"), "--until-eof"]
            command += [f"--{name}={value}" for name, value in options.items()]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            processes.enter_context(process)
            processes.callback(process.kill)
            return RunningSite(process, **json.loads(process.stdout.readline()))

        yield start


@pytest.fixture
def crawl(tmp_path: Path) -> Callable[..., FinishedCrawl]:
    """A function that crawls from a URL with 8 threads of plain Python."""
    pytest.importorskip("requests")

    def run(url: str) -> FinishedCrawl:
        database = tmp_path / "crawl.db"
        command = [sys.executable, str(CRAWLER), url, "--threads", "8", "--db", str(database)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        with closing(sqlite3.connect(database)) as connection:
            rows = connection.execute("SELECT url, status, size, sha256, links FROM pages").fetchall()
        stored = [("/" + address.removeprefix(url), *rest) for address, *rest in rows]
        return FinishedCrawl(result.returncode, result.stdout, result.stderr, stored)

    return run
