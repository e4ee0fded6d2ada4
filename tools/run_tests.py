#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Sets everything up and runs every test on every interpreter, two jobs at a time; ends with a table and the counts.

    run_tests.py                what `make test` runs
    run_tests.py --all          what `make test-all` runs: everything everywhere
    run_tests.py --only NAMES   some of the jobs: 3.12, 3.13, ..., suites, core, checks

A job is an interpreter (environment, wheel, the tests in Python, CPython's own files; with --all these also under the
JIT where there is one), the test suites of other projects on our event loop, the unit tests of the C++ core (plain,
under ASan and UBSan, under TSan), or the checks of the source. The output of each step is kept in build/logs/.
With CI=true an interpreter that is missing is fetched (`interpreters.py get`), and it is a failure if it cannot be had;
elsewhere the table says how to get it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import counts
from candidates import ALWAYS_NEEDED, TAGS, WORKING, Tag
from core_tests import run_core_tests
from counts import Counts
from deb import ToolError
from environment import BUILD, ROOT, Environment, Environments
from interpreters import by_hand
from steps import StepFailed, Steps, stop_on_sigterm

JOBS_AT_A_TIME = 2
PYTEST_SECONDS = 1200.0
FILE_SECONDS = 300  # for one of CPython's own files, plain or under Gossamer
HARNESS_SECONDS = 2400.0
CHECKS_SECONDS = 600.0
SUITE_SECONDS = 3600.0
SUITES = ROOT / "tests" / "suites"
RUN_SUITES_ON = ("3.13",)  # and with --all also on
RUN_ALL_SUITES_ON = ("3.13", "3.14")
WITH_JIT = ("3.14", "3.15")  # Debian's builds have one, which is off unless PYTHON_JIT is set


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    job: str
    suite: str
    counts: Counts
    note: str = ""


Job = Callable[[], list[Row]]


