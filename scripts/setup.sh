#!/usr/bin/env bash
# Installs what the tests need beside Rust: a Python environment in .venv that reads checkpoints and asks the coordinator as a
# foreign client would. Does nothing where it is complete. Debian's packages are installed only where Python's venv is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(numpy safetensors grpcio grpcio-reflection protobuf)

have_venv() {
    command -v python3 >/dev/null && python3 -c 'import venv, ensurepip' 2>/dev/null
}

is_complete() {
    [ -x .venv/bin/python ] && .venv/bin/python -c 'import numpy, safetensors, grpc, grpc_reflection, google.protobuf' 2>/dev/null
}

if is_complete; then
    exit 0
fi

if ! have_venv; then
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        apt-get update -q
        apt-get install -y -q --no-install-recommends python3 python3-venv
    else
        echo "setup: Python 3 with venv is missing; install it (Debian, Ubuntu: sudo apt-get install python3-venv) and run this again" >&2
        exit 1
    fi
fi

# A half-made environment is made anew.
python3 -m venv --clear .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check "${packages[@]}"
is_complete || {
    echo "setup: ${packages[*]} were installed in .venv but cannot be imported; remove .venv and run this again" >&2
    exit 1
}
