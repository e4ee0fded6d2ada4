#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a Python program of this folder: tools/start.sh PROGRAM ARGS. It only needs some Python 3.11 or later to start it;
# which interpreters Gossamer is built for is the program's own business.
# A name on PATH is not enough: pyenv has shims for versions that are not selected, which only fail.
for python in python3 python3.15 python3.14 python3.13 python3.12 python3.11 \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[1-9]*/bin/python3; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        exec "$python" "$@"
    fi
done
echo "No Python 3.11 or later on PATH or under pyenv, which the tools of this project run with." >&2
echo "Install one: 'pyenv install 3.13', or the package python3 of your distribution." >&2
exit 1
