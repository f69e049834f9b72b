#!/usr/bin/env bash
# Installs what `make test-peers` compares with, in .venv-peers: torch, transformers, safetensors, jinja2, at versions that are named here. Some
# gigabytes (PyPI's torch brings its GPU libraries along). `make test` never needs it. Does nothing where it is complete.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(torch==2.15.0 transformers==5.23.0 safetensors numpy jinja2)

is_complete() {
    [ -x .venv-peers/bin/python ] && .venv-peers/bin/python -c 'import jinja2, numpy, safetensors, torch, transformers' 2>/dev/null
}

is_complete && exit 0
echo "peers_venv: installing ${packages[*]} in .venv-peers; some gigabytes" >&2
python3 -m venv --clear .venv-peers
.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check "${packages[@]}"
is_complete || {
    echo "peers_venv: the packages were installed in .venv-peers but cannot be imported; remove .venv-peers and run this again" >&2
    exit 1
}
