# SPDX-License-Identifier: Apache-2.0
"""100 tasks spawned and joined in a scope; an operation is one such scope."""

import gossamer as gs
from meter import Meter

SCOPES = 1000


def body() -> None:
    """Do nothing."""


def one_scope() -> None:
    """Spawn and join 100."""
    with gs.scope() as scope:
        for _ in range(100):
            scope.spawn(body)


def main() -> None:
    """Warm the pools up, then measure."""
    one_scope()
    with Meter(SCOPES):
        for _ in range(SCOPES):
            one_scope()


gs.run(main)
