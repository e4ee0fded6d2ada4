# SPDX-License-Identifier: Apache-2.0
"""Spawns and finishes a million virtual threads, and prints by how much the process has grown after the first tenth.

Run by test_life.py, and by hand: PYTHONPATH=python python tests/pitfalls/million.py [COUNT]

They are of every kind that ends in its own way: one returns at once, one parks, one fails, one keeps data of its own (a
thread-local, a context variable, a decimal context), one is cancelled where it waits, and one is a threading.Thread.
"""

from __future__ import annotations

import contextvars
import decimal
import gc
import os
import queue
import sys
import threading

import gossamer as gs
from gossamer import _core

BATCH = 100
local = threading.local()
variable: contextvars.ContextVar[object] = contextvars.ContextVar("variable")


def park() -> None:
    """Let the others run once."""
    gs.checkpoint()


def fail() -> None:
    """End with an exception."""
    raise ValueError


def keep_data() -> None:
    """Own something of each kind that belongs to a thread."""
    local.value = []
    variable.set([])
    decimal.getcontext().prec = 5
    gs.checkpoint()


def wait() -> None:
    """Wait for what never comes."""
    queue.SimpleQueue[None]().get()


def spawn_batch() -> None:
    """Spawn BATCH virtual threads; all have ended when it returns."""
    with gs.scope() as scope:
        for _ in range(BATCH - 40):
            scope.spawn(int)
        for _ in range(20):
            scope.spawn(park)
        for _ in range(5):
            scope.spawn(keep_data)
    try:
        with gs.scope() as scope:
            waiting = [scope.spawn(wait) for _ in range(9)]
            gs.checkpoint()
            scope.spawn(fail)
    except* ValueError:
        assert all(task.cancelled() for task in waiting)
    threads = [threading.Thread(target=park) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure() -> dict[str, int]:
    """What may have grown."""
    gc.collect()
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    with open("/proc/self/maps") as file:
        maps = len(file.readlines())
    return {
        "resident": resident,
        "maps": maps,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "OS threads": len(os.listdir("/proc/self/task")),
        "objects": len(gc.get_objects()),
        "blocks": sys.getallocatedblocks(),
        "virtual threads": _core.statistics()["live"],
    }


def main(count: int) -> None:
    """Print each difference, and how many have run."""
    _core.make_threads_virtual(True)
    for _ in range(count // BATCH // 10):
        spawn_batch()
    before = measure()
    for _ in range(count // BATCH * 9 // 10):
        spawn_batch()
    after = measure()
    for name, value in after.items():
        print(name, value - before[name])
    print("finished", _core.statistics()["finished"])


if __name__ == "__main__":
    gs.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
