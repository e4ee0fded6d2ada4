# SPDX-License-Identifier: Apache-2.0
"""The command line: ``gossamer run``, ``gossamer doctor``.

Parsing stops at the program: everything after it is the program's own, as with ``python``.
"""

from __future__ import annotations

import sys

from gossamer._cli.run import run_program
from gossamer._cli.start import RunOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_USAGE = """\
usage: gossamer run [OPTIONS] (SCRIPT | -m MODULE | -c CODE) [ARGS...]
       gossamer doctor

run: run a Python program unchanged, its main thread and its threads virtual.
doctor: say what works on this machine, and how to mend what does not.

options of run:
  --os-threads             threads that the program starts stay OS threads
  --lost-errors=exit|warn  exit: an error that nobody took makes the exit code 1 (the default)
  --exit-grace=SECONDS     time for what is left at the end to clean up (5)
  --no-inherit             Python children of the program are plain Python
  -h, --help               show this
"""


def main() -> NoReturn:
    """Run the command line of this process."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print(_USAGE, end="")
        sys.exit(0)
    if arguments == ["doctor"]:
        from gossamer._cli.doctor import run_doctor

        sys.exit(run_doctor())
    if arguments[:1] != ["run"]:
        _refuse("the commands are `run` and `doctor`")
    run_program(_parse_run(arguments[1:]))


def _parse_run(arguments: list[str]) -> RunOptions:
    options = RunOptions()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ("-h", "--help"):
            print(_USAGE, end="")
            sys.exit(0)
        elif argument == "--os-threads":
            options.os_threads = True
        elif argument == "--no-inherit":
            options.inherit = False
        elif argument.startswith("--lost-errors="):
            options.lost_errors = _choice(argument, ("exit", "warn"))
        elif argument.startswith("--exit-grace="):
            options.exit_grace = _seconds(argument)
        elif argument in ("-m", "-c"):
            if not rest:
                _refuse(f"argument expected for the {argument} option")
            options.kind, options.program, options.arguments = argument, rest[0], rest[1:]
            return options
        elif argument.startswith("-") and argument != "-":
            _refuse(f"unknown option {argument}")
        else:
            options.kind, options.program, options.arguments = "script", argument, rest
            return options
    _refuse("no program given")


def _choice(argument: str, choices: tuple[str, ...]) -> str:
    name, _, value = argument.partition("=")
    if value not in choices:
        _refuse(f"{name} is one of {', '.join(choices)}")
    return value


def _seconds(argument: str) -> float:
    name, _, value = argument.partition("=")
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        _refuse(f"{name} takes a number of seconds, 0 or more")
    return seconds


def _refuse(message: str) -> NoReturn:
    print(f"gossamer: {message}\n{_USAGE}", end="", file=sys.stderr)
    sys.exit(2)
