#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs files of CPython's own test suite, unmodified and whole, plain and under Gossamer, and compares them by method.

A method that passes plain must pass under Gossamer. One that does not is *beyond plain*, and is a failure unless
expected.toml lists it with one of three reasons. Each file is a process of its own, started as
``RUNNER -m test -v FILE``; plain, the runner is the interpreter alone, and its results are kept, because they change
only with the interpreter.

    what could make a comparison worthless          what the harness does about it
    ----------------------------------------------  ---------------------------------------------------------------
    Gossamer was not in the process, or did nothing demands the process's line in GOSSAMER_STATS_FILE: the main
                                                    thread virtual, parks > 0 and steps > 0 where FILES says so
    children of the tests were plain                demands lines of other processes where FILES says so
    a method no longer runs, or is skipped          both count, like a failure
    the process dies or hangs                       the method that ran is named; expected.toml cannot excuse it
    results are lost in a test's own output         two sources (the log, the JUnit file), and unittest's own count
    a method fails plain by chance                  a plain file with a failure runs twice; a pass in either counts
    expected.toml grows, or outlives its causes     at most 20 methods a version; an entry not needed is a failure

Why two sources: the JUnit file has no failed subtests and no setUpClass, and on 3.12.1 no skipped methods (gh-113267);
the log has them all, but a test that writes to its standard output may garble it, and only it survives a crash.

One file, though long, since it must run alone, with nothing but the standard library of Python 3.12 or later. Its
parts, each of which can be read by itself: what one process said, running one file, comparing.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class File:
    """How one file of CPython's suite is run."""

    is_recent: bool = False  # not in every version that is supported
    must_park: bool = True  # a run in which nothing parked proves nothing; False: the file may hardly wait
    has_children: bool = False  # starts Python children, which inherit Gossamer; False: hardly any
    must_step: bool = False  # every step of a coroutine runs on a stack of its own; a run with none proves nothing
    alone: bool = False  # measures time, or disturbs what runs beside it
    ignore: tuple[str, ...] = ()  # patterns of -i; a class's bare name matches its methods (a dotted one would not)


FILES = {
    "test_thread": File(),
    "test_threading": File(has_children=True, alone=True),
    "test_threading_local": File(),
    "test_queue": File(),
    "test_time": File(alone=True),
    "test_socket": File(ignore=("ThreadedVSOCKSocketStreamTest",)),  # hangs where VSOCK exists without a peer
    "test_select": File(),
    "test_poll": File(),
    "test_epoll": File(),
    "test_selectors": File(),
    "test_context": File(must_park=False),
    "test_generators": File(must_park=False),
    "test_gc": File(must_park=False),
    "test_signal": File(has_children=True, alone=True),
    "test_coroutines": File(must_park=False, must_step=True),
    "test_asyncgen": File(must_park=False, must_step=True),
    "test_asyncio.test_tasks": File(must_step=True),
    "test_asyncio.test_taskgroups": File(must_step=True),
    "test_asyncio.test_eager_task_factory": File(must_step=True),
    "test_asyncio.test_timeouts": File(must_step=True),
}
# On our event loop (on_our_loop.py): test_asyncio's files, but those of other systems' loops.
LOOP_NAMES = """
    base_events buffered_proto context eager_task_factory events futures locks pep492 protocols queues runners
    selector_events sendfile server sock_lowlevel ssl sslproto staggered streams subprocess taskgroups tasks threads
    timeouts transports unix_events waitfor
"""
LOOP_FILES = {
    f"test_asyncio.test_{name}": File(
        is_recent=name == "staggered",
        must_park=name not in ("buffered_proto", "pep492", "protocols", "runners", "transports"),
    )
    for name in LOOP_NAMES.split()
}
HERE = Path(__file__).resolve().parent
OUR_RUNNER = "{python} -m gossamer run --lost-errors=warn"


@dataclasses.dataclass(frozen=True)
class Suite:
    """Files that are run and judged alike."""

    files: Mapping[str, File]
    runner: str
    expected: Path


