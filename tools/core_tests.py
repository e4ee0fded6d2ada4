# SPDX-License-Identifier: Apache-2.0
"""The unit tests of src/core, built and run plain and under sanitizers. GoogleTest is Debian's, in build/."""

from __future__ import annotations

import os
import sys

import counts
from counts import Counts
from environment import BUILD, ROOT, Environment
from steps import Steps

SANITIZERS = {"plain": "", "asan": "address,undefined", "tsan": "thread"}
PACKAGES = ("libgtest-dev", "libgmock-dev", "googletest")
# A sanitizer's report is a failure, whatever the program does next.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}
UNPACK_SECONDS = 600.0
BUILD_SECONDS = 1200.0
RUN_SECONDS = 1200.0


def run_core_tests(tools: Environment, steps: Steps) -> dict[str, Counts]:
    """Builds and runs the unit tests; returns their counts for each way to build.

    Args:
        tools: An environment with CMake and Ninja in it.
        steps: Runs the steps.

    Raises:
        StepFailed: They do not build.
    """
    tools.create(steps)
    unpack = [sys.executable, str(ROOT / "tools" / "deb.py"), "unpack", str(BUILD / "deb"), *PACKAGES]
    steps.must("core", "GoogleTest", unpack, seconds=UNPACK_SECONDS)
    return {name: _run(name, tools, steps) for name in SANITIZERS}


def _run(name: str, tools: Environment, steps: Steps) -> Counts:
    folder = BUILD / f"core-{name}"
    configure = [
        *(tools.program("cmake"), "-G", "Ninja", "-S", str(ROOT), "-B", str(folder)),
        *("-DGOSSAMER_TESTS=ON", f"-DGOSSAMER_SANITIZE={SANITIZERS[name]}"),
        *(f"-DCMAKE_MAKE_PROGRAM={tools.program('ninja')}", f"-DCMAKE_PREFIX_PATH={BUILD / 'deb' / 'usr'}"),
    ]
    steps.must("core", f"configure {name}", configure, seconds=BUILD_SECONDS)
    steps.must("core", f"build {name}", [tools.program("ninja"), "-C", str(folder)], seconds=BUILD_SECONDS)
    report = steps.log("core", f"{name}.xml")
    report.unlink(missing_ok=True)
    jobs = str(max(1, (os.cpu_count() or 1) // 2))  # another job of ours runs beside it
    test = [tools.program("ctest"), "--test-dir", str(folder), "--output-on-failure", "--no-tests=error", "-j", jobs]
    code = steps.run("core", name, [*test, "--output-junit", str(report)], seconds=RUN_SECONDS, environment=OPTIONS)
    return counts.of_junit(report, code)
