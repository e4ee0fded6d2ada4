# SPDX-License-Identifier: Apache-2.0
"""``gossamer doctor``: one screen with what works on this machine, and how to mend what does not."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import sys
import sysconfig
from collections.abc import Iterator
from typing import NamedTuple

from gossamer import _core, _run

_IO_URING_SETUP = 425  # the system call's number on x86-64
_ENOUGH_DESCRIPTORS = 10_000
_STACKS_WITH_PROTECTED_GUARDS = 25_000  # two mappings each


class Finding(NamedTuple):
    """One line of the screen."""

    mark: str  # ok, note or bad
    subject: str
    text: str
    remedy: str = ""


def run_doctor() -> int:
    """Print the findings; return the exit code: 1 if something does not work."""
    findings = list(_findings())
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{finding.mark:<5}{finding.subject:<{width}}  {finding.text}")
        if finding.remedy:
            print(f"{'':<5}{'':<{width}}  -> {finding.remedy}")
    return int(any(finding.mark == "bad" for finding in findings))


def _findings() -> Iterator[Finding]:
    yield _versions()
    yield _virtual_threads()
    yield _guards()
    yield _descriptors()
    yield _mappings()
    yield _io_uring()
    yield _preemption()
    yield _children()


def _versions() -> Finding:
    build = "free-threaded" if sysconfig.get_config_var("Py_GIL_DISABLED") else "with the GIL"
    libc = " ".join(platform.libc_ver())
    text = f"Python {platform.python_version()} {build}, Linux {platform.release()} {platform.machine()}, {libc}"
    return Finding("ok", "versions", text)


def _virtual_threads() -> Finding:
    def look() -> bool:
        return _core.is_virtual() and _core.spawn(_core.is_virtual).result()

    try:
        works = look() if _core.is_virtual() else _run.run(look)
    except Exception as error:
        return Finding("bad", "virtual threads", f"{type(error).__name__}: {error}")
    if not works:
        return Finding("bad", "virtual threads", "a spawned function did not run in one")
    return Finding("ok", "virtual threads", "spawned, run and joined one")


def _guards() -> Finding:
    kind = _core.guard_kind()
    if kind == "installed":
        return Finding("ok", "stack guards", "MADV_GUARD_INSTALL: every stack, at no cost")
    text = f"mprotect for the first {_STACKS_WITH_PROTECTED_GUARDS:,} stacks, a checked canary for the rest"
    return Finding("note", "stack guards", text, "Linux 6.13 or later guards all of them")


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft:,}, and {hard:,} under `gossamer run`, which raises it"
    if hard < _ENOUGH_DESCRIPTORS:
        return Finding("note", "open files", text, "raise the hard limit: LimitNOFILE= of systemd, --ulimit of docker")
    return Finding("ok", "open files", text)


def _mappings() -> Finding:
    limit = int(_read("/proc/sys/vm/max_map_count") or 0)
    if limit and limit < 65_530:
        return Finding("note", "mappings", f"vm.max_map_count is {limit:,}", "sysctl vm.max_map_count=65530 or more")
    return Finding("ok", "mappings", f"vm.max_map_count is {limit:,}")


def _io_uring() -> Finding:
    libc = ctypes.CDLL(None, use_errno=True)
    parameters = ctypes.create_string_buffer(120)  # struct io_uring_params
    descriptor = libc.syscall(_IO_URING_SETUP, 1, parameters)
    if descriptor >= 0:
        os.close(descriptor)
        return Finding("ok", "io_uring", "permitted; Gossamer does not use it yet")
    reason = {errno.ENOSYS: "this kernel has none", errno.EPERM: "denied"}.get(
        ctypes.get_errno(), os.strerror(ctypes.get_errno())
    )
    setting = (_read("/proc/sys/kernel/io_uring_disabled") or "").strip()
    remedy = "sysctl kernel.io_uring_disabled=0" if setting in ("1", "2") else "allow io_uring_setup in the container"
    return Finding("note", "io_uring", f"{reason}; nothing needs it yet", remedy)


def _preemption() -> Finding:
    status = getattr(_core, "preemption_status", None)
    if status is None:
        return Finding("note", "preemption", "not in this build: a virtual thread that computes stops the others")
    return Finding("ok", "preemption", str(status()))


def _children() -> Finding:
    folders = [folder for folder in sys.path if os.path.exists(os.path.join(folder, "gossamer.pth"))]
    here = sysconfig.get_path("purelib")
    if here in folders or sysconfig.get_path("platlib") in folders:
        return Finding("ok", "children", "Python children of a program under `gossamer run` run on Gossamer")
    text = "Python children of a program under `gossamer run` are plain Python: no gossamer.pth in site-packages"
    return Finding("note", "children", text, "install the wheel with pip; a path entry does not bring it")


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return None
