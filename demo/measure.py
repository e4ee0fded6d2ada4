# SPDX-License-Identifier: Apache-2.0
"""Runs a child process and measures it from outside, so that the measured program needs to know nothing of it.

CPU time is the kernel's account of the child (wait4(2)); threads and memory are sampled from /proc/PID/status
(proc(5)).
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.02


@dataclass
class Measurement:
    """What a child process used; ``exit_code`` is negative for a signal, as in `subprocess`."""

    exit_code: int = 0
    timed_out: bool = False
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_threads: int = 0
    peak_memory_bytes: int = 0

    def sample(self, pid: int) -> None:
        """Takes the present number of OS threads, and the peak of the resident memory so far, of a process."""
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return
        values = dict(re.findall(r"^(Threads|VmHWM):\s+(\d+)", status, re.MULTILINE))
        self.peak_threads = max(self.peak_threads, int(values.get("Threads", 0)))
        self.peak_memory_bytes = max(self.peak_memory_bytes, int(values.get("VmHWM", 0)) * 1024)


def measure(
    command: Sequence[str],
    *,
    log: Path,
    directory: Path,
    timeout: float,
    on_sample: Callable[[Measurement], None],
) -> Measurement:
    """Runs a command to its end and returns what it used.

    Args:
        command: Program and arguments.
        log: File that receives the child's standard output and standard error.
        directory: The child's working directory.
        timeout: Seconds after which the child is killed; ``timed_out`` is then true.
        on_sample: Called every 20 ms with the measurement so far.
    """
    result = Measurement()
    start = time.monotonic()
    with log.open("wb") as output:
        # A process group of its own: one signal reaches all that the child may have started.
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=directory,
            env=_child_environment(),
            process_group=0,
        )
    try:
        while not _has_ended(child, result):
            result.wall_seconds = time.monotonic() - start
            if result.wall_seconds > timeout and not result.timed_out:
                result.timed_out = True
                os.killpg(child.pid, signal.SIGKILL)
            result.sample(child.pid)
            on_sample(result)
            time.sleep(SAMPLE_SECONDS)
    finally:
        if child.returncode is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    result.wall_seconds = time.monotonic() - start
    return result


def _child_environment() -> dict[str, str]:
    """Returns our environment without its proxies: the site is on this machine."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def _has_ended(child: subprocess.Popen[bytes], result: Measurement) -> bool:
    pid, status, usage = os.wait4(child.pid, os.WNOHANG)
    if pid == 0:
        return False
    child.returncode = result.exit_code = os.waitstatus_to_exitcode(status)
    result.cpu_seconds = usage.ru_utime + usage.ru_stime
    return True