SUITES = {
    "threads": Suite(FILES, OUR_RUNNER, HERE / "expected.toml"),
    "asyncio": Suite(
        LOOP_FILES,
        f"{OUR_RUNNER} --no-inherit {shlex.quote(str(HERE / 'on_our_loop.py'))}",
        HERE / "expected_asyncio.toml",
    ),
}
ALL_FILES = {**FILES, **LOOP_FILES}
REASONS = {
    "os-thread": "it asserts a property of an OS thread",
    "private-name": "it looks at a private name that is replaced",
    "no-site": "it needs a child started with -S",
    "own-setting": "it asserts a setting of the interpreter that `gossamer run` has a value of its own for",
}
MOST_EXPECTED = 20  # methods a version
CACHE_FORMAT = 1  # part of the key of the plain results: raise it when their form or the way they are made changes
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "TZ", "TERM", "USER", "LOGNAME", "SHELL")
REGRTEST_ENDS = {0, 2, 3, 4, 5}  # exit codes of a regrtest that came to its end (libregrtest/results.py)

# Prints what identifies the interpreter; libpython is the one that is mapped, not the one that was configured.
PROBE = """
import json, os, sys, sysconfig, test
from test.libregrtest import cmdline
maps = {line.split(maxsplit=5)[-1].strip() for line in open("/proc/self/maps")}
print(json.dumps({
    "label": "%d.%d" % sys.version_info[:2] + ("t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""),
    "version": sys.version,
    "binaries": sorted({os.path.realpath(sys.executable), *(path for path in maps if "/libpython" in path)}),
    "tests": os.path.dirname(test.__file__),
    "walltime": "walltime" in cmdline.ALL_RESOURCES,
    "in_venv": sys.prefix != sys.base_prefix,
}))
"""


LIVE: set[subprocess.Popen] = set()  # each leads a group of its own, so an interrupt of the harness must end it
STOPPING = threading.Event()  # the harness was interrupted: what its threads have run counts for nothing


class HarnessError(Exception):
    """The harness cannot do its work: wrong arguments, a broken expected.toml, an interpreter without its tests."""


# --- What one process said -------------------------------------------------------------------------------------------

WORST_FIRST = ("error", "fail", "none", "skip", "ok")  # "none": started, and neither source knows how it ended
STATUSES = {
    "ok": "ok",
    "expected failure": "ok",
    "FAIL": "fail",
    "ERROR": "error",
    "unexpected success": "fail",
}
START = re.compile(r"(?P<indent> {2})?(?P<name>[^\s()]+) \((?P<where>[\w.<>]*)\)(?P<rest>.*)")
STATUS = re.compile(r"(?P<status>ok|FAIL|ERROR|expected failure|unexpected success|skipped (?P<reason>'.*'|\".*\"))$")
MODULE = re.compile(
    r"^test (?P<name>test_[\w.]+) crashed -- |^(?P<skipped>test_[\w.]+) skipped -- (?P<reason>.*)", re.M
)
BLOCK = re.compile(
    r"^={70}\n(?:ERROR|FAIL): (\S+) \(([\w.<>]*)\).*\n(?:.*\n)?-{70}\n((?:(?!={70}$|-{70}$).*\n)*)", re.M
)
RAN = re.compile(r"^Ran (\d+) tests? in ", re.M)
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclasses.dataclass
class Outcome:
    """How a method ended: one of WORST_FIRST, with the reason of a skip or the last line of a traceback."""

    status: str
    detail: str = ""

    def worse_of(self, other: Outcome) -> Outcome:
        return min(self, other, key=lambda outcome: WORST_FIRST.index(outcome.status))


@dataclasses.dataclass
class FileRun:
    """One file of the suite, run once. Goes into the cache as it is."""

    methods: dict[str, Outcome]
    end: str  # "normal", "hang" or "crash"
    where: str = ""  # of a hang or crash: "while X was running", "after X"
    running: str = ""  # the method that ran when the process hung or died, if one did
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    log: str = ""

    @classmethod
    def from_json(cls, data: Mapping) -> FileRun:
        fields = dict(data)
        fields["methods"] = {name: Outcome(**outcome) for name, outcome in data["methods"].items()}
        return cls(**fields)

    def count(self, *statuses: str) -> int:
        return sum(outcome.status in statuses for outcome in self.methods.values())

    def counts(self) -> str:
        return f"{self.count('ok')}/{self.count('skip')}/{self.count('fail', 'error', 'none')}"


