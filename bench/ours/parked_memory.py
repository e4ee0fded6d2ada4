# SPDX-License-Identifier: Apache-2.0
"""Memory of virtual threads parked in `time.sleep`: parked_memory.py KIND COUNT, under `gossamer run`.

KIND is `spawn` (a task of a scope) or `thread` (a `threading.Thread`).
"""

import os
import sys
import threading
import time

import gossamer as gs
from meter import page_table_bytes, report, resident_bytes

kind, count = sys.argv[1], int(sys.argv[2])
parked = 0


def body() -> None:
    """Count, and sleep till the end."""
    global parked
    parked += 1
    time.sleep(1e6)


def start_threads(number: int) -> list[threading.Thread]:
    """Start ``number`` threads and keep them."""
    threads = [threading.Thread(target=body, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    return threads


def measure() -> None:
    """Park a few, then the others, and report what the others take."""
    with gs.scope() as scope:

        def start(number: int) -> list[object]:
            return list(start_threads(number)) if kind == "thread" else [scope.spawn(body) for _ in range(number)]

        kept = start(200)
        while parked < 200:
            gs.checkpoint()
        resident, tables = resident_bytes(), page_table_bytes()
        kept += start(count)
        while parked < 200 + count:
            gs.checkpoint()
        report(
            operations=count,
            resident_bytes=resident_bytes() - resident,
            page_table_bytes=page_table_bytes() - tables,
            whole_bytes=resident_bytes() + page_table_bytes(),
        )
        os._exit(0)


measure()
