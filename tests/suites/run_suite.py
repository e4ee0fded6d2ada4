#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs test suites of other projects, unmodified and pinned, plain and on our event loop, and compares them by test.

A suite is a file NAME.toml beside this one. Its source package is downloaded by pip, checked against its hash, and
unpacked under a folder; its tests run with the packages of its requirements file, twice: plain, by the interpreter
alone (kept, because that changes only with the interpreter and the pins), and with every loop that asyncio makes ours
(``../cpython/on_our_loop.py``). A test that passes plain must pass on our loop. How that is judged is the business of
CPython's own tests' harness (``../cpython/harness.py``), which this file is a guest of; what it adds is the following.

    in NAME.toml        what it says
    ------------------  ----------------------------------------------------------------------------------------------
    source, sha256      the source package, as pip names it or as a file of Debian's pool/ (where only that has the
                        tests), and the hash of its file
    keep                what of it is unpacked: the tests and their settings, not the library, which is installed
    requirements        the file with the packages, each pinned; suites that share one share an environment
    plugins, arguments  of pytest, which loads no other plugins; `variables`, if there are any, are set in both runs
    must_step           false: no coroutine need have run on a stack of its own, which otherwise proves nothing
    [[left_out]]        `test`, `because`: a test, or a file, that is not run at all: it is too long, or needs a network
    [[flaky]]           `test`, `because`: it fails by chance, plain or here; it is run, and its result does not count
    [[difference]]      `versions`, `test`, `because`: it passes plain and cannot pass here; a failure if it does
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
CPYTHON = HERE.parent / "cpython"
sys.path[:0] = [str(CPYTHON), str(HERE.parents[1] / "tools")]

import harness  # noqa: E402 - stands beside on_our_loop.py
from deb import ToolError  # noqa: E402 - stands in tools/
from debian_folder import debian_mirror  # noqa: E402
from harness import Expected, FileRun, HarnessError, Outcome, Report  # noqa: E402

CACHE = harness.Options().cache.with_name("suites")
FORMAT = 1  # part of the key of the plain results: raise it when the way they are made changes
PYTEST_ENDS = (0, 1)  # all passed, some failed
DOWNLOADS = 3  # attempts
DOWNLOAD_SECONDS = 60.0
HANG_SECONDS = 60  # that a test may take
OUR_LOOP = "gossamer."


@dataclass(frozen=True)
class Note:
    """A test that is left out or flaky, and why."""

    test: str
    because: str


@dataclass(frozen=True)
class Suite:
    """What a suite's file says."""

    name: str
    source: str
    sha256: str
    keep: tuple[str, ...]
    requirements: str
    plugins: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    must_step: bool = True
    left_out: tuple[Note, ...] = ()
    flaky: tuple[Note, ...] = ()
    difference: tuple[Expected, ...] = ()

    @property
    def packages(self) -> Path:
        """The requirements file."""
        return HERE / self.requirements

    def key(self) -> str:
        """Returns what the results of a plain run depend on, besides the interpreter."""
        pins = [FORMAT, self.source, self.sha256, self.keep, self.plugins, self.arguments, self.variables]
        left_out = [note.test for note in self.left_out]
        text = json.dumps([*pins, left_out, self.packages.read_text()])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_suite(name: str, folder: Path = HERE) -> Suite:
    """Reads a suite's file.

    Raises:
        HarnessError: It is not there, or says something else than it must.
    """
    path = folder / f"{name}.toml"
    if not path.exists():
        raise HarnessError(f"no such suite: {name}; there are {', '.join(names())}")
    data = tomllib.loads(path.read_text("utf-8"))
    try:
        for kind in ("left_out", "flaky"):
            data[kind] = tuple(Note(**fields) for fields in data.get(kind, ()))
        entries = [(tuple(fields.pop("versions")), fields) for fields in data.get("difference", ())]
        data["difference"] = tuple(
            Expected(versions, name, fields.pop("test"), "", **fields) for versions, fields in entries
        )
        lists = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        suite = Suite(name, **lists)
    except (TypeError, KeyError) as error:
        raise HarnessError(f"{path}: {error}") from error
    for entry in (*suite.left_out, *suite.flaky, *suite.difference):
        if not entry.because.strip():
            raise HarnessError(f"{path}: an entry needs a reason in `because`")
    return suite


def names() -> list[str]:
    """Returns the names of all suites."""
    return sorted(path.stem for path in HERE.glob("*.toml"))


# --- The source ------------------------------------------------------------------------------------------------------


