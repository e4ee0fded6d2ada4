# SPDX-License-Identifier: Apache-2.0
"""What a process that runs on Gossamer from its start has: for ``gossamer run``, and for its Python children.

A child finds the options in an environment variable that ``gossamer.pth``, which the wheel puts into site-packages,
looks
for. Its interpreter then runs the program as always; only its main thread has become a virtual thread before.
"""

from __future__ import annotations

import atexit
import os
import resource
import signal

from gossamer import _core, _run
from gossamer._errors import watch_coroutines, watch_event_loops

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

VARIABLE = "GOSSAMER_RUN"


class RunOptions:
    """What the command line asked for."""

    def __init__(self) -> None:
        self.kind = "script"  # script, -m or -c
        self.program = ""
        self.arguments: list[str] = []
        self.os_threads = False
        self.lost_errors = "exit"
        self.exit_grace = 5.0
        self.inherit = True
        self.is_interrupted = False  # the program ended by an uncaught KeyboardInterrupt

    def to_environment(self) -> str:
        """The value of the variable for children; they never fail for lost errors."""
        return f"os_threads={int(self.os_threads)},exit_grace={self.exit_grace!r}"

    @classmethod
    def from_environment(cls, value: str) -> RunOptions:
        """The options in a variable's value; raises ValueError when it is none of ours."""
        options = cls()
        options.lost_errors = "warn"
        for part in value.split(","):
            name, _, text = part.partition("=")
            if name == "os_threads":
                options.os_threads = text == "1"
            elif name == "exit_grace":
                options.exit_grace = float(text)
            else:
                raise ValueError(f"{VARIABLE}: unknown option {name!r}")
        return options


_started: RunOptions | None = None


def start(options: RunOptions, at_exit: Callable[[RunOptions], None]) -> None:
    """Make this thread, the main thread of the process, the main virtual thread; end Gossamer with the process.

    A process that inherited Gossamer and then runs ``gossamer run`` keeps its hub and takes the new options.
    """
    global _started
    if options.inherit:
        os.environ[VARIABLE] = options.to_environment()
    else:
        os.environ.pop(VARIABLE, None)
    if _started is not None:
        vars(_started).update(vars(options))
        _core.make_threads_virtual(not options.os_threads)
        return
    _started = options
    _raise_descriptor_limit()
    _run.enter(virtual_threads=not options.os_threads)
    _install_quit_handler()
    watch_coroutines()
    watch_event_loops()
    atexit.register(at_exit, options)  # registered first, so it runs last


def start_inherited() -> None:
    """Start Gossamer in a child; called by ``gossamer.pth`` while the interpreter imports `site`."""
    from gossamer._cli.run import leave

    start(RunOptions.from_environment(os.environ[VARIABLE]), leave)


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _dump_on_quit(_number: int, _frame: object) -> None:
    from gossamer._dump import dump

    dump()


def _install_quit_handler() -> None:
    if signal.getsignal(signal.SIGQUIT) is signal.SIG_DFL:
        signal.signal(signal.SIGQUIT, _dump_on_quit)
        _core.set_own_signal_handler(_dump_on_quit)
