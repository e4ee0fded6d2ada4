#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Finds or gets each CPython that the project supports, and runs commands where it lives.

    interpreters.py list [--json]           what is there now, without downloads
    interpreters.py get TAG...              finds each, or fetches it
    interpreters.py run TAG -- CMD ARGS...  runs CMD where that interpreter lives; {python} in ARGS is its path there
    interpreters.py newest                  prints the path of the newest supported one on this machine itself

TAG is a version such as 3.14, with a `t` for the free-threaded build. Sources, in this order: PATH; pyenv; Debian
packages of this machine's release (as root); Debian's next release in a folder of the cache (`debian_folder.py`), and
there, for the free-threaded build, CPython's source as Debian has it. What counts as one: `candidates.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from candidates import TAGS, WORKING, Interpreter, Tag, ask, find_on_host
from deb import Archive, ToolError, cache_folder, locked, release_name, run_with_retries
from debian_folder import BASE_PACKAGES, OLDER_RELEASE, RELEASE, DebianFolder

COMMAND_NOT_FOUND = 127  # what a shell says

# $1: a folder to work in, $2: source package, $3: the release to try when the newest one's files are missing.
GET_SOURCE = """
rm -rf "$1" && mkdir -p "$1" && cd "$1"
apt-get -qq update
apt-get -qq source --download-only "$2" || apt-get -qq source --download-only "$2/$3"
"""
# $1: the same folder, $2: prefix. Debian's patches, which are for its own packages, stay out.
BUILD = """
cd "$1" && tar -xf *.orig.tar.* && cd Python-*
./configure --quiet --disable-gil --prefix="$2"
make --silent --jobs="$(nproc)"
make --silent altinstall DESTDIR="$1/installed"
mkdir -p "$(dirname "$2")" && rm -rf "$2" && mv "$1/installed$2" "$2"
rm -rf "$1"
"""

FOLDER_TAGS = ("3.13", "3.14", "3.15")  # those that Debian's RELEASE has packages of


def find_in_folder(tag: Tag, folder: DebianFolder) -> Interpreter | None:
    """Returns the interpreter ``tag`` of the Debian folder, if it has it."""
    python = tag.prefix / "bin" / tag.program if tag.free_threaded else Path("/usr/bin") / tag.program
    if not (folder.path / python.relative_to("/")).exists():
        return None
    answer = ask(folder.command([str(python)]))
    if answer is None or answer.refusal(tag):
        return None
    source = f"built from source in Debian {RELEASE}" if tag.free_threaded else f"Debian {RELEASE}"
    return Interpreter(tag, ".".join(map(str, answer.version)), str(python), f"{source}, {folder.path}", folder)


def find(tag: Tag) -> Interpreter | None:
    """Returns the interpreter ``tag`` if it is there; downloads nothing."""
    return find_on_host(tag, []) or find_in_folder(tag, DebianFolder())


def get(tag: Tag) -> Interpreter:
    """Returns the interpreter ``tag``, fetched if it is not there.

    Raises:
        ToolError: It cannot be had; the message says how to get it by hand.
    """
    refusals: list[str] = []
    found = find_on_host(tag, refusals)
    for fetch in (_install_on_host, _get_in_folder):
        try:
            found = found or fetch(tag)
        except ToolError as error:
            refusals.append(str(error))
    if found is None:
        raise ToolError("\n  ".join([f"cannot get CPython {tag.name}.", *refusals, by_hand(tag)]))
    return found


def by_hand(tag: Tag) -> str:
    """Returns what a person can do to have ``tag``."""
    minimum = ".".join(map(str, tag.minimum))
    configured = " configured with --disable-gil" if tag.free_threaded else ""
    packaged = "" if tag.free_threaded else f" Or install your distribution's packages: {' '.join(tag.packages)}."
    return (
        f"By hand: `pyenv install {tag.name}`, or build CPython {minimum} or later{configured} from source, and put its"
        f" {tag.program} on PATH.{packaged}"
    )


def _install_on_host(tag: Tag) -> Interpreter | None:
    """Installs the packages of this machine's release, if it has them and we may."""
    if tag.free_threaded or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return None
    if not all(Archive(cache_folder() / f"deb-{release_name()}").has(package) for package in tag.packages):
        return None
    say(f"installing {' '.join(tag.packages)}")
    run_with_retries(["sh", "-c", 'apt-get -qq update; apt-get -qq --yes install "$@"', "sh", *tag.packages])
    return find_on_host(tag, [])


