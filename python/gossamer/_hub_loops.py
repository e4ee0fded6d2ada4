# SPDX-License-Identifier: Apache-2.0
"""Who lends a hub the loop that runs what its plain functions await; the bridge makes one where nobody does."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

#: By `_core.hub_ident()`; what is called sees to it that the loop runs, in another virtual thread of the hub.
lenders: dict[int, Callable[[], asyncio.AbstractEventLoop]] = {}
