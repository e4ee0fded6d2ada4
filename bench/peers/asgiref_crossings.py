# SPDX-License-Identifier: Apache-2.0
"""The crossings of bridge_work.py by asgiref: from a plain function that a task called, or from an ordinary thread."""

import asyncio
import sys

import bridge_work
from asgiref.sync import async_to_sync, sync_to_async


def crossings() -> None:
    """Cross."""
    bridge_work.crossings(sync_to_async, async_to_sync)


if sys.argv[1] == "task":
    asyncio.run(sync_to_async(crossings)())
else:
    crossings()
