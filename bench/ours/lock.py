# SPDX-License-Identifier: Apache-2.0
"""An uncontended lock on an ordinary OS thread, installed and not, by turns in one process; nanoseconds a pair."""

import threading
import time

import gossamer as gs
from gossamer import _core
from meter import report

ROUNDS = 21
PAIRS = 100_000


def pairs(lock: threading.Lock) -> None:
    """Acquire and release."""
    acquire, release = lock.acquire, lock.release
    for _ in range(PAIRS):
        acquire()
        release()


def nanoseconds() -> float:
    """Return the CPU time of one pair."""
    lock = threading.Lock()
    start = time.thread_time_ns()
    pairs(lock)
    return (time.thread_time_ns() - start) / PAIRS


def install() -> None:
    """Swap the tables in, without staying on a carrier."""
    gs.run(int)


def measure() -> None:
    """Take the smallest of both."""
    installed, uninstalled = [], []
    for _ in range(ROUNDS):
        install()
        installed.append(nanoseconds())
        _core.uninstall()
        uninstalled.append(nanoseconds())
    report(installed_ns=min(installed), uninstalled_ns=min(uninstalled), operations=PAIRS)


worker = threading.Thread(target=measure)
worker.start()
worker.join()
