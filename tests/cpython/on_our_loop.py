#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a module as the main program, with Gossamer's event loop wherever asyncio, or a test of it, makes one.

``on_our_loop.py [--park] -m test [ARGUMENTS...]``: asyncio's default policy, and so `asyncio.new_event_loop`,
`asyncio.run` and `asyncio.Runner`, make our loops; test cases that make a loop of a class that they name (the loop
contract of test_events, sendfile, `sock_*`, servers) get ours in its place. A task that blocks blocks its loop, on
which some of CPython's tests rely; with --park it parks, as it does by default. Nothing else is changed.
"""

import importlib
import os
import runpy
import sys
import unittest
from asyncio import unix_events

from gossamer import _core, _run
from gossamer._event_loop import EventLoop

# Modules with test cases that make a loop of a class that they name, by a method.
NAME_LOOPS = [
    f"test_asyncio.test_{name}"
    for name in ("buffered_proto", "events", "sendfile", "server", "sock_lowlevel", "sslproto")
]


def take_over_policy() -> None:
    """Have asyncio make our loops."""
    unix_events._UnixDefaultEventLoopPolicy._loop_factory = EventLoop


def take_over_loops_of(name: str) -> None:
    """Have a module's test cases test our loop where they name asyncio's."""
    for value in list(vars(importlib.import_module(f"test.{name}")).values()):
        for method in ("create_event_loop", "new_loop"):
            if isinstance(value, type) and issubclass(value, unittest.TestCase) and hasattr(value, method):
                setattr(value, method, lambda _self: EventLoop())


def main() -> None:
    """Take over, and run the module."""
    if parks := sys.argv[1:2] == ["--park"]:
        del sys.argv[1]
    if len(sys.argv) < 3 or sys.argv[1] != "-m":
        sys.exit(__doc__)
    _core.block_in_all_tasks(_run.BLOCKING.index("park" if parks else "block"))
    take_over_policy()
    for name in NAME_LOOPS:
        if name in sys.argv:
            take_over_loops_of(name)
    module = sys.argv[2]
    sys.path[0] = os.getcwd()  # as `python -m` has it
    del sys.argv[1:3]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


main()
