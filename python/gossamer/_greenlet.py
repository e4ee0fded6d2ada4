# SPDX-License-Identifier: Apache-2.0
"""A module `greenlet` whose greenlets are fibers, found before the extension of that name.

The extension copies slices of one C stack to and fro and so cannot live beside stacks that never move: two greenlets of
two virtual threads would restore over each other. What is here does what the extension's documentation says, but has no
C interface: gevent, which is built on that, does not run on it.
"""

from __future__ import annotations

import sys

from gossamer import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_VERSION = "3.2.4"  # whose documentation it follows


class _Finder:
    """Finds the module and nothing else, and loads it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to load ``greenlet``."""
        if name != "greenlet":
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, self, origin=__file__)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Have the usual module made."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module."""
        module.__doc__ = __doc__
        module.__dict__.update(
            _core.greenlet_names(),
            __version__=_VERSION,
            GREENLET_USE_GC=True,
            GREENLET_USE_TRACING=True,
            GREENLET_USE_CONTEXT_VARS=True,
        )


_finder = _Finder()


def install() -> None:
    """Have ``import greenlet`` find this one, unless the extension is loaded already."""
    if "greenlet" not in sys.modules and _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def uninstall() -> None:
    """Have it find the extension again. A module that was loaded stays."""
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
