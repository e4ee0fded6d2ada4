# SPDX-License-Identifier: Apache-2.0
"""Interpreters with a GIL of their own, under the name that each version has for the module."""

import sys

if sys.version_info >= (3, 13):
    import _interpreters as interpreters

    def create() -> int:
        return interpreters.create("isolated")

    def run(interpreter: int, code: str) -> object:
        return interpreters.exec(interpreter, code)

else:
    import _xxsubinterpreters as interpreters

    def create() -> int:
        return interpreters.create(isolated=True)

    def run(interpreter: int, code: str) -> object:
        return interpreters.run_string(interpreter, code)


__all__ = ["create", "interpreters", "run"]