class Jobs:
    """The jobs, and what they share."""

    def __init__(self, steps: Steps, environments: Environments, *, everything: bool) -> None:
        self._steps = steps
        self._environments = environments
        self._everything = everything
        in_full = {
            "GOSSAMER_HANDOFFS": "1000000",
            "GOSSAMER_HANDSHAKES": "50000",
            "GOSSAMER_MILLION_PARKED": "1",
            "GOSSAMER_MIXED_STEPS": "100000",
        }
        self._variables = in_full if everything else {}
        versions: dict[str, Job] = {name: self._of_version(TAGS[name]) for name in WORKING}
        self.by_name: dict[str, Job] = {**versions, "suites": self.suites, "core": self.core, "checks": self.checks}

    def core(self) -> list[Row]:
        """Runs the unit tests of the C++ core."""
        found = run_core_tests(self._environments.for_tools(), self._steps)
        return [Row("core", f"GoogleTest, {name}", each) for name, each in found.items()]

    def checks(self) -> list[Row]:
        """Runs the checks of the source."""
        tools = self._environments.for_tools()
        tools.install_gossamer(self._steps)
        command = tools.command(str(ROOT / "tools" / "checks.py"))
        code = self._steps.run("checks", "source", command, seconds=CHECKS_SECONDS)
        return [Row("checks", "the source", self._last_line("checks", "source", code))]

    def suites(self) -> list[Row]:
        """Runs other projects' test suites."""
        rows = []
        for version in RUN_ALL_SUITES_ON if self._everything else RUN_SUITES_ON:
            environment = self._environments.of(TAGS[version])
            if environment is None:
                rows.append(_missing(TAGS[version]))
                continue
            for file in sorted(SUITES.glob("*.toml")):
                rows.append(Row("suites", f"{file.stem}, {version}", self._suite(environment, file)))
        return rows

    def version(self, tag: Tag) -> list[Row]:
        """Runs everything in Python for one interpreter."""
        environment = self._environments.of(tag)
        if environment is None:
            return [_missing(tag)]
        environment.install_gossamer(self._steps)
        note = f"{environment.interpreter.version}, {environment.interpreter.source.split(',')[0]}"
        rows = [
            Row(tag.name, "pytest", self._pytest(environment), note),
            Row(tag.name, "CPython's own files", self._harness(environment, "cpython"), note),
            Row(tag.name, "test_asyncio on our loop", self._harness(environment, "loop", "--suite", "asyncio"), note),
        ]
        if self._everything and tag.name in WITH_JIT:
            compiled = self._harness(environment, "cpython-jit", "--env", "PYTHON_JIT=1")
            rows.append(Row(tag.name, "the same, with the JIT", compiled, note))
        return rows

    def _of_version(self, tag: Tag) -> Job:
        return lambda: self.version(tag)

    def _pytest(self, environment: Environment) -> Counts:
        """Runs the tests in Python against the installed wheel."""
        report = self._steps.log(environment.name, "pytest.xml")
        report.unlink(missing_ok=True)
        command = environment.command("-m", "pytest", f"--junitxml={report}", "tests")
        code = self._steps.run(environment.name, "pytest", command, seconds=PYTEST_SECONDS, environment=self._variables)
        return counts.of_junit(report, code)

    def _harness(self, environment: Environment, step: str, *more: str) -> Counts:
        """Runs CPython's own test files plain and under Gossamer, and compares."""
        harness = str(ROOT / "tests" / "cpython" / "harness.py")
        logs = str(self._steps.log(environment.name, f"{step}-files"))
        options = ("--python", environment.python, "--logs", logs, f"--timeout={FILE_SECONDS}", *more)
        command = environment.command(harness, *options)
        code = self._steps.run(environment.name, step, command, seconds=HARNESS_SECONDS)
        return self._last_line(environment.name, step, code)

    def _suite(self, environment: Environment, file: Path) -> Counts:
        """Runs a test suite plain and on our event loop, with the packages that its file names, and compares."""
        requirements = SUITES / tomllib.loads(file.read_text())["requirements"]
        packages = tuple(line for line in requirements.read_text().splitlines() if not line.startswith("#"))
        name = f"{environment.name}-{requirements.stem}"
        own = Environment(environment.interpreter, name, packages)
        own.take_gossamer(environment, self._steps)
        logs = str(self._steps.log(name, "suites"))
        command = own.command(str(SUITES / "run_suite.py"), "--python", own.python, "--logs", logs, file.stem)
        code = self._steps.run(name, file.stem, command, seconds=SUITE_SECONDS)
        return self._last_line(name, file.stem, code)

    def _last_line(self, job: str, step: str, code: int) -> Counts:
        return counts.of_last_line(self._steps.log(job, step).read_text(errors="replace"), code)


def _missing(tag: Tag) -> Row:
    """Returns what the table says of an interpreter that is not there."""
    is_failure = tag.name in ALWAYS_NEEDED
    how = f"tools/interpreters.py get {tag.name}"
    return Row(tag.name, "not run", Counts(failed=int(is_failure)), f"not there; to get it: {how}. {by_hand(tag)}")


def guarded(name: str, job: Job) -> list[Row]:
    """Runs a job; what keeps it from its end is a failure of the job."""
    try:
        return job()
    except (StepFailed, ToolError) as error:
        return [Row(name, "set-up", Counts(failed=1), str(error))]


def run_jobs(jobs: dict[str, Job], steps: Steps) -> list[Row]:
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
    print(f"\n{'':10}{'':24}{'passed':>8}{'failed':>8}{'skipped':>9}")
    for row in rows:
        each = row.counts
        print(f"{row.job:10}{row.suite:24}{each.passed:>8}{each.failed:>8}{each.skipped:>9}  {row.note}")
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
    environments = Environments(may_download=os.environ.get("CI") == "true")
    jobs = Jobs(steps, environments, everything=options.all).by_name
    names = options.only.split(",") if options.only else list(jobs)
    if unknown := set(names) - set(jobs):
        parser.error(f"--only: no such job: {', '.join(sorted(unknown))}; there are {', '.join(jobs)}")
    rows = run_jobs({name: jobs[name] for name in names}, steps)
    print_table(rows)
    print("", *steps.failures(), sep="\n")  # again, since whoever reads only the end should know them
    total = sum((row.counts for row in rows), Counts())
    print(f"\n{total}")
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
