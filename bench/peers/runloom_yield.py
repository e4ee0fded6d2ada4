# SPDX-License-Identifier: Apache-2.0
"""Two runloom fibers on one hub that do nothing but yield; an operation is one call."""

import runloom
from meter import Meter

CALLS = 300_000


def body() -> None:
    """Give way again and again."""
    give_way = runloom.yield_now
    for _ in range(CALLS):
        give_way()


runloom.fiber(body)
runloom.fiber(body)
with Meter(2 * CALLS):
    runloom.run(1)
