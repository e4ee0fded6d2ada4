# SPDX-License-Identifier: Apache-2.0
"""What a virtual thread costs more when its stack is new: 1,000 that are alive at once, on new stacks and on used ones.

Each `gossamer.run` has a pool of stacks of its own, so each begins with new ones. The tasks themselves are Python
objects;
some of the first are kept, so that their memory is warm in both batches.
"""

import gossamer as gs
from meter import cpu_of, report

THREADS = 1000  # no more than the pool keeps warm
RUNS = 12

kept: list[gs.Task] = []
colds: list[int] = []
warms: list[int] = []


def body() -> None:
    """Do nothing."""


def one_batch() -> list[gs.Task]:
    """Spawn all, then run all: each has a stack of its own."""
    with gs.scope() as scope:
        return [scope.spawn(body) for _ in range(THREADS)]


def measure() -> None:
    """Measure a batch on new stacks, then one on the same stacks."""
    colds.append(cpu_of(one_batch))
    warms.append(cpu_of(one_batch))


def keep_some() -> None:
    """Make the tasks' memory warm."""
    kept.extend(one_batch()[::20])


gs.run(keep_some)
for _ in range(RUNS):
    gs.run(measure)
report(operations=RUNS * THREADS, cold_ns=sum(colds), warm_ns=sum(warms), cpu_ns=sum(colds) - sum(warms))
