# SPDX-License-Identifier: Apache-2.0
"""Runs a test's body as the main virtual thread of a `gossamer.run`."""

import functools
import inspect
from collections.abc import Callable

import gossamer as gs
from gossamer import _core


def virtually(test: Callable) -> Callable:
    """Decorates a test, which then runs inside Gossamer and must leave no virtual thread behind."""

    @functools.wraps(test)
    def run_test(**fixtures):
        def main():
            test(**fixtures)
            assert 1 == _core.statistics()["live"], "a virtual thread is left"

        gs.run(main)

    run_test.__signature__ = inspect.signature(test)
    return run_test


def settle() -> None:
    """Lets every other virtual thread run until it parks."""
    for _ in range(20):
        gs.checkpoint()
