# SPDX-License-Identifier: Apache-2.0
"""Crawl a site by following its links, with a pool of threads, and store one row a page in an SQLite file."""

import argparse
import hashlib
import queue
import sqlite3
import sys
import threading
import time
from html.parser import HTMLParser
from urllib.parse import urldefrag, urljoin, urlsplit

import requests


class LinkParser(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links = []

    def handle_starttag(self, tag, attrs):
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]


class Crawler:
    def __init__(self, start_url, db):
        self.db = db
        self.site = urlsplit(start_url).netloc
        self.urls = queue.Queue()
        self.rows = queue.Queue()
        self.seen = set()
        self.seen_lock = threading.Lock()
        self.failed = 0
        self.add([start_url])

    def add(self, urls):
        with self.seen_lock:
            new = {url for url in urls if urlsplit(url).netloc == self.site} - self.seen
            self.seen |= new
        for url in sorted(new):
            self.urls.put(url)

    def fetch(self, session, url):
        try:
            response = session.get(url, timeout=60)
        except requests.RequestException as error:
            print(f"{url}: {error}", file=sys.stderr)
            return url, 0, 0, "", 0
        parser = LinkParser()
        if response.headers.get("Content-Type", "").startswith("text/html"):
            parser.feed(response.text)
            self.add(urldefrag(urljoin(url, link)).url for link in parser.links)
        body = response.content
        return url, response.status_code, len(body), hashlib.sha256(body).hexdigest(), len(parser.links)

    def work(self):
        with requests.Session() as session:
            while (url := self.urls.get()) is not None:
                try:
                    self.rows.put(self.fetch(session, url))
                finally:
                    self.urls.task_done()

    def write(self):
        connection = sqlite3.connect(self.db)
        connection.execute("DROP TABLE IF EXISTS pages")
        connection.execute("CREATE TABLE pages (url PRIMARY KEY, status, size, sha256, links)")
        written, last_report = 0, time.monotonic()
        while (row := self.rows.get()) is not None:
            connection.execute("INSERT INTO pages VALUES (?, ?, ?, ?, ?)", row)
            written += 1
            self.failed += row[1] != 200
            if time.monotonic() - last_report >= 1:
                last_report = time.monotonic()
                print(f"{written} pages", file=sys.stderr, flush=True)
        connection.commit()
        connection.close()

    def run(self, threads):
        writer = threading.Thread(target=self.write, daemon=True)
        workers = [threading.Thread(target=self.work, daemon=True) for _ in range(threads)]
        for thread in [writer, *workers]:
            thread.start()
        self.urls.join()
        for _ in workers:
            self.urls.put(None)
        for worker in workers:
            worker.join()
        self.rows.put(None)
        writer.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("start_url")
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--db", default="crawl.db")
    arguments = parser.parse_args()

    crawler = Crawler(arguments.start_url, arguments.db)
    crawler.run(arguments.threads)
    rows = sqlite3.connect(arguments.db).execute("SELECT count(*) FROM pages").fetchone()[0]
    print(f"{len(crawler.seen)} pages, {rows} rows, {crawler.failed} failed")
    return 1 if crawler.failed or rows != len(crawler.seen) else 0


if __name__ == "__main__":
    sys.exit(main())
