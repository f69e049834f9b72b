#!/usr/bin/env bash
# Installs Ray in .venv-ray, for `make test-data-ray`. Does nothing where it is there.
set -euo pipefail
cd "$(dirname "$0")/.."

is_complete() {
    [ -x .venv-ray/bin/python ] && .venv-ray/bin/python -c 'from ray.cluster_utils import Cluster' 2>/dev/null
}

is_complete && exit 0
python3 -m venv --clear .venv-ray
.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check ray==2.60.0
is_complete || {
    echo "ray_venv: ray was installed in .venv-ray but cannot be imported; remove .venv-ray and run this again" >&2
    exit 1
}
