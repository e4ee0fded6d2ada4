# SPDX-License-Identifier: Apache-2.0
"""What every virtual thread does, for people."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from gossamer import _core

if TYPE_CHECKING:
    from traceback import FrameSummary
    from types import FrameType

_OWN_FOLDER = os.path.dirname(__file__) + os.sep
_LIBRARY_FOLDER = os.path.dirname(os.__file__) + os.sep
_MOST_IN_AN_ERROR = 50


class ThreadSnapshot(NamedTuple):
    """One virtual thread at one moment."""

    ident: int  # as threading.get_ident() in it
    name: str  # of its threading.Thread if it has one, else what the task runs
    state: str  # ready, running or parked
    waits_for: str | None
    descriptor: int | None  # waited for
    age: float  # seconds since it was made, to 4 ms
    carrier: int  # threading.get_ident() of the OS thread that it runs on
    is_main: bool  # of its carrier
    is_daemon: bool  # nobody waits for it at the end of the program
    task: _core.Task[Any] | None
    stack: list[FrameSummary]  # oldest call first, without Gossamer's own

    def __str__(self) -> str:
        from traceback import format_list

        waits = f" in {self.waits_for}" if self.waits_for else ""
        waits += f" on descriptor {self.descriptor}" if self.descriptor is not None else ""
        daemon = ", daemon" if self.is_daemon else ""
        head = f"virtual thread {self.ident:#x} ({self.name}): {self.state}{waits}, {self.age:.3f} s old{daemon}"
        return "\n".join([head, *(line.rstrip("\n") for line in format_list(self.stack))])


def snapshot() -> list[ThreadSnapshot]:
    """Return what each virtual thread does, this OS thread's first, each carrier's oldest first; [] for none."""
    threading = sys.modules.get("threading")
    python_threads = dict(threading._active) if threading else {}
    result = []
    for ident, status, what, fd, is_main, is_daemon, is_scoped, task, age, carrier, frame in _core.threads():
        result.append(
            ThreadSnapshot(
                ident=ident,
                name=_name(python_threads.get(ident), task, is_main),
                carrier=carrier,
                state=status,
                waits_for=what,
                descriptor=fd if fd >= 0 else None,
                age=age,
                is_main=is_main,
                is_daemon=is_daemon and not is_scoped and not is_main,
                task=task,
                stack=stack_of(frame),
            )
        )
    return result


def stack_of(frame: FrameType | None) -> list[FrameSummary]:
    """Return the calls from the oldest to ``frame``'s, without Gossamer's own."""
    from traceback import StackSummary, walk_stack

    calls = StackSummary.extract(walk_stack(frame)) if frame is not None else []
    return [call for call in reversed(calls) if not call.filename.startswith(_OWN_FOLDER)]


def _describe_parked_tasks(carrier: int | None) -> list[str]:
    """One paragraph an asyncio task that is parked in a blocking call; of one carrier, or of all."""
    parked = _core.parked_steps(carrier)
    if not parked:
        return []
    import asyncio
    from traceback import format_list

    tasks = {
        task.get_coro(): task for loop in {loop for *_, loop in parked if loop} for task in asyncio.all_tasks(loop)
    }
    result = []
    for coroutine, what, fd, age, frame, _loop in parked:
        task = tasks.get(coroutine)
        name = f"{task.get_name()!r}, {coroutine.__qualname__}" if task else coroutine.__qualname__
        where = f" on descriptor {fd}" if fd >= 0 else ""
        head = f"asyncio task ({name}): parked in {what}{where} for {age:.3f} s"
        result.append("\n".join([head, *(line.rstrip("\n") for line in format_list(stack_of(frame)))]))
    return result


def _name(thread: object, task: _core.Task[Any] | None, is_main: bool) -> str:
    if is_main:
        import threading

        is_of_program = thread is None or thread is threading.main_thread()
        return "main" if is_of_program else f"main of {thread._name}"  # type: ignore[attr-defined]
    if task is not None:
        return task._name or "a task that has ended"
    return getattr(thread, "_name", None) or "a thread of _thread.start_new_thread()"


def dump(*, file: TextIO | None = None) -> None:
    """Print what each virtual thread does, on every carrier: its age, what it waits for, its Python stack.

    Args:
        file: Where to; None: standard error.
    """
    print(describe_threads(), file=sys.stderr if file is None else file, flush=True)


def describe_threads(*, carrier: int | None = None) -> str:
    """One paragraph a virtual thread; of one carrier, or of all."""
    threads = [thread for thread in snapshot() if carrier in (None, thread.carrier)]
    if not threads:
        return "gossamer: no virtual threads"
    carriers = len({thread.carrier for thread in threads})
    head = f"gossamer: {len(threads)} virtual threads" + (f" on {carriers} carriers" if carriers > 1 else "")
    return "\n\n".join([head, *map(str, threads), *_describe_parked_tasks(carrier)])


def describe_waits(main_waits_for: str) -> str:
    """One line a virtual thread: what it waits for and the program's line that does; for DeadlockError."""
    import _thread

    threads = snapshot()
    loops = sys.modules["gossamer._event_loop"].running_loops() if "gossamer._event_loop" in sys.modules else {}
    lines = []
    for thread in threads[:_MOST_IN_AN_ERROR]:
        # The others' main virtual threads are told too, and so may be ready by now.
        if thread.waits_for is None and thread.carrier == _thread.get_ident():
            thread = thread._replace(waits_for=main_waits_for)
        lines.append(f"  {thread.name}: {thread.waits_for or thread.state}{_where(thread.stack)}")
        if thread.ident in loops:
            lines += _describe_waits_of_tasks(loops[thread.ident])
    return "\n".join(lines + _tell_of_more(threads, "  "))


