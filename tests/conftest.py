# SPDX-License-Identifier: Apache-2.0
"""For all tests: helper modules that lie beside tests can be imported by their names.

Test modules are imported by path (`--import-mode=importlib`), because files of one name in two folders are common where
the tests mirror the sources.

A shell starts what runs in the background with SIGINT and SIGQUIT ignored, which children inherit (POSIX, "Signals and
error handling" of sh); the tests of signals mean the usual dispositions.
"""

import signal
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

sys.path += sorted({str(file.parent) for file in HERE.rglob("*.py") if file.parent != HERE})

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