class MethodTable:
    """Collects outcomes under one name a method: ``Class.method``, with #2, #3 when the very same one runs again."""

    def __init__(self, file: str) -> None:
        self._prefixes = (f"test.{file}.", f"{file}.")
        self._seen: dict[str, int] = {}
        self.outcomes: dict[str, Outcome] = {}

    def shorten(self, full_name: str) -> str:
        for prefix in self._prefixes:
            if full_name.startswith(prefix):
                return full_name.removeprefix(prefix)
        return full_name

    def name(self, full_name: str) -> str:
        short = self.shorten(full_name)
        self._seen[short] = self._seen.get(short, 0) + 1
        return short if self._seen[short] == 1 else f"{short}#{self._seen[short]}"


class LogReader(MethodTable):
    """Reads unittest's verbose output: ``name (id)``, perhaps a docstring's line, `` ... ``, a status.

    Lines of a subtest repeat the name, indented. Whatever a test writes itself may stand in between.
    """

    def __init__(self, file: str, text: str) -> None:
        super().__init__(file)
        self.current = ""  # the method whose lines are being read
        self.finished = True  # its own status has been seen, not only those of its subtests
        self._loose: Outcome | None = None  # a status glued to a test's own output
        self._full_name = ""
        self._in_subtest = False
        lines = ANSI.sub("", text).splitlines()
        for number, line in enumerate(lines):
            if line == "=" * 70 or RAN.match(line):
                break
            self._read(line, lines[number + 1] if number + 1 < len(lines) else "")
        for name, where, traceback in BLOCK.findall(ANSI.sub("", text)):
            full_name = where if where.endswith("." + name) else f"{where}.{name}"
            outcome = self.outcomes.get(self.shorten(full_name))
            if outcome and outcome.status in ("fail", "error"):
                outcome.detail = error_of(traceback)

    def _read(self, line: str, following: str) -> None:
        rest = line
        start = START.match(line)
        if start and (start["where"].startswith("test") or following.startswith("Doctest: ")):
            self._start(start, following)
            rest = start["rest"]
        found = STATUS.search(rest)
        if not found or not self.current:
            return
        outcome = Outcome(STATUSES.get(found["status"], "skip"), (found["reason"] or "")[1:-1])
        before = rest[: found.start()]
        if before and not before.endswith(" ... "):
            self._loose = outcome
        elif self._in_subtest:
            self._in_subtest = False
            self._put(outcome)
        elif not self.finished:  # else 3.12.1's status without a name, of a class that is skipped: left out
            self.finished = True
            self._put(outcome)

    def _start(self, start: re.Match, following: str) -> None:
        name, where = start["name"], start["where"]
        if following.startswith("Doctest: "):
            full_name = following.removeprefix("Doctest: ").split(" ... ")[0]
        else:
            full_name = where if where.endswith("." + name) else f"{where}.{name}"
        self._in_subtest = bool(start["indent"])
        if full_name == self._full_name:
            if self._in_subtest:
                return
            if self.outcomes[self.current].status not in ("ok", "none"):
                self.finished = False  # a second status of one method: its tearDown failed too
                return
        if not self.finished and self._loose and self.outcomes[self.current].status == "none":
            self._put(self._loose)
        self._loose = None
        self._full_name = full_name
        self.current = self.name(full_name)
        self.outcomes[self.current] = Outcome("none")
        self.finished = False

    def _put(self, outcome: Outcome) -> None:
        known = self.outcomes[self.current]
        self.outcomes[self.current] = outcome if known.status == "none" else known.worse_of(outcome)


def error_of(traceback: str) -> str:
    """Returns the line of a traceback that names the exception; what the test had printed follows the traceback."""
    own = re.split(r"^Std(?:out|err):$", traceback, maxsplit=1, flags=re.M)[0]
    named = [line for line in own.splitlines() if re.match(r"[A-Za-z_][\w.]*(: |$)", line)]
    return named[-1] if named else ""


def read_junit(file: str, path: Path) -> dict[str, Outcome]:
    """Returns what the JUnit file knows, which is not all (see the head of this file); nothing if it is not there."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return {}
    table = MethodTable(file)
    children = {"failure": "fail", "error": "error", "skipped": "skip", "outcome": "fail"}
    for case in root.iter("testcase"):
        if not (name := case.get("name")):
            continue
        outcome = Outcome("ok")
        for child in case:
            if child.tag in children:
                reason = child.text or "" if child.tag == "skipped" else ""
                outcome = outcome.worse_of(Outcome(children[child.tag], reason))
        table.outcomes[table.name(re.split(r" [(\[]", name)[0])] = outcome
    return table.outcomes


def last_words(errors: str) -> str:
    """Returns the line of standard error that tells most of a crash: faulthandler's first, or the last one."""
    lines = [line for line in errors.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("Fatal Python error")]
    return f" ({(fatal or lines[-1:])[0].strip()})" if lines else ""


