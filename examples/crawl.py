# SPDX-License-Identifier: Apache-2.0
"""Crawl a site by following its links, with a pool of threads, and store one row a page in an SQLite file."""

import argparse
import hashlib
import queue
import sqlite3
import sys
import threading
from html.parser import HTMLParser
from urllib.parse import urldefrag, urljoin, urlsplit

import requests


class LinkParser(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.links = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]


def fetch(session, url):
    try:
        response = session.get(url, timeout=60)
        is_html = response.headers.get("Content-Type", "").startswith("text/html")
        links = [urldefrag(urljoin(url, link)).url for link in LinkParser(response.text).links] if is_html else []
    except Exception as error:
        print(f"{url}: {error}", file=sys.stderr)
        return (url, 0, 0, "", 0), []
    digest = hashlib.sha256(response.content).hexdigest()
    return (url, response.status_code, len(response.content), digest, len(links)), links


def work(urls, pages):
    with requests.Session() as session:
        while (url := urls.get()) is not None:
            pages.put(fetch(session, url))


def crawl(start_url, threads, connection):
    urls, pages = queue.Queue(), queue.Queue()
    for _ in range(threads):
        threading.Thread(target=work, args=(urls, pages)).start()
    connection.execute("DROP TABLE IF EXISTS pages")
    connection.execute("CREATE TABLE pages (url PRIMARY KEY, status, size, sha256, links)")
    seen, done, failed = {start_url}, 0, 0
    urls.put(start_url)
    while done < len(seen):
        row, links = pages.get()
        connection.execute("INSERT INTO pages VALUES (?, ?, ?, ?, ?)", row)
        new = {link for link in links if urlsplit(link).netloc == urlsplit(start_url).netloc} - seen
        seen |= new
        for url in sorted(new):
            urls.put(url)
        done, failed = done + 1, failed + (row[1] != 200)
        if done % 100 == 0:
            print(f"{done} pages", file=sys.stderr, flush=True)
    for _ in range(threads):
        urls.put(None)
    connection.commit()
    return len(seen), failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("start_url")
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--db", default="crawl.db")
    arguments = parser.parse_args()
    pages, failed = crawl(arguments.start_url, arguments.threads, sqlite3.connect(arguments.db))
    print(f"{pages} pages, {failed} failed")
    sys.exit(failed > 0)
