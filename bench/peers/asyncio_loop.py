# SPDX-License-Identifier: Apache-2.0
"""What loop_work.py has, on asyncio's own loop."""

import asyncio

import loop_work

loop_work.main(asyncio.new_event_loop)