def read_run(file: str, log: str, errors: str, junit: Path, returncode: int, timed_out: bool) -> FileRun:
    """Puts together what a process left: its log, its standard error, its JUnit file and how it ended."""
    reader = LogReader(file, log)
    methods = reader.outcomes
    for name, outcome in read_junit(file, junit).items():
        known = methods.get(name)
        methods[name] = outcome if known is None or known.status == "none" else known.worse_of(outcome)
    end = "hang" if timed_out else "normal" if returncode in REGRTEST_ENDS else "crash"
    module = MODULE.search(log) or MODULE.search(errors)
    if RAN.search(log) is None and module is None and end == "normal":
        end = "crash"  # an exit code of regrtest's, but regrtest never said what it ran
    run = FileRun(methods, end)
    if end != "normal":
        if RAN.search(log):
            run.where = "at the end, after the last method"
        elif not reader.current:
            run.where = "before the first method"
        elif reader.finished:
            run.where = f"after {reader.current}"
        else:
            run.running = reader.current
            run.where = f"while {reader.current} was running"
        if end == "crash":
            run.where += f", exit code {returncode}{last_words(errors)}"
    if module is not None:
        run.problems.append("the module is skipped: " + module["reason"] if module["skipped"] else "the module fails")
    ran = max((int(number) for number in RAN.findall(log)), default=0)
    if len(methods) < ran:
        run.problems.append(f"unittest ran {ran} methods, the log and the JUnit file name {len(methods)}")
    if end == "normal" and returncode != 0 and not run.count("fail", "error", "none") and not module:
        run.problems.append(f"exit code {returncode}, though no method failed")
    if re.search(rf"^{file} failed \(env changed\)|altered the execution environment", log, re.M):
        run.notes.append("leaves the environment changed")
    return run


# --- Running one file ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Interpreter:
    """The Python under test, and a hash of all that its plain results depend on."""

    python: str
    label: str  # as in expected.toml: "3.13", "3.13t"
    version: str
    tests: Path
    walltime: bool
    key: str


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run and how; `main` fills it from the command line."""

    files: tuple[str, ...] = tuple(FILES)
    python: str = sys.executable
    runner: str = OUR_RUNNER
    plain_runner: str = "{python}"
    expected: Path = SUITES["threads"].expected
    cache: Path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gossamer" / "cpython-tests"
    logs: Path | None = None
    variables: tuple[str, ...] = ()
    jobs: int = 2
    timeout: float = 600
    fresh: bool = False
    plain_only: bool = False
    list_all: bool = False
    suite: str = "threads"


def environment(home: str, variables: Iterable[str], extra: Mapping[str, str]) -> dict[str, str]:
    """A small environment, the same everywhere: no PYTHON* variable, C.UTF-8, HOME and TMPDIR of its own."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    given = dict(variable.split("=", 1) for variable in variables)
    return {**kept, "LANG": "C.UTF-8", "HOME": home, "TMPDIR": home, **given, **extra}


def is_there(tests: Path, file: str) -> bool:
    path = tests / file.replace(".", "/")
    return path.exists() or path.with_suffix(".py").exists()


def probe(options: Options) -> Interpreter:
    with tempfile.TemporaryDirectory(prefix="gs-") as home:
        child = subprocess.run(
            [options.python, "-c", PROBE],
            env=environment(home, options.variables, {}),
            cwd=home,
            capture_output=True,
            text=True,
        )
    if child.returncode != 0:
        raise HarnessError(f"{options.python} does not start, or lacks its own tests:\n{child.stderr}")
    facts = json.loads(child.stdout)
    tests = Path(facts["tests"])
    if missing := [file for file in options.files if not (is_there(tests, file) or ALL_FILES[file].is_recent)]:
        raise HarnessError(f"{tests} lacks {', '.join(missing)}")
    digest = hashlib.sha256()
    host = [os.uname().release, os.geteuid() == 0]
    parts = [CACHE_FORMAT, facts, host, options.plain_runner, options.variables, repr(SUITES[options.suite].files)]
    digest.update(json.dumps(parts).encode())
    for binary in facts["binaries"]:
        digest.update(hashlib.sha256(Path(binary).read_bytes()).digest())
    for path in sorted(tests.rglob("*.py")):
        status = path.stat()
        digest.update(f"{path.relative_to(tests)} {status.st_mtime_ns} {status.st_size}\n".encode())
    return Interpreter(
        options.python, facts["label"], facts["version"], tests, facts["walltime"], digest.hexdigest()[:16]
    )


