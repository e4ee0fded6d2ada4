# SPDX-License-Identifier: Apache-2.0
"""Gossamer's demo: one crawler, three times, against a site that takes half a second an answer.

The same unchanged program (examples/crawl.py) runs on plain Python with 32 OS threads, on plain Python with 2,000 OS
threads, and under Gossamer with 2,000 virtual threads. All three have to store the same rows, and those that the site
serves. Exits with 1 if one of them does not, or if Gossamer needs more than 12 OS threads.
"""

import argparse
import contextlib
import json
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from digest import digest_of_rows
from measure import Measurement, measure
from progress import Progress

HERE = Path(__file__).resolve().parent
CRAWLER = HERE.parent / "examples" / "crawl.py"
MAX_OS_THREADS = 12
MAX_WALL_RATIO = 1.2
SPARE_DESCRIPTORS = 100
LOG_LINES_SHOWN = 15


@dataclass(frozen=True)
class Variant:
    """One way to run the crawler."""

    name: str
    title: str
    threads: int
    prefix: tuple[str, ...] = ()


VARIANTS = (
    Variant("plain32", "plain Python, 32 OS threads", 32),
    Variant("plain2000", "plain Python, 2,000 OS threads", 2000),
    Variant("gossamer", "Gossamer, 2,000 virtual threads", 2000, ("-m", "gossamer", "run")),
)


@dataclass(frozen=True)
class Site:
    """The site as it announced itself: ``digest`` is over the rows that a complete crawl stores."""

    port: int
    pages: int
    digest: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


@dataclass
class Crawl:
    """What came of one run of the crawler."""

    variant: Variant
    measurement: Measurement
    rows: int = 0
    failed: int = 0
    digest: str = ""
    log: list[str] = field(default_factory=list)

    def problems(self, site: Site) -> list[str]:
        """Returns what is wrong with this run, one sentence each; empty if it is correct."""
        measurement = self.measurement
        found = []
        if measurement.timed_out:
            found.append(f"hung: killed after {measurement.wall_seconds:.0f} s")
        elif measurement.exit_code != 0:
            found.append(f"exited with {measurement.exit_code}")
        if self.failed:
            found.append(f"pages that failed: {self.failed}")
        if self.rows != site.pages:
            found.append(f"stored {self.rows} rows, but the site has {site.pages} pages")
        elif self.digest != site.digest:
            found.append("the rows are not those that the site serves")
        if self.variant.name == "gossamer" and measurement.peak_threads > MAX_OS_THREADS:
            found.append(f"used {measurement.peak_threads} OS threads, more than {MAX_OS_THREADS}")
        return found


