# SPDX-License-Identifier: Apache-2.0
"""Two greenlets that switch to each other; an operation is there and back."""

import greenlet
from meter import Meter

TRIPS = 300_000


def partner() -> None:
    """Switch back at once, for ever."""
    switch = main_greenlet.switch
    while True:
        switch()


main_greenlet = greenlet.getcurrent()
other = greenlet.greenlet(partner)
other.switch()


def body() -> None:
    """Switch there again and again."""
    switch = other.switch
    for _ in range(TRIPS):
        switch()


with Meter(TRIPS):
    body()