def environment_in_place(python: str, folder: Path) -> str:
    """Makes an environment that has Gossamer from this source, as the wheel would put it there; returns its Python."""
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    source = Path(__file__).resolve().parents[2] / "python"
    (site_packages / "gossamer.pth").write_text(f"{source}\n{(source / 'gossamer.pth').read_text()}")
    return str(folder / "bin" / "python")


def log_folder(interpreter: Interpreter, options: Options) -> Path:
    return options.logs or options.cache / interpreter.key / "logs"


def run_file(file: str, mode: str, interpreter: Interpreter, options: Options) -> FileRun:
    """Runs one file in a process of its own; ``mode`` is "plain" or "gossamer"."""
    paths = paths_of(file, mode, log_folder(interpreter, options), ("log", "err", "xml", "stats"))
    runner = options.runner if mode == "gossamer" else options.plain_runner
    command = [part.replace("{python}", interpreter.python) for part in shlex.split(runner)]
    command += ["-m", "test", "-v", f"--junit-xml={paths['xml']}"]
    flags = SUITES[options.suite].files[file]
    command += ["-u", "walltime"] if interpreter.walltime else []
    command += [argument for pattern in flags.ignore for argument in ("-i", pattern)]
    started = time.monotonic()
    child = run_child([*command, file], mode, paths, options.variables, options.timeout)
    run = read_run(
        file,
        paths["log"].read_text("utf-8", "replace"),
        paths["err"].read_text("utf-8", "replace"),
        paths["xml"],
        child.returncode,
        child.timed_out,
    )
    run.seconds = time.monotonic() - started
    run.log = str(paths["log"])
    if child.timed_out:
        run.where += f", after {options.timeout:g} s"
    if mode == "gossamer" and run.end == "normal":
        run.problems += check_stats(flags, paths["stats"], child.pid)
    return run