def _tell_of_more(items: list[Any], indentation: str) -> list[str]:
    more = len(items) - _MOST_IN_AN_ERROR
    return [f"{indentation}... and {more} more"] if more > 0 else []


def _describe_waits_of_tasks(loop: Any) -> list[str]:
    import asyncio

    tasks = sorted(asyncio.all_tasks(loop), key=lambda task: (len(task.get_name()), task.get_name()))
    lines = [f"    {task.get_name()}: {wait_of_task(task)}" for task in tasks[:_MOST_IN_AN_ERROR]]
    return lines + _tell_of_more(tasks, "    ")


def wait_of_task(task: Any) -> str:
    """What an asyncio task waits for, and the program's line that does."""
    coroutine = task.get_coro()
    for parked, what, _fd, _age, frame, _loop in _core.parked_steps(None):
        if parked is coroutine:
            return f"{what}{_where(stack_of(frame))}"
    return f"an await{_where(_stack_of_coroutine(coroutine))}"


def _stack_of_coroutine(coroutine: Any) -> list[FrameSummary]:
    """Where a suspended coroutine is, and those that it awaits, outermost first."""
    from traceback import StackSummary

    frames = []
    while coroutine is not None:
        prefix = next((prefix for prefix in ("cr", "gi", "ag") if hasattr(coroutine, f"{prefix}_frame")), None)
        frame = None if prefix is None else getattr(coroutine, f"{prefix}_frame")
        if prefix is None or frame is None:
            break
        frames.append((frame, frame.f_lineno))
        coroutine = getattr(coroutine, "gi_yieldfrom" if prefix == "gi" else f"{prefix}_await")
    return [call for call in StackSummary.extract(frames) if not call.filename.startswith(_OWN_FOLDER)]


def _where(stack: list[FrameSummary]) -> str:
    call = line_of_program(stack)
    if call is None:
        return ""
    return f", {call.filename}:{call.lineno} in {call.name}" + (f": {call.line}" if call.line else "")


def is_of_program(filename: str) -> bool:
    """Whether a line is neither the standard library's nor Gossamer's own."""
    is_of_library = filename.startswith((_LIBRARY_FOLDER, "<frozen ")) and "site-packages" not in filename
    return not is_of_library and not filename.startswith(_OWN_FOLDER)


def line_of_program(stack: list[FrameSummary]) -> FrameSummary | None:
    """The innermost call that is not in the standard library, or the innermost of all."""
    for call in reversed(stack):
        if is_of_program(call.filename):
            return call
    return stack[-1] if stack else None