def download(suite: Suite, python: str) -> Path:
    """Returns the source package's file, which is kept outside of the repository.

    Raises:
        HarnessError: It cannot be had, or is not the one that is pinned.
    """
    folder = CACHE / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for _ in range(DOWNLOADS + 1):
            for file in folder.glob("*.tar.*"):
                if hashlib.sha256(file.read_bytes()).hexdigest() == suite.sha256:
                    return file
            if suite.source.startswith("pool/"):
                download_from_debian(suite, folder)
            else:
                download_by_pip(suite, folder, python)
    raise HarnessError(f"{suite.name}: cannot get {suite.source} with the hash {suite.sha256}")


def download_by_pip(suite: Suite, folder: Path, python: str) -> None:
    """Downloads a source package from Python's package index."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{suite.source} --hash=sha256:{suite.sha256}\n")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps", "--require-hashes"]
    pip += ["--no-binary", suite.source.split("==")[0], "-d", str(folder), "-r", str(wanted)]
    subprocess.run(pip, stdin=subprocess.DEVNULL, check=False)


def download_from_debian(suite: Suite, folder: Path) -> None:
    """Downloads what Debian has for the source, from the archive that this machine's apt uses."""
    try:
        address = f"{debian_mirror()}/{suite.source}"
        with urllib.request.urlopen(address, timeout=DOWNLOAD_SECONDS) as source:
            (folder / Path(suite.source).name).write_bytes(source.read())
    except (OSError, ToolError) as error:
        print(f"{suite.name}: {error}", file=sys.stderr)


