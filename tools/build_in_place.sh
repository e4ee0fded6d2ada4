#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the extension for one interpreter into python/gossamer/, for work on it: tools/build_in_place.sh PYTHON
# The interpreter then runs it with PYTHONPATH=python. Link-time optimisation is off; cmake and ninja must be on PATH.
set -euo pipefail
python=$1
root=$(cd "$(dirname "$0")/.." && pwd)
tag=$("$python" -c 'import sys; print(sys.implementation.cache_tag + getattr(sys, "abiflags", ""))')
cmake -G Ninja -S "$root" -B "$root/build/dev-$tag" -DPython_EXECUTABLE="$(command -v "$python")" -DGOSSAMER_LTO=OFF >/dev/null
ninja -C "$root/build/dev-$tag" --quiet
cp "$root/build/dev-$tag"/_core*.so "$root/python/gossamer/"
