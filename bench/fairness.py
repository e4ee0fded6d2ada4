# SPDX-License-Identifier: Apache-2.0
"""How late a virtual thread wakes beside three that compute: ``python bench/fairness.py [seconds] [slice in ms]``.

The hogs are a plain loop, ``sum`` of a generator and ``sorted`` with a key. The sleeper sleeps 15 to 25 ms at a time, a
random time each, for sleeps of exactly 20 ms fall into step with the slices. Prints one line: the interpreter, the
number
of sleeps, the lateness at the median, at p99 and at most, how often a hog was preempted, and the share of a core
that the
carrier got: below 1.00 other programs are part of the lateness. The target is 14 ms at p99.
"""

import platform
import random
import sys
import time

import gossamer as gs
from gossamer import _core


def plain_loop(end: float) -> None:
    x = 0
    while time.monotonic() < end:
        x += 1


def sum_of_generator(end: float) -> None:
    while time.monotonic() < end:
        sum(x * x for x in range(50_000))


def sort_with_key(end: float) -> None:
    items = list(range(20_000, 0, -1))
    while time.monotonic() < end:
        sorted(items, key=lambda item: -item)


def sleeper(end: float, late: list[float]) -> None:
    while time.monotonic() < end:
        delay = random.uniform(0.015, 0.025)
        began = time.monotonic()
        time.sleep(delay)
        late.append(time.monotonic() - began - delay)


def main(seconds: float) -> None:
    late: list[float] = []
    end = time.monotonic() + seconds
    cpu_before = time.thread_time()
    with gs.scope() as scope:
        for hog in (plain_loop, sum_of_generator, sort_with_key):
            scope.spawn(hog, end)
        scope.spawn(sleeper, end, late)
        status = _core.preemption_status()
    share = (time.thread_time() - cpu_before) / seconds
    late.sort()

    def at(share: float) -> str:
        return f"{late[int((len(late) - 1) * share)] * 1e3:.1f}"

    print(
        f"{platform.python_version()}: {len(late)} sleeps, late by {at(0.5)} ms at p50, {at(0.99)} at p99, {at(1)} at most; "
        f"{_core.statistics()['preemptions']} preemptions ({status}), {share:.2f} of a core"
    )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        _core.set_slice(float(sys.argv[2]) / 1e3)
    gs.run(main, float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