def paths_of(file: str, mode: str, logs: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Returns what one run leaves, by suffix; nothing of an earlier run is there."""
    folder = logs / mode
    folder.mkdir(parents=True, exist_ok=True)
    paths = {suffix: (folder / f"{file}.{suffix}").absolute() for suffix in suffixes}
    for path in paths.values():
        path.unlink(missing_ok=True)
    return paths


@dataclasses.dataclass(frozen=True)
class Child:
    """How a process ended."""

    pid: int
    returncode: int
    timed_out: bool


def run_child(
    command: list[str],
    mode: str,
    paths: Mapping[str, Path],
    variables: Iterable[str],
    timeout: float,
    *,
    cwd: Path | None = None,
) -> Child:
    """Runs a process in a group, with a home, of its own; its output goes to the paths "log" and "err"."""
    extra = {}
    if mode == "gossamer":
        extra = {name: value for name, value in os.environ.items() if name.startswith("GOSSAMER_")}
        extra["GOSSAMER_STATS_FILE"] = str(paths["stats"])
    if STOPPING.is_set():
        raise HarnessError("interrupted")
    with (
        tempfile.TemporaryDirectory(prefix="gs-", ignore_cleanup_errors=True) as home,
        open(paths["log"], "wb") as log,
        open(paths["err"], "wb") as errors,
    ):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=errors,
            cwd=cwd or home,
            env=environment(home, variables, extra),
            start_new_session=True,
        )
        LIVE.add(process)
        try:
            timed_out = not wait(process, timeout)
            if timed_out:
                ask_for_dumps(process, mode)
        finally:
            kill_group(process)
            LIVE.discard(process)
    if STOPPING.is_set():
        raise HarnessError("interrupted")
    return Child(process.pid, process.returncode, timed_out)


def wait(process: subprocess.Popen, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def ask_for_dumps(process: subprocess.Popen, mode: str) -> None:
    """Has a process that hangs write where its threads are: the virtual ones, then all OS threads, which ends it."""
    for signum in (signal.SIGQUIT, signal.SIGUSR1) if mode == "gossamer" else (signal.SIGUSR1,):
        if process.poll() is None:
            process.send_signal(signum)
            wait(process, 2)


def kill_group(process: subprocess.Popen) -> None:
    """Ends the process, and whatever its tests left running in its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def check_stats(flags: File, path: Path, pid: int) -> list[str]:
    """Returns why the statistics do not show that the file and its children, which have lines too, ran on Gossamer."""
    lines = []
    try:
        for line in path.read_text("utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue  # torn: two processes at once; if it was ours, it is missed below
    except OSError:
        return ["no statistics: Gossamer was not in the process, or did not come to its end"]
    mine = [line for line in lines if isinstance(line, dict) and line.get("pid") == pid]
    if not mine:
        return [f"no line of process {pid} in the statistics: Gossamer was not in it, or did not come to its end"]
    problems = []
    if mine[-1].get("main_is_virtual") is not True:
        problems.append("the main thread was not virtual")
    parks = mine[-1].get("parks")
    if flags.must_park and not (isinstance(parks, int) and parks > 0):
        problems.append("nothing parked")
    if flags.has_children and len(mine) == len(lines):
        problems.append("the children were plain Python: no gossamer.pth in site-packages (see --in-place)")
    steps = mine[-1].get("steps")
    if flags.must_step and not (isinstance(steps, int) and steps > 0):
        problems.append("no coroutine ran on a stack of its own")
    return problems


def run_plain(file: str, interpreter: Interpreter, options: Options) -> FileRun:
    """Returns the plain results, from the cache where they are."""
    kept = options.cache / interpreter.key / f"{file}.json"
    return plain_of(kept, lambda _again: run_file(file, "plain", interpreter, options), fresh=options.fresh)


def plain_of(path: Path, run_once: Callable[[set[str]], FileRun], *, fresh: bool) -> FileRun:
    """Returns what is kept at ``path``, else runs; a file with a failure runs twice, the better counts.

    ``run_once`` runs everything; given what failed, it need not run more than that.
    """
    if not fresh:
        try:
            return FileRun.from_json(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError, KeyError):
            pass  # not there, or not of this form
    run = run_once(set())
    bad = {name for name, outcome in run.methods.items() if outcome.status in ("fail", "error", "none")}
    if bad or run.end != "normal":
        first = f"once a {run.end} {run.where}" if run.end != "normal" else ""
        again = run_once(bad if run.end == "normal" else set())
        for name, outcome in run.methods.items():
            known = again.methods.setdefault(name, outcome)
            if outcome.status == "ok" != known.status or (known.status == "ok" and name in bad):
                again.notes.append(f"flaky: {name}")
                again.methods[name] = Outcome("ok")
        again.notes += [first] if first else []
        run = again
    if run.end == "normal":
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(dataclasses.asdict(run), indent=1), "utf-8")
        partial.replace(path)
    return run


# --- Comparing -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Expected:
    """One entry of expected.toml."""

    versions: tuple[str, ...]
    file: str
    method: str
    reason: str
    because: str


def read_expected(path: Path) -> list[Expected]:
    data = tomllib.loads(path.read_text("utf-8"))
    entries = []
    counts: dict[str, int] = {}
    seen = set()
    if unknown := data.keys() - {"difference"}:
        raise HarnessError(f"{path}: unknown {', '.join(sorted(unknown))}")
    for number, fields in enumerate(data.get("difference", []), 1):
        where = f"{path}, entry {number}"
        if fields.keys() != {field.name for field in dataclasses.fields(Expected)}:
            raise HarnessError(f"{where}: needs versions, file, method, reason and because, and nothing else")
        entry = Expected(**{**fields, "versions": tuple(fields["versions"])})
        if entry.file not in ALL_FILES:
            raise HarnessError(f"{where}: {entry.file} is not one of the files")
        if entry.reason not in REASONS:
            raise HarnessError(f"{where}: the reason is {' or '.join(REASONS)}, not {entry.reason}")
        if not entry.because.strip() or "\n" in entry.because.strip():
            raise HarnessError(f"{where}: because is one line")
        if not entry.versions:
            raise HarnessError(f"{where}: names no version")
        for version in entry.versions:
            if (version, entry.file, entry.method) in seen:
                raise HarnessError(f"{where}: {entry.method} is listed twice for {version}")
            seen.add((version, entry.file, entry.method))
            counts[version] = counts.get(version, 0) + 1
        entries.append(entry)
    for version, count in counts.items():
        if count > MOST_EXPECTED:
            raise HarnessError(f"{path}: {count} methods for {version}, at most {MOST_EXPECTED} may be expected")
    return entries


MISSING = "missing"


@dataclasses.dataclass(frozen=True)
class Difference:
    """A method that passes plain and not under Gossamer."""

    method: str
    what: str  # fail, error, none, skip, MISSING, hang, crash
    detail: str = ""
    expected: bool = False


def differences(plain: FileRun, run: FileRun, expected: Iterable[Expected]) -> Iterator[Difference]:
    """Yields what is beyond plain. No entry of expected.toml covers a hang or a crash."""
    known = {entry.method for entry in expected}
    for method, outcome in plain.methods.items():
        if outcome.status != "ok":
            continue
        now = run.methods.get(method)
        if method == run.running:
            yield Difference(method, run.end, f"{run.where}; {run.log}")
        elif now is None:
            yield Difference(method, MISSING, missing_because(method, run), method in known)
        elif now.status != "ok":
            yield Difference(method, now.status, now.detail, method in known)


def missing_because(method: str, run: FileRun) -> str:
    owner = method.rpartition(".")[0]
    for fixture in (f"{owner}.setUpClass", "setUpModule"):
        if fixture in run.methods:
            return f"{fixture}: {run.methods[fixture].status} {run.methods[fixture].detail}".rstrip()
    return f"after the {run.end}" if run.end != "normal" else ""


@dataclasses.dataclass
class Report:
    """The comparison of one file. Every line of ``failures`` counts as one unexpected difference."""

    file: str
    plain: FileRun
    plain_seconds: str
    run: FileRun | None = None
    beyond: list[Difference] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)

    def row(self) -> tuple[str, ...]:
        run = self.run
        under = (run.counts(), str(len(self.beyond)), f"{run.seconds:.1f}") if run else ("-", "-", "-")
        return (self.file, self.plain.counts(), *under[:2], self.plain_seconds, under[2])


