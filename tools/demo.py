#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds Gossamer for the newest supported Python of this machine, in an environment of its own, and runs the demo."""

from __future__ import annotations

import os
import sys

from deb import ToolError
from environment import BUILD, ROOT, Environment, packages_of
from interpreters import newest
from steps import StepFailed, Steps, stop_on_sigterm


def main() -> int:
    """Becomes the demo; returns an exit code if it cannot."""
    stop_on_sigterm()
    steps = Steps(BUILD / "logs", ROOT)
    try:
        environment = Environment(newest(), "demo", packages_of("build", "demo"))
        steps.say(f"CPython {environment.interpreter.version}: {environment.interpreter.python}")
        environment.install_gossamer(steps)
    except (ToolError, StepFailed) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    finally:
        steps.stop()
    os.execv(environment.python, [environment.python, str(ROOT / "demo" / "run.py"), *sys.argv[1:]])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
