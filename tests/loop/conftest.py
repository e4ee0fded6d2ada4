# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the tests of the loop."""

from collections.abc import Iterator

import pytest
from gossamer import _core, _running_loops


@pytest.fixture
def no_bridge(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where nobody has used `await_` yet, which makes every thread a carrier while it runs a loop."""
    monkeypatch.setattr(_running_loops, "_watchers", [])
    before = _core.let_plain_functions_await(False)
    yield
    _core.let_plain_functions_await(before)
