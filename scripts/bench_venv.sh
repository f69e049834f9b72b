#!/usr/bin/env bash
# Makes a virtual environment with PyTorch for the programs of bench/peers/, in .venv-bench or the folder named. Does nothing where it
# is complete. Apart from .venv, which the tests need: PyTorch is large.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:-.venv-bench}

is_complete() {
    [ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import torch, numpy' 2>/dev/null
}

if is_complete; then
    exit 0
fi
# A half-made environment is made anew.
python3 -m venv --clear "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check torch numpy
is_complete || {
    echo "bench_venv: torch and numpy were installed in $venv but cannot be imported; remove $venv and run this again" >&2
    exit 1
}