@contextlib.contextmanager
def running_site(arguments: argparse.Namespace) -> Iterator[Site]:
    """Runs the site in a process of its own until we leave, or until we die: its standard input ends with us."""
    options = [f"--pages={arguments.pages}", f"--delay={arguments.delay}", f"--fail={arguments.fail}", "--until-eof"]
    with subprocess.Popen(
        [sys.executable, str(HERE / "site.py"), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,
    ) as process:
        try:
            assert process.stdout is not None  # a pipe, as asked for
            announcement = process.stdout.readline()
            if not announcement:
                sys.exit("The site did not start; its message is above.")
            yield Site(**json.loads(announcement))
        finally:
            process.kill()


def crawl(variant: Variant, site: Site, directory: Path, timeout: float) -> Crawl:
    """Runs the crawler in one way, with its progress shown, and reads what it stored."""
    database, log = directory / f"{variant.name}.db", directory / f"{variant.name}.log"
    command = [sys.executable, *variant.prefix, str(CRAWLER), site.url]
    command += ["--threads", str(variant.threads), "--db", str(database)]
    with Progress(variant.title, log, site.pages) as progress:
        measurement = measure(command, log=log, directory=directory, timeout=timeout, on_sample=progress.update)
    result = Crawl(variant, measurement, log=log.read_text(errors="replace").splitlines())
    rows = stored_rows(database, site)
    result.rows, result.failed = len(rows), sum(row[1] != 200 for row in rows)
    result.digest = digest_of_rows(rows)
    return result


def stored_rows(database: Path, site: Site) -> list[tuple[str, int, int, str, int]]:
    """Returns the rows of a crawl, with paths for URLs; none if it did not get as far as to store them."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT url, status, size, sha256, links FROM pages").fetchall()
    except sqlite3.OperationalError:
        return []
    return [("/" + url.removeprefix(site.url), *rest) for url, *rest in rows]


def print_table(crawls: list[Crawl]) -> None:
    print(f"{'':34}{'pages':>8}{'wall s':>9}{'CPU s':>9}{'OS threads':>13}{'memory MB':>12}")
    for each in crawls:
        used = each.measurement
        numbers = f"{each.rows:>8,}{used.wall_seconds:>9.1f}{used.cpu_seconds:>9.1f}"
        print(f"{each.variant.title:34}{numbers}{used.peak_threads:>13,}{used.peak_memory_bytes / 1e6:>12.0f}")
    print()


def print_verdicts(crawls: list[Crawl], site: Site) -> bool:
    """Prints what holds and what does not; returns whether all that must hold does."""
    by_name = {each.variant.name: each for each in crawls}
    is_correct = True
    for each in crawls:
        if problems := each.problems(site):
            is_correct = False
            print(f"WRONG  {each.variant.title}: {'; '.join(problems)}")
            print("".join(f"       | {line}\n" for line in each.log[-LOG_LINES_SHOWN:]), end="")
    if all(each.digest == site.digest for each in crawls):
        print(f"holds  every crawl stored the {site.pages:,} rows that the site serves (digest {site.digest[:16]})")
    gossamer, plain = by_name.get("gossamer"), by_name.get("plain2000")
    if gossamer and not gossamer.problems(site):
        print(f"holds  Gossamer used at most {MAX_OS_THREADS} OS threads: {gossamer.measurement.peak_threads}")
    if gossamer and plain and not gossamer.problems(site) and not plain.problems(site):
        ratio = gossamer.measurement.wall_seconds / plain.measurement.wall_seconds
        verdict = "holds" if ratio <= MAX_WALL_RATIO else "MISSED"
        print(f"{verdict:6} Gossamer took at most {MAX_WALL_RATIO} times as long as 2,000 OS threads: {ratio:.2f}")
    return is_correct


def raise_descriptor_limit(needed: int) -> None:
    """Lets this process and its children open as many files as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < needed:
        sys.exit(f"The demo needs {needed} open files a process, the hard limit here is {hard} (see ulimit -Hn).")


def parse_arguments() -> argparse.Namespace:
    names = [variant.name for variant in VARIANTS]
    parser = argparse.ArgumentParser(description="Run one crawler on OS threads and under Gossamer, and compare.")
    parser.add_argument("--only", default=",".join(names), help="the runs wanted, by comma (default: %(default)s)")
    parser.add_argument("--pages", type=int, default=3200, help="pages of the site (default: 3200)")
    parser.add_argument("--delay", type=float, default=0.5, help="seconds each answer is held back (default: 0.5)")
    parser.add_argument("--fail", type=int, default=0, metavar="N", help="make the N-th page of the site fail")
    parser.add_argument("--timeout", type=float, default=120, help="seconds after which a run hangs (default: 120)")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if unknown := set(wanted) - set(names):
        parser.error(f"--only: no such run: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    arguments.variants = [variant for variant in VARIANTS if variant.name in wanted]
    return arguments


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    raise_descriptor_limit(max(variant.threads for variant in arguments.variants) + SPARE_DESCRIPTORS)
    try:
        with tempfile.TemporaryDirectory(prefix="gossamer-demo-") as directory, running_site(arguments) as site:
            print(f"The site has {site.pages:,} pages and takes {arguments.delay * 1000:.0f} ms an answer.", flush=True)
            if site.pages < arguments.pages:
                print(f"(This Python installation has no more than that; {arguments.pages:,} were asked for.)")
            crawls = [crawl(variant, site, Path(directory), arguments.timeout) for variant in arguments.variants]
    except KeyboardInterrupt:
        print("\nInterrupted; nothing is left running.", file=sys.stderr)
        return 130
    print_table(crawls)
    return 0 if print_verdicts(crawls, site) else 1


if __name__ == "__main__":
    sys.exit(main())
