# SPDX-License-Identifier: Apache-2.0
"""Context variables across a crossing: code that runs elsewhere gets a copy, and what it sets comes back."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lent_context() -> Iterator[contextvars.Context]:
    """Lend a copy of this context to code that runs elsewhere; what it set there is set here afterwards."""
    context = contextvars.copy_context()
    try:
        yield context
    finally:
        adopt_variables(context)


def adopt_variables(context: contextvars.Context) -> None:
    """Set here what was set in a copy of this context."""
    for variable, value in context.items():
        try:
            if variable.get() is value:
                continue
        except LookupError:
            pass  # not set here yet
        variable.set(value)
