# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin: where asyncio makes our loops, so does uvloop."""

import asyncio
import warnings

import uvloop

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of policies
    loop = asyncio.new_event_loop()
    loop.close()
    if type(loop).__module__.startswith("gossamer."):
        uvloop.new_event_loop = asyncio.new_event_loop
        uvloop.Loop = type(loop)
        uvloop.EventLoopPolicy = asyncio.DefaultEventLoopPolicy
        uvloop.run = asyncio.run
