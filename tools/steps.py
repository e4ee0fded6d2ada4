# SPDX-License-Identifier: Apache-2.0
"""Runs the steps of a long job: each in a process group of its own, with its output in a log file and a line on the
screen when it starts and ends. A step that takes too long is killed with whatever it started; so are all when we are
interrupted.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TAIL_LINES = 40
TELLING = re.compile(r"FAIL|ERROR|Error\b|killed: ")
MOST_TELLING = 12  # lines of a step in the summary
GRACE_SECONDS = 5.0


class StepFailed(Exception):
    """A step without which the rest of its job makes no sense failed; its output was shown."""


class Steps:
    """Runs steps for several jobs at once. Thread: any."""

    def __init__(self, logs: Path, cwd: Path) -> None:
        self.logs = logs
        self.cwd = cwd
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._live: set[subprocess.Popen[bytes]] = set()  # under _lock
        self._is_stopping = False  # under _lock
        self._failures: list[str] = []  # under _lock; one text a step
        logs.mkdir(parents=True, exist_ok=True)

    def say(self, text: str) -> None:
        """Prints a line with the time since the start."""
        with self._lock:
            print(f"[{time.monotonic() - self._started:5.0f} s] {text}", flush=True)

    def log(self, job: str, step: str) -> Path:
        """Returns the file with the output of a step."""
        return self.logs / f"{job}-{step}".replace(" ", "-").replace(",", "-")

    def run(
        self,
        job: str,
        step: str,
        command: Sequence[str],
        *,
        seconds: float,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Runs a step and returns its exit code, negative when a signal ended it. Shows the end of its output if it
        failed.

        Args:
            job: What the step is part of.
            step: Its name within the job.
            command: The program and its arguments.
            seconds: It is killed after this many.
            environment: Variables to set besides ours.
        """
        log = self.log(job, step)
        self.say(f"{job}: {step} ...")
        started = time.monotonic()
        code = self._run(command, log, seconds, {**os.environ, **(environment or {})})
        took = time.monotonic() - started
        if code == 0:
            self.say(f"{job}: {step} done in {took:.0f} s")
        else:
            self._show_failure(f"{job}: {step} FAILED with exit code {code} after {took:.0f} s", log)
        return code

    def must(self, job: str, step: str, command: Sequence[str], *, seconds: float, attempts: int = 1) -> None:
        """Runs a step, again if it failed and may be tried again.

        Raises:
            StepFailed: It failed.
        """
        for _ in range(attempts):
            if self.run(job, step, command, seconds=seconds) == 0:
                return
        raise StepFailed(f"{job}: {step}")

    def failures(self) -> list[str]:
        """Returns what is to be said at the end of each step that failed: the lines of its output that tell most."""
        with self._lock:
            return list(self._failures)

    def stop(self) -> None:
        """Kills what runs, and lets nothing more start."""
        with self._lock:
            self._is_stopping = True
            live = list(self._live)
        for process in live:
            _end_group(process)

    def _run(self, command: Sequence[str], log: Path, seconds: float, environment: Mapping[str, str]) -> int:
        with open(log, "wb") as output:
            with self._lock:
                if self._is_stopping:
                    raise StepFailed("interrupted")
                process = subprocess.Popen(
                    command,
                    cwd=self.cwd,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                )
                self._live.add(process)
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                _end_group(process)
                output.write(f"\nkilled: still running after {seconds:.0f} s\n".encode())
                return process.wait()
            finally:
                with self._lock:
                    self._live.discard(process)
                _kill_group(process)  # what a test left running

    def _show_failure(self, headline: str, log: Path) -> None:
        tail = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        telling = [line for line in tail if TELLING.search(line)][-MOST_TELLING:] or tail[-1:]
        with self._lock:
            self._failures.append("\n".join([headline, *(f"    {line}" for line in telling)]))
        self.say("\n".join([headline, *(f"    | {line}" for line in tail), f"    {log}"]))


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Asks the process to end, so that it can end what it put into groups of their own; then kills its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    _kill_group(process)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def stop_on_sigterm() -> None:
    """Makes SIGTERM end this process as Ctrl-C does, so that what it started is ended too."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
