# SPDX-License-Identifier: Apache-2.0
"""100 tasks created and joined in an `asyncio.TaskGroup`; an operation is one such group."""

import asyncio

from meter import Meter

GROUPS = 200


async def body() -> None:
    """Do nothing."""


async def one_group() -> None:
    """Create and join 100."""
    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(body())


async def main() -> None:
    """Warm up, then measure."""
    await one_group()
    with Meter(GROUPS):
        for _ in range(GROUPS):
            await one_group()


asyncio.run(main())
