# SPDX-License-Identifier: Apache-2.0
"""What every virtual thread does, for people."""

from __future__ import annotations

import threading
import traceback

from gossamer import _core


def describe_threads() -> str:
    """One paragraph a virtual thread of this hub: identity, state, what it waits for, its Python stack."""
    parts = []
    for ident, status, what, fd, is_main, is_daemon, is_scoped, task, frame in _core.threads():
        thread = threading._active.get(ident)  # type: ignore[attr-defined]
        name = "main" if is_main else f"{ident:#x}" if thread is None else f"{thread.name} ({ident:#x})"
        waits = f" in {what}" if what else ""
        waits += f" (descriptor {fd})" if fd >= 0 else ""
        kind = ", daemon" if is_daemon and not is_scoped and not is_main else ""
        lines = [f"virtual thread {name}: {status}{waits}{kind}"]
        if task is not None:
            lines.append(f"  {task!r}")
        if frame is not None:
            lines.extend(line.rstrip("\n") for line in traceback.format_stack(frame))
        parts.append("\n".join(lines))
    return "\n".join(parts)
