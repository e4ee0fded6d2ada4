# SPDX-License-Identifier: Apache-2.0
"""The awaits of bridge_work.py by greenback, on asyncio's own loop."""

import asyncio

import bridge_work
import greenback


async def main() -> None:
    """In a task with greenback's portal."""
    await greenback.ensure_portal()
    await bridge_work.awaits(greenback.await_)


asyncio.run(main())