def unpack(suite: Suite, file: Path, target: Path) -> None:
    """Unpacks what is kept of a source package under ``target``, afresh: tests may leave something behind."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with tarfile.open(file) as archive:
        for member in archive:
            _, _, path = member.name.partition("/")
            if any(path == kept or path.startswith(f"{kept}/") for kept in suite.keep):
                member.name = path
                archive.extract(member, target, filter="data")


# --- Running one suite -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """How suites are run; `main` fills it from the command line."""

    python: str = sys.executable
    sources: Path = HERE.parents[1] / "build" / "suites"
    logs: Path | None = None
    timeout: float = 1200
    fresh: bool = False
    plain_only: bool = False
    list_all: bool = False
    in_place: bool = False
    plain_runner: tuple[str, ...] = ("{python}",)
    runner: tuple[str, ...] = (
        *("{python}", "-m", "gossamer", "run", "--lost-errors=warn", "--no-inherit"),
        *(str(CPYTHON / "on_our_loop.py"), "--park"),
    )


def run_once(suite: Suite, file: Path, mode: str, options: Options, only: Collection[str] = ()) -> FileRun:
    """Runs a suite, or ``only`` some tests of it, in a process of its own; ``mode`` is "plain" or "gossamer"."""
    logs = options.logs or CACHE / "logs"
    paths = harness.paths_of(suite.name, mode, logs, ("log", "err", "jsonl", "stats"))
    source = options.sources / f"{suite.name}-{mode}"
    unpack(suite, file, source)
    runner = options.runner if mode == "gossamer" else options.plain_runner
    command = [part.replace("{python}", options.python) for part in runner]
    command += ["-m", "pytest", "-p", "outcomes", "-p", "no:cacheprovider", *suite.arguments]
    command += [f"-ofaulthandler_timeout={HANG_SECONDS}", "-ofaulthandler_exit_on_timeout=true"]
    command += [f"--deselect={note.test}" for note in suite.left_out]
    command += sorted({re.sub(r"#\d+$", "", test) for test in only})
    search = (HERE, HERE.parents[1] / "python") if options.in_place and mode == "gossamer" else (HERE,)
    variables = (
        f"SUITE_OUTCOMES={paths['jsonl']}",
        f"PYTHONPATH={os.pathsep.join(map(str, search))}",
        "PYTHONDONTWRITEBYTECODE=1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1",
        f"PYTEST_PLUGINS={','.join(suite.plugins)}",
        *suite.variables,
    )
    started = time.monotonic()
    child = harness.run_child(command, mode, paths, variables, options.timeout, cwd=source)
    run = read_run(paths["jsonl"], child, paths["err"].read_text("utf-8", "replace"), mode)
    run.seconds = time.monotonic() - started
    run.log = str(paths["log"])
    if child.timed_out:
        run.where += f", after {options.timeout:g} s"
    if mode == "gossamer" and run.end == "normal":
        run.problems += harness.check_stats(harness.File(must_step=suite.must_step), paths["stats"], child.pid)
    return run


def lines_of(path: Path) -> Iterator[dict]:
    """Yields the lines that outcomes.py wrote; the last may be torn."""
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text("utf-8").splitlines():
            yield json.loads(line)


def read_run(outcomes: Path, child: harness.Child, errors: str, mode: str) -> FileRun:
    """Puts together what a process left: its outcomes, its standard error and how it ended."""
    table = harness.MethodTable("")
    running: dict[str, None] = {}
    end = None
    for line in lines_of(outcomes):
        if "started" in line:
            running[line["started"]] = None
        elif "test" in line:
            running.pop(line["test"], None)
            table.outcomes[table.name(line["test"])] = Outcome(line["status"], line["detail"])
        else:
            end = line
    run = FileRun(table.outcomes, "hang" if child.timed_out else "normal" if end else "crash")
    if run.end != "normal":
        run.running = next(iter(running), "")
        done = next(reversed(table.outcomes), "")
        run.where = (
            f"while {run.running} was running" if running else f"after {done}" if done else "before the first test"
        )
        table.outcomes.update({name: Outcome("none") for name in running})
        if run.end == "crash":
            run.where += f", exit code {child.returncode}{harness.last_words(errors)}"
        return run
    if end["end"] not in PYTEST_ENDS or child.returncode != end["end"]:
        run.problems.append(f"exit code {child.returncode}, pytest's {end['end']}{harness.last_words(errors)}")
    if end["loop"].startswith(OUR_LOOP) != (mode == "gossamer"):
        run.problems.append(f"asyncio's loop was {end['loop']}")
    return run


# --- Comparing -------------------------------------------------------------------------------------------------------


def do_suite(suite: Suite, interpreter: harness.Interpreter, options: Options) -> Report:
    """Runs a suite plain, unless that is kept, and on our loop, and compares."""
    file = download(suite, options.python)
    kept = CACHE / "plain" / interpreter.key / f"{suite.name}-{suite.key()}.json"
    started = time.monotonic()
    plain = harness.plain_of(kept, lambda again: run_once(suite, file, "plain", options, again), fresh=options.fresh)
    is_kept = time.monotonic() - started < plain.seconds
    if options.plain_only:
        report = Report(suite.name, plain, "", failures=harness.plain_failures(plain))
    else:
        run = run_once(suite, file, "gossamer", options)
        report = harness.compare(suite.name, without_flaky(plain, suite), run, suite.difference, interpreter.label)
    report.plain_seconds = f"{plain.seconds:.1f}{' kept' * is_kept}"
    return report


def without_flaky(plain: FileRun, suite: Suite) -> FileRun:
    """Returns the plain results without those that count for nothing."""
    flaky = {note.test for note in suite.flaky}
    unknown = flaky - plain.methods.keys()
    methods = {name: outcome for name, outcome in plain.methods.items() if name not in flaky}
    problems = [*plain.problems, *(f"{name}: listed as flaky, and there is no such test" for name in sorted(unknown))]
    return replace(plain, methods=methods, problems=problems)


def run(suites: Sequence[Suite], options: Options) -> int:
    """Runs suites, prints what differs, and the counts; returns the exit code."""
    probed = harness.Options(files=(), python=options.python, plain_runner=" ".join(options.plain_runner))
    interpreter = harness.probe(probed)
    print(f"{interpreter.label}: {interpreter.version}; plain results {interpreter.key}", flush=True)
    reports = [do_suite(suite, interpreter, options) for suite in suites]
    harness.print_report(reports, harness.Options(list_all=options.list_all))
    failed = sum(len(report.failures) for report in reports)
    passed = sum((report.plain if options.plain_only else report.run).count("ok") for report in reports)
    print(f"{passed} passed, {failed} failed")
    return 0 if failed == 0 else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    defaults = Options()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("suites", nargs="+", metavar="SUITE", help=f"one of {', '.join(names())}")
    parser.add_argument("--python", default=defaults.python, help="the interpreter under test (default: this one)")
    parser.add_argument("--sources", type=Path, default=defaults.sources, help="where suites are unpacked")
    parser.add_argument("--logs", type=Path, help="folder for the output of each run (default: in the cache)")
    parser.add_argument("--timeout", type=float, default=defaults.timeout, help="seconds a run (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="run plain again, whatever the cache has")
    parser.add_argument("--plain-only", action="store_true", help="only fill the cache")
    parser.add_argument("--all", action="store_true", help="list every difference, however many there are")
    parser.add_argument("--in-place", action="store_true", help="use what tools/build_in_place.sh built")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the children are ended
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    options = Options(
        python=os.path.abspath(given.python) if os.sep in given.python else given.python,
        sources=given.sources.absolute(),
        logs=given.logs,
        timeout=given.timeout,
        fresh=given.fresh,
        plain_only=given.plain_only,
        list_all=given.all,
        in_place=given.in_place,
    )
    try:
        return run([read_suite(name) for name in given.suites], options)
    except HarnessError as error:
        print(f"run_suite: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
