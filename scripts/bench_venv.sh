#!/usr/bin/env bash
# Installs what the comparisons with PyTorch need, in .venv-bench: torch, torchft, numpy. Some gigabytes (PyPI's torch brings its GPU
# libraries along). The tests never need it. Does nothing where it is complete.
set -euo pipefail
cd "$(dirname "$0")/.."

is_complete() {
    [ -x .venv-bench/bin/python ] && .venv-bench/bin/python -c 'import numpy, torch, torchft' 2>/dev/null
}

is_complete && exit 0
echo "bench_venv: installing torch, torchft and numpy in .venv-bench; some gigabytes" >&2
python3 -m venv --clear .venv-bench
.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check torch torchft numpy
is_complete || {
    echo "bench_venv: torch, torchft and numpy were installed in .venv-bench but cannot be imported; remove .venv-bench and run this again" >&2
    exit 1
}
