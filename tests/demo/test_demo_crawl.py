# SPDX-License-Identifier: Apache-2.0
"""The crawler stores every page of a site once, and does not hide a page that failed."""

import functools
import socket
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CRAWLER = Path(__file__).resolve().parents[2] / "examples" / "crawl.py"


def test_a_crawl_stores_exactly_the_rows_that_the_site_serves(start_site, crawl):
    site = start_site(pages=60, delay=0.01)

    result = crawl(site.url)

    assert (0, "60 pages, 0 failed\n", "") == (result.exit_code, result.output, result.errors)
    assert site.digest == result.digest


def test_a_second_crawl_replaces_the_rows_of_the_first(start_site, crawl):
    crawl(start_site(pages=60, delay=0.01).url)
    site = start_site(pages=40, delay=0.01)

    result = crawl(site.url)

    assert 40 == len(result.rows)
    assert site.digest == result.digest


def test_a_page_that_answers_500_is_counted_and_fails_the_crawl(start_site, crawl):
    site = start_site(pages=60, delay=0.01, fail=60)

    result = crawl(site.url)

    assert (1, "60 pages, 1 failed\n") == (result.exit_code, result.output)
    assert [500] == [row[1] for row in result.rows if row[1] != 200]


def test_a_site_that_refuses_the_connection_fails_the_crawl(crawl):
    with socket.socket() as reserved:  # bound, but does not listen
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/"

        result = crawl(url)

    assert (1, "1 pages, 1 failed\n") == (result.exit_code, result.output)
    assert [("/", 0, 0, "", 0)] == result.rows
    assert url in result.errors


def test_links_to_other_sites_and_known_pages_are_not_followed(crawl, tmp_path):
    links = ["/a", "a#part", "http://127.0.0.2:1/a", "https://there.test/", "mailto:me@here.test", "/"]
    (tmp_path / "index.html").write_text("".join(f"<a href='{link}'>" for link in links))
    (tmp_path / "a").write_text("no links")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()

        result = crawl(f"http://127.0.0.1:{server.server_port}/")

        server.shutdown()
    assert (0, "2 pages, 0 failed\n") == (result.exit_code, result.output)
    assert ["/", "/a"] == sorted(row[0] for row in result.rows)


def test_the_example_does_not_name_gossamer():
    assert "gossamer" not in CRAWLER.read_text().lower()