def compare(file: str, plain: FileRun, run: FileRun, expected: list[Expected], label: str) -> Report:
    entries = [entry for entry in expected if entry.file == file and label in entry.versions]
    report = Report(file, plain, "", run, list(differences(plain, run, entries)))
    report.failures += [f"plain: {failure}" for failure in plain_failures(plain)]
    if run.end != "normal" and not any(difference.method == run.running for difference in report.beyond):
        report.failures.append(f"{run.end} {run.where}; {run.log}")
    report.failures += run.problems
    for difference in sorted(
        report.beyond, key=lambda difference: ("hang", "crash").count(difference.what), reverse=True
    ):
        if not difference.expected:
            report.failures.append(f"{difference.method}: {difference.what} {difference.detail}".rstrip())
    needed = {difference.method for difference in report.beyond}
    for entry in entries:
        if entry.method not in needed:
            passes = plain.methods.get(entry.method, Outcome("missing")).status
            why = "it passes" if passes == "ok" else f"it does not pass plain either ({passes})"
            report.failures.append(f"{entry.method}: stale in expected.toml, {why}")
    return report


def plain_failures(plain: FileRun) -> list[str]:
    """Returns why the plain results are nothing to compare with. A method that fails plain is no such reason."""
    failures = [f"{plain.end} {plain.where}"] if plain.end != "normal" else []
    failures += plain.problems
    return failures if failures or plain.count("ok") else ["no method passed"]


def do_file(file: str, interpreter: Interpreter, options: Options, expected: list[Expected]) -> Report:
    started = time.monotonic()
    plain = run_plain(file, interpreter, options)
    cached = "" if time.monotonic() - started >= plain.seconds else " kept"
    if options.plain_only:
        report = Report(file, plain, "", failures=plain_failures(plain))
    else:
        report = compare(file, plain, run_file(file, "gossamer", interpreter, options), expected, interpreter.label)
    report.plain_seconds = f"{plain.seconds:.1f}{cached}"
    print(f"{file}: done, {len(report.failures)} failed", file=sys.stderr, flush=True)
    return report


def do_files(interpreter: Interpreter, options: Options, expected: list[Expected]) -> list[Report]:
    """Runs ``options.jobs`` files at a time, then those that must be alone, one by one."""
    reports = {}
    together = [file for file in options.files if not SUITES[options.suite].files[file].alone]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        futures = {file: pool.submit(do_file, file, interpreter, options, expected) for file in together}
        try:
            reports = {file: future.result() for file, future in futures.items()}
        except BaseException:
            STOPPING.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(LIVE):
                kill_group(process)
            raise
    for file in options.files:
        if SUITES[options.suite].files[file].alone:
            reports[file] = do_file(file, interpreter, options, expected)
    return [reports[file] for file in options.files]


