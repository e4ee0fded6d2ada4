# SPDX-License-Identifier: Apache-2.0
"""10,000 virtual threads that wait for something that does not come. Prints a line once all are parked."""

import time

import gossamer as gs

THREADS = 10_000
parked = 0


def body() -> None:
    """Count, and sleep till the end."""
    global parked
    parked += 1
    time.sleep(1e6)


def main() -> None:
    """Park them all."""
    with gs.scope() as scope:
        for _ in range(THREADS):
            scope.spawn(body)
        while parked < THREADS:
            gs.checkpoint()
        print("parked", flush=True)


main()
