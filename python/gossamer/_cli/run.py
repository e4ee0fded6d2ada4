# SPDX-License-Identifier: Apache-2.0
"""``gossamer run``: a program as ``python`` would run it, on virtual threads.

The program gets the `__main__` module, `sys.argv` and `sys.path` that it would have had; tracebacks begin in the
program. The end of the program is the interpreter's own: `threading._shutdown` joins the threads, atexit handlers run,
and the last of them ends Gossamer.
"""

from __future__ import annotations

import builtins
import importlib.machinery
import io
import linecache
import os
import runpy
import sys
import types

from gossamer import _core, _run
from gossamer._cli.start import RunOptions, start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def run_program(options: RunOptions) -> NoReturn:
    """Run the program and end the process with its exit code."""
    start(options, leave)
    failure: BaseException | None = None
    try:
        _execute(options)
    except BaseException as error:
        failure = error
    if failure is None:
        sys.exit(0)
    if isinstance(failure, SystemExit):
        sys.exit(failure.code)
    # Outside the handler, or what sys.excepthook raises would have the program's error as its context.
    _report(failure)
    if isinstance(failure, KeyboardInterrupt):
        # Told once. Raised once more, for the interpreter to end the process by SIGINT when it is finalized.
        sys.excepthook = lambda *_: None
        options.is_interrupted = True
        raise failure
    sys.exit(1)


def _execute(options: RunOptions) -> None:
    if options.kind == "-m":
        sys.argv[:] = [options.program, *options.arguments]
        sys.path[0] = os.getcwd()
        runpy._run_module_as_main(options.program)  # type: ignore[attr-defined]
        return
    if options.kind == "-c":
        sys.argv[:] = ["-c", *options.arguments]
        sys.path[0] = ""
        code = compile(options.program, "<string>", "exec")
        if sys.version_info >= (3, 13):  # tracebacks show the lines
            key = code if hasattr(linecache, "_interactive_cache") else "<string>"  # the key of the first releases
            linecache._register_code(key, options.program, "<string>")  # type: ignore[attr-defined]
        _execute_code(code, None)
        return
    sys.argv[:] = [options.program, *options.arguments]
    if os.path.isdir(options.program) or options.program.endswith((".zip", ".pyz")):
        sys.path[0] = options.program
        runpy._run_module_as_main("__main__", False)  # type: ignore[attr-defined]
        return
    sys.path[0] = os.path.dirname(os.path.realpath(options.program))
    try:
        with io.open_code(os.path.abspath(options.program)) as file:
            source = file.read()
    except OSError as error:
        print(f"{sys.executable}: can't open file {os.path.abspath(options.program)!r}: {error}", file=sys.stderr)
        sys.exit(2)
    _execute_code(compile(source, options.program, "exec"), options.program)


def _execute_code(code: types.CodeType, path: str | None) -> None:
    module = types.ModuleType("__main__")
    module.__builtins__ = builtins  # type: ignore[attr-defined]
    if path is not None:
        module.__file__ = path
        module.__cached__ = None  # type: ignore[attr-defined]
        module.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    else:
        module.__loader__ = importlib.machinery.BuiltinImporter
    sys.modules["__main__"] = module
    exec(code, module.__dict__)


def _report(error: BaseException) -> None:
    """Print the traceback as the interpreter does, without our own frames."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(os.path.dirname(__file__)):
        trace = trace.tb_next
    _core.report_uncaught(error.with_traceback(trace))


def leave(options: RunOptions) -> None:
    """End Gossamer with the process; the last of the atexit handlers."""
    _collect_lost_errors(options)
    _write_statistics()
    _run.leave(options.exit_grace)
    if options.lost_errors == "exit" and _core.was_error_lost():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    if options.is_interrupted:
        _core.end_by_interrupt()


def _collect_lost_errors(options: RunOptions) -> None:
    """An asyncio task tells of its error when it dies, which in a cycle of references would be too late."""
    if options.lost_errors == "exit" and "asyncio" in sys.modules and not _core.was_error_lost():
        import gc

        gc.collect()


def _write_statistics() -> None:
    path = os.environ.get("GOSSAMER_STATS_FILE")
    if path:
        # Numbers and a truth value, so this is JSON; importing json could run finalisers of the program's in between.
        pairs = ", ".join(
            f'"{name}": {str(value).lower()}' for name, value in {"pid": os.getpid(), **_core.statistics()}.items()
        )
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{{{pairs}}}\n")
