# SPDX-License-Identifier: Apache-2.0
"""Two virtual threads that do nothing but `checkpoint`; an operation is one call."""

import gossamer as gs
from meter import Meter

CALLS = 300_000


def body() -> None:
    """Give way again and again."""
    checkpoint = gs.checkpoint
    for _ in range(CALLS):
        checkpoint()


def main() -> None:
    """Run two of them."""
    with Meter(2 * CALLS), gs.scope() as scope:
        scope.spawn(body)
        scope.spawn(body)


gs.run(main)
