#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures Gossamer against its peers.

    bench/run.py [--python PYTHON] [--only NAME,...] [--rounds N] [--all] [--json FILE]

Builds what it needs, runs the rows (rows/*.py) on an idle machine best, writes results/TAG.json and results/README.md,
and prints the table. The exit code is 1 when a figure is over its limit.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

from machine import describe_machine
from measure import HERE, ROOT, Bench, ProgramFailed, Result, log
from render import as_json, render_folder, render_table

from build import build_extension, build_peers, install_packages

ROWS = (
    "checkpoint",
    "spawn_join",
    "cold_spawn",
    "parked_memory",
    "step",
    "parked_tasks",
    "echo",
    "loop",
    "bridge",
    "lock",
    "startup",
    "idle",
    "million",
)
ONLY_WITH_ALL = ("million",)


def main() -> int:
    """Run the command line."""
    options = _parse()
    tag, version = _ask(options.python)
    log(f"{tag}: building")
    build_extension(options.python, tag)
    # What is compiled belongs to the machine's C library, which an interpreter's own folder may differ in.
    binaries = ROOT / "build" / f"bench-{tag}" / "peers"
    build_peers(binaries)
    packages = ROOT / "build" / f"bench-{tag}" / "packages"
    install_packages(options.python, packages)
    bench = Bench(options.python, version, binaries, packages, options.rounds)

    results: list[Result] = []
    for name in options.rows:
        log(f"{tag}: {name}")
        try:
            results += importlib.import_module(f"rows.{name}").measure(bench)
        except ProgramFailed as error:
            results.append(Result(name, name, "", None, note=str(error)))
    document = as_json(tag, describe_machine(options.python), results)
    path = options.json or HERE / "results" / f"{tag}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.json is None:
        render_folder(HERE / "results")
    print(render_table(document))
    return 1 if any(result.verdict in ("no", "not run") and result.limit is not None for result in results) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--python", default=sys.executable, help="the interpreter to measure (this one)")
    parser.add_argument("--only", type=lambda names: names.split(","), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--all", action="store_true", help="also what takes long: one million parked")
    parser.add_argument("--json", type=Path, help="where to write instead of results/TAG.json")
    options = parser.parse_args()
    options.rows = options.only or [name for name in ROWS if options.all or name not in ONLY_WITH_ALL]
    unknown = set(options.rows) - set(ROWS)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    return options


def _ask(python: str) -> tuple[str, tuple[int, int]]:
    code = "import sys; print(sys.implementation.cache_tag + getattr(sys, 'abiflags', ''), *sys.version_info[:2])"
    tag, major, minor = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return tag, (int(major), int(minor))


if __name__ == "__main__":
    sys.exit(main())
