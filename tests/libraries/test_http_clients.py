# SPDX-License-Identifier: Apache-2.0
"""HTTP clients from the package index as they are, 500 calls at a time on one OS thread.

No answer leaves the server before 500 requests (or as many as the client's pool has connections) wait there, so a
program that ends has had that many in flight at once.
"""

import pytest

CALLS = 500


def peak(http_server: str) -> tuple[int, int, int]:
    """The most requests that the server held at once, how many it served, and over how many connections."""
    from urllib.request import urlopen

    with urlopen(f"{http_server}/peak") as answer:
        held, served, connections = answer.read().split()
    return int(held), int(served), int(connections) - 1


def test_requests_without_a_session(run_program, http_server):
    pytest.importorskip("requests")

    facts = run_program(
        """
        import requests
        server, count = sys.argv[1], int(sys.argv[2])
        answers = at_once(count, lambda index: requests.get(f"{server}/{index}?crowd={count}", timeout=60).text)
        report(right=answers == [f"/{index}" for index in range(count)])
        """,
        http_server,
        CALLS,
    )

    assert {"right": True} == facts
    assert (CALLS, CALLS, CALLS) == peak(http_server)


def test_requests_share_a_session(run_program, http_server):
    pytest.importorskip("requests")

    facts = run_program(
        """
        import requests
        server, count = sys.argv[1], int(sys.argv[2])
        session = requests.Session()
        session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=count))
        def call(index):
            return [session.get(f"{server}/{index}/{turn}?crowd={count}", timeout=60).text for turn in range(3)]
        answers = at_once(count, call)
        report(right=answers == [[f"/{index}/{turn}" for turn in range(3)] for index in range(count)])
        session.close()
        """,
        http_server,
        CALLS,
    )

    assert {"right": True} == facts
    assert (CALLS, 3 * CALLS, CALLS) == peak(http_server)


@pytest.mark.parametrize(("connections", "block"), [(CALLS, False), (20, True)])
def test_urllib3_shares_a_pool(connections, block, run_program, http_server):
    pytest.importorskip("urllib3")

    facts = run_program(
        """
        import urllib3
        server, count, connections, block = sys.argv[1], *map(int, sys.argv[2:])
        with urllib3.PoolManager(maxsize=connections, block=bool(block), timeout=60) as pool:
            answers = at_once(
                count, lambda index: pool.request("GET", f"{server}/{index}?crowd={connections}").data.decode()
            )
        report(right=answers == [f"/{index}" for index in range(count)])
        """,
        http_server,
        CALLS,
        connections,
        int(block),
    )

    assert {"right": True} == facts
    assert (connections, CALLS, connections) == peak(http_server)


@pytest.mark.parametrize("connections", [CALLS, 20])
def test_httpx_shares_a_client(connections, run_program, http_server):
    pytest.importorskip("httpx")

    facts = run_program(
        """
        import httpx
        server, count, connections = sys.argv[1], *map(int, sys.argv[2:])
        limits = httpx.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=None
        )
        with httpx.Client(limits=limits, timeout=60) as client:
            answers = at_once(count, lambda index: client.get(f"{server}/{index}?crowd={connections}").text)
        report(right=answers == [f"/{index}" for index in range(count)])
        """,
        http_server,
        CALLS,
        connections,
    )

    assert {"right": True} == facts
    most_at_once, answered, opened = peak(http_server)
    assert (connections, CALLS) == (most_at_once, answered)
    assert connections <= opened < CALLS + (connections == CALLS)  # httpcore may replace one that it finds closing


def test_urllib_of_the_standard_library(run_program, http_server):
    facts = run_program(
        """
        from urllib.request import urlopen
        server, count = sys.argv[1], int(sys.argv[2])
        def call(index):
            with urlopen(f"{server}/{index}?crowd={count}", timeout=60) as answer:
                return answer.read().decode()
        report(right=at_once(count, call) == [f"/{index}" for index in range(count)])
        """,
        http_server,
        CALLS,
    )

    assert {"right": True} == facts
    assert (CALLS, CALLS, CALLS) == peak(http_server)
