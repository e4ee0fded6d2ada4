#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Sets everything up and runs every test on every interpreter, two jobs at a time; ends with a table and the counts.

    run_tests.py                what `make test` runs
    run_tests.py --all          what `make test-all` runs: everything everywhere
    run_tests.py --only NAMES   some of the jobs: 3.12, 3.13, ..., core, checks

A job is an interpreter (environment, wheel, the tests in Python, CPython's own files), the unit tests of the C++ core,
or the checks of the source. The output of each step is kept in build/logs/. With CI=true an interpreter that is missing
is fetched (`interpreters.py get`), and a failure if it cannot be had; elsewhere the table says how to get it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import counts
from candidates import TAGS, WORKING, Interpreter, Tag
from counts import Counts
from deb import ToolError
from environment import BUILD, ROOT, Environment, packages_of
from interpreters import by_hand, find, get
from steps import StepFailed, Steps, stop_on_sigterm

JOBS_AT_A_TIME = 2
ALWAYS_NEEDED = ("3.12", "3.13")  # without these `make test` fails everywhere, not only in CI
CPYTHON_FILES = ("test_thread", "test_queue", "test_socket")  # of CPython's own suite, those that must hold today
PYTEST_SECONDS = 1200.0
HARNESS_SECONDS = 1800.0


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    job: str
    suite: str
    counts: Counts
    note: str = ""


def is_ci() -> bool:
    """Says whether what is missing must be fetched."""
    return os.environ.get("CI") == "true"


def interpreter_job(tag: Tag, steps: Steps, *, everything: bool) -> list[Row]:
    """Runs everything for one interpreter."""
    interpreter = (get if is_ci() else find)(tag)
    if interpreter is None:
        return [missing_row(tag)]
    environment = Environment(interpreter, tag.name)
    environment.create(steps, packages_of("build", "test"))
    environment.install_gossamer(steps)
    version = f"{interpreter.version}, {interpreter.source.split(',')[0]}"
    return [
        Row(tag.name, "pytest", run_pytest(environment, steps), version),
        Row(tag.name, "CPython's own files", run_harness(environment, steps, everything=everything), version),
    ]


def missing_row(tag: Tag) -> Row:
    """Returns what the table says of an interpreter that is not there."""
    is_failure = tag.name in ALWAYS_NEEDED
    how = f"tools/interpreters.py get {tag.name}"
    return Row(tag.name, "not run", Counts(failed=int(is_failure)), f"not there; to get it: {how}. {by_hand(tag)}")


def run_pytest(environment: Environment, steps: Steps) -> Counts:
    """Runs the tests in Python against the installed wheel."""
    report = steps.log(environment.name, "pytest.xml")
    report.unlink(missing_ok=True)
    command = environment.command("-m", "pytest", f"--junitxml={report}", "tests")
    code = steps.run(environment.name, "pytest", command, seconds=PYTEST_SECONDS)
    return counts.of_junit(report, code)


def run_harness(environment: Environment, steps: Steps, *, everything: bool) -> Counts:
    """Runs CPython's own test files plain and under Gossamer, and compares."""
    files = () if everything else CPYTHON_FILES
    harness = str(ROOT / "tests" / "cpython" / "harness.py")
    logs = steps.log(environment.name, "cpython-files")
    command = environment.command(harness, "--python", environment.python, "--logs", str(logs), *files)
    code = steps.run(environment.name, "cpython", command, seconds=HARNESS_SECONDS)
    return counts.of_last_line(steps.log(environment.name, "cpython").read_text(errors="replace"), code)


def guarded(name: str, job: Callable[[], list[Row]]) -> list[Row]:
    """Runs a job; what keeps it from its end is a failure of the job."""
    try:
        return job()
    except (StepFailed, ToolError) as error:
        return [Row(name, "set-up", Counts(failed=1), str(error))]


def jobs_of(options: argparse.Namespace, steps: Steps) -> dict[str, Callable[[], list[Row]]]:
    """Returns the jobs by name, in the order in which they start."""

    def of(tag: Tag) -> Callable[[], list[Row]]:
        return lambda: interpreter_job(tag, steps, everything=options.all)

    return {name: of(TAGS[name]) for name in WORKING}


def run_jobs(jobs: dict[str, Callable[[], list[Row]]], steps: Steps) -> list[Row]:
    """Runs the jobs, some at a time, and returns their rows."""
    with concurrent.futures.ThreadPoolExecutor(JOBS_AT_A_TIME) as pool:
        futures = [pool.submit(guarded, name, job) for name, job in jobs.items()]
        try:
            return [row for future in futures for row in future.result()]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            steps.stop()
            raise


def print_table(rows: Sequence[Row]) -> None:
    """Prints what ran where and with what result."""
    print(f"\n{'':10}{'':36}{'passed':>8}{'failed':>8}{'skipped':>9}")
    for row in rows:
        each = row.counts
        print(f"{row.job:10}{row.suite:36}{each.passed:>8}{each.failed:>8}{each.skipped:>9}  {row.note}")
    for name in TAGS:
        if name not in WORKING:
            print(f"{name:10}not run: Gossamer does not work on it yet")


def command_line() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(prog="run_tests.py", description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="everything everywhere")
    parser.add_argument("--only", metavar="NAMES", help="the jobs wanted, by comma")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = command_line()
    options = parser.parse_args(arguments)
    stop_on_sigterm()
    os.chdir(ROOT)  # what runs in a Debian folder sees the repository of the current folder
    steps = Steps(BUILD / "logs", ROOT)
    jobs = jobs_of(options, steps)
    if options.only:
        names = options.only.split(",")
        if unknown := set(names) - set(jobs):
            parser.error(f"--only: no such job: {', '.join(sorted(unknown))}; there are {', '.join(jobs)}")
        jobs = {name: jobs[name] for name in names}
    rows = run_jobs(jobs, steps)
    print_table(rows)
    total = sum((row.counts for row in rows), Counts())
    print(f"\n{total}")
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