def _get_in_folder(tag: Tag) -> Interpreter | None:
    """Gets it into the Debian folder, which is made first where there is none."""
    folder = DebianFolder()
    if not tag.free_threaded and tag.name not in FOLDER_TAGS:
        return None
    packages = BASE_PACKAGES if tag.free_threaded else (*BASE_PACKAGES, *tag.packages)
    if not folder.exists():
        say(f"getting Debian {RELEASE} into {folder.path}: a minute or more, 2 GB on disk")
    folder.create()
    folder.install(packages)
    if tag.free_threaded and find_in_folder(tag, folder) is None:
        say(f"building {tag.program} from source: some minutes; its output is in {folder.log}")
        work = f"/usr/src/{tag.program}"
        folder.set_up(GET_SOURCE, work, f"python{tag.version}", OLDER_RELEASE)
        folder.set_up(BUILD, work, str(tag.prefix), attempts=1)
    return find_in_folder(tag, folder)


def say(text: str) -> None:
    """Tells the user on stderr what takes long."""
    print(f"interpreters.py: {text}", file=sys.stderr, flush=True)


def row(it: Interpreter) -> dict[str, object]:
    """Returns what `list --json` tells of an interpreter."""
    in_folder = it.folder is not None
    return {"tag": it.tag.name, "version": it.version, "python": it.python, "source": it.source, "in_folder": in_folder}


def list_command(options: argparse.Namespace) -> int:
    """Prints what is there now."""
    found = {name: find(tag) for name, tag in TAGS.items()}
    if options.json:
        print(json.dumps([row(it) for it in found.values() if it is not None], indent=2))
        return 0
    for name, it in found.items():
        print(f"{name:6} {it.version:8} {it.python}  ({it.source})" if it else f"{name:6} not there")
    return 0


def get_command(options: argparse.Namespace) -> int:
    """Finds or fetches each interpreter that was asked for."""
    with locked("interpreters"):
        for tag in options.tags:
            it = get(tag)
            print(f"{tag.name:6} {it.version:8} {it.python}  ({it.source})", flush=True)
    return 0


def run_command(options: argparse.Namespace) -> int:
    """Becomes the command, where the interpreter lives."""
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not words:
        raise ToolError("run: no command")
    it = find(options.tag)
    if it is None:
        raise ToolError(f"CPython {options.tag.name} is not there: interpreters.py get {options.tag.name}")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and the command would inherit that
    command = it.command(words)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        say(f"{command[0]}: {error.strerror}")
        return COMMAND_NOT_FOUND


def newest() -> Interpreter:
    """Returns the newest interpreter of this machine itself that Gossamer works on; its tests need not be there.

    Raises:
        ToolError: There is none; the message says how to get one.
    """
    refusals: list[str] = []
    tags = [TAGS[name] for name in WORKING if not TAGS[name].free_threaded]
    tags.sort(key=lambda tag: tag.minimum, reverse=True)
    for tag in tags:
        it = find_on_host(tag, refusals, need_tests=False)
        if it is not None:
            return it
    raise ToolError("\n  ".join(["no supported CPython on PATH or under pyenv.", *refusals, by_hand(tags[0])]))


def newest_command(options: argparse.Namespace) -> int:
    """Prints the path of the newest supported interpreter of this machine itself."""
    print(newest().python)
    return 0


def tag_of(text: str) -> Tag:
    """Returns the tag of that name, for argparse."""
    if text not in TAGS:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(TAGS)}")
    return TAGS[text]


def command_line() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(prog="interpreters.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="say what is there now; downloads nothing")
    listing.add_argument("--json", action="store_true", help="for programs")
    listing.set_defaults(function=list_command)
    getting = commands.add_parser("get", help="find or fetch interpreters")
    getting.add_argument("tags", metavar="TAG", nargs="+", type=tag_of, help=", ".join(TAGS))
    getting.set_defaults(function=get_command)
    running = commands.add_parser("run", help="run a command where an interpreter lives")
    running.add_argument("tag", metavar="TAG", type=tag_of, help=", ".join(TAGS))
    running.add_argument("words", metavar="-- CMD ARGS", nargs=argparse.REMAINDER, help="{python}: its path there")
    running.set_defaults(function=run_command)
    newest = commands.add_parser("newest", help="print the path of the newest one on this machine itself")
    newest.set_defaults(function=newest_command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options = command_line().parse_args(arguments)
    try:
        code: int = options.function(options)
    except ToolError as error:
        say(str(error))
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
