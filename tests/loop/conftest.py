# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the tests of the loop."""

from asyncio import coroutines
from collections.abc import Iterator

import pytest
from gossamer import _core, _running_loops


@pytest.fixture(autouse=True)
def no_debug_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also under `python -X dev`: what is tested is left to asyncio in its debug mode; a test of that mode sets it."""
    monkeypatch.setattr(coroutines, "_is_debug_mode", lambda: False)


@pytest.fixture
def no_bridge(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where nobody has used `await_` yet, which makes every thread a carrier while it runs a loop."""
    monkeypatch.setattr(_running_loops, "_watchers", [])
    before = _core.let_plain_functions_await(False)
    yield
    _core.let_plain_functions_await(before)