def print_report(reports: list[Report], options: Options) -> None:
    for report in reports:
        missing = [failure for failure in report.failures if f": {MISSING}" in failure]
        left_out = set() if options.list_all else set(missing[5:])
        for failure in report.failures:
            if failure not in left_out:
                print(f"FAILED {report.file} {failure}")
        if left_out:
            print(f"FAILED {report.file} and {len(left_out)} more that are missing (--all lists them)")
        for difference in report.beyond:
            if difference.expected:
                print(f"expected {report.file} {difference.method}: {difference.what}")
        for name, outcome in report.plain.methods.items():
            if outcome.status in ("fail", "error", "none"):
                print(f"plain {report.file} {name}: {outcome.status}, so it is not compared")
        for note in report.plain.notes:
            print(f"plain {report.file} {note}")
        for note in set(report.run.notes if report.run else ()) - set(report.plain.notes):
            print(f"gossamer {report.file} {note}")
    head = ("file", "plain ok/skip/fail", "gossamer ok/skip/fail", "beyond plain", "s plain", "s gossamer")
    rows = [head, *(report.row() for report in reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    print()
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells]))


def run(options: Options) -> int:
    """Runs, compares and prints; returns the exit code."""
    expected = read_expected(options.expected)
    interpreter = probe(options)
    there = tuple(file for file in options.files if is_there(interpreter.tests, file))
    options = dataclasses.replace(options, files=there)
    print(f"{interpreter.label}: {interpreter.version}; plain results {interpreter.key}", flush=True)
    folder = log_folder(interpreter, options)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HarnessError(f"another harness writes its logs to {folder}; see --logs") from None
        reports = do_files(interpreter, options, expected)
    print_report(reports, options)
    failed = sum(len(report.failures) for report in reports)
    passed = sum((report.plain if options.plain_only else report.run).count("ok") for report in reports)
    print(f"{passed} passed, {failed} failed")
    return 0 if failed == 0 else 1


def main(arguments: list[str] | None = None) -> int:
    defaults = Options()
    parser = argparse.ArgumentParser(description="CPython's own tests, plain and under Gossamer.", allow_abbrev=False)
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"default: all of the suite: {', '.join(FILES)}")
    parser.add_argument("--suite", choices=SUITES, default="threads", help="which files (default: %(default)s)")
    parser.add_argument("--python", default=defaults.python, help="the interpreter under test (default: this one)")
    parser.add_argument("--runner", help="what stands before -m test (default: the suite's)")
    parser.add_argument("--in-place", action="store_true", help="use what tools/build_in_place.sh built")
    parser.add_argument("--expected", type=Path, help="the list of expected differences")
    parser.add_argument("--logs", type=Path, help="folder for the output of each run (default: in the cache)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="in both runs: PYTHON_JIT=1")
    parser.add_argument("--jobs", type=int, default=defaults.jobs, help="files at a time (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=defaults.timeout, help="seconds a file (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="run plain again, whatever the cache has")
    parser.add_argument("--plain-only", action="store_true", help="only fill the cache")
    parser.add_argument("--all", action="store_true", help="list every difference, however many there are")
    given = parser.parse_args(arguments)
    suite = SUITES[given.suite]
    if unknown := [file for file in given.files if file not in suite.files]:
        parser.error(f"not one of the files: {', '.join(unknown)}")
    if malformed := [variable for variable in given.env if "=" not in variable]:
        parser.error(f"not NAME=VALUE: {', '.join(malformed)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the children are ended
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    options = Options(
        files=tuple(dict.fromkeys(given.files)) or tuple(suite.files),
        python=os.path.abspath(given.python) if os.sep in given.python else given.python,
        runner=given.runner or suite.runner,
        expected=given.expected or suite.expected,
        logs=given.logs,
        variables=tuple(given.env),
        jobs=given.jobs,
        timeout=given.timeout,
        fresh=given.fresh,
        plain_only=given.plain_only,
        list_all=given.all,
        suite=given.suite,
    )
    try:
        if not given.in_place:
            return run(options)
        with tempfile.TemporaryDirectory(prefix="gs-") as folder:
            return run(dataclasses.replace(options, python=environment_in_place(options.python, Path(folder))))
    except HarnessError as error:
        print(f"harness: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
