# SPDX-License-Identifier: Apache-2.0
"""Memory of asyncio tasks parked in `time.sleep`: parked_tasks.py COUNT."""

import asyncio
import os
import sys
import time

import gossamer as gs
from gossamer import _core
from meter import report, resident_bytes

count = int(sys.argv[1])


async def body() -> None:
    """Sleep till the end."""
    time.sleep(1e6)


async def parked(number: int) -> None:
    """Wait until so many tasks are parked."""
    while _core.statistics()["parked_steps"] < number:
        await asyncio.sleep(0)


async def measure() -> None:
    """Park a few, then the others, and report what the others take."""
    kept = [asyncio.create_task(body()) for _ in range(200)]
    await parked(200)
    resident = resident_bytes()
    kept += [asyncio.create_task(body()) for _ in range(count)]
    await parked(200 + count)
    report(operations=count, resident_bytes=resident_bytes() - resident)
    os._exit(0)


gs.run(measure)
