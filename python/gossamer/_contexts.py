# SPDX-License-Identifier: Apache-2.0
"""Context variables across a crossing: code that runs elsewhere while its caller waits runs in the caller's context."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager

from gossamer import _core


@contextmanager
def lent_context() -> Iterator[contextvars.Context]:
    """Lend this very context to code that runs elsewhere meanwhile, so that tokens made here are good there."""
    context, was_entered = _core.lend_context()
    try:
        yield context
    finally:
        _core.take_context_back(context, was_entered)


def adopt_variables(context: contextvars.Context) -> None:
    """Set here what was set in a copy of this context."""
    for variable, value in context.items():
        try:
            if variable.get() is value:
                continue
        except LookupError:
            pass  # not set here yet
        variable.set(value)
