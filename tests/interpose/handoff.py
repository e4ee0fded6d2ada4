# SPDX-License-Identifier: Apache-2.0
"""Random hand-offs between virtual threads, OS threads and a signal handler; a lost wake-up would hang.

Each test makes a few thousand; GOSSAMER_HANDOFFS sets another number (the long run uses a million).
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable

import gossamer as gs

HANDOFFS = int(os.environ.get("GOSSAMER_HANDOFFS", "4000"))
SEED = int(os.environ.get("GOSSAMER_SEED", "7"))


def run_mixed(bodies: list[Callable[[], None]]) -> None:
    """Run each body, every second one on an OS thread, the others in a virtual thread; wait for all."""

    def main() -> None:
        os_threads = [threading.Thread(target=body) for body in bodies[1::2]]
        for thread in os_threads:
            thread.start()
        with gs.scope() as scope:
            for body in bodies[0::2]:
                scope.spawn(body)
        for thread in os_threads:
            thread.join()

    gs.run(main)


def maybe_yield(source: random.Random) -> None:
    """Let others run at some of the points, a different choice for each source."""
    if source.random() < 0.2:
        gs.checkpoint()
