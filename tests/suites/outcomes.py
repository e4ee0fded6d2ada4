# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin: writes how each test ended to a file as it happens, so that a process that dies tells what it ran.

Lines of JSON: a test that starts, a test that ended, something that could not be collected, and at the end pytest's
exit status with the kind of loop that asyncio makes in this process. The environment names the file.

What is there before the first test is out of the garbage collector's sight, which some suites call after every test.
"""

import asyncio
import gc
import json
import os
import warnings

import pytest

FILE = "SUITE_OUTCOMES"
WORST_FIRST = ("error", "fail", "skip", "ok")


class Outcomes:
    """Writes the lines."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "w", encoding="utf-8", buffering=1)
        self._phases: dict[str, tuple[str, str]] = {}  # how each test that runs fared up to now
        self._seconds = 0.0  # that the one which started last has taken

    def _write(self, **fields: object) -> None:
        self._file.write(json.dumps(fields) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._phases[nodeid] = ("ok", "")
        self._seconds = 0.0
        self._write(started=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        phase = outcome_of(report)
        known = self._phases.get(report.nodeid, ("ok", ""))
        self._seconds += report.duration
        self._phases[report.nodeid] = min(known, phase, key=lambda outcome: WORST_FIRST.index(outcome[0]))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        status, detail = self._phases.pop(nodeid, ("ok", ""))
        self._write(test=nodeid, status=status, detail=detail, seconds=round(self._seconds, 3))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(test=report.nodeid, status="error", detail=last_line(report))
        elif report.skipped:
            self._write(test=report.nodeid, status="skip", detail=last_line(report))

    def pytest_collection_finish(self) -> None:
        gc.collect()
        gc.freeze()

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loop = asyncio.new_event_loop()
        kind = f"{type(loop).__module__}.{type(loop).__qualname__}"
        loop.close()
        self._write(end=int(exitstatus), loop=kind)


def outcome_of(report: pytest.TestReport) -> tuple[str, str]:
    """Returns the status of one phase and, unless it is well, why."""
    if report.passed:
        return "ok", ""
    if report.skipped:
        return ("ok", "") if hasattr(report, "wasxfail") else ("skip", last_line(report))
    return "fail" if report.when == "call" else "error", last_line(report)


def last_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Returns the line that names the error, or the reason of a skip."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2]
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = (crash.message if crash else report.longreprtext).strip().splitlines()
    return (lines[0] if crash else lines[-1])[:300] if lines else ""


def pytest_configure(config: pytest.Config) -> None:
    """Starts to write, but in a worker of pytest-xdist, whose controller hears of everything."""
    if FILE in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(os.environ[FILE]), "suite-outcomes")
