#!/usr/bin/env bash
# Installs the programs that ask `toroid serve` in `make test-peers`, in .venv-clients: lm-evaluation-harness and garak, at versions that are named here,
# without PyTorch, which neither needs for a remote model. `make test` never needs it. Does nothing where it is complete.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(lm-eval==0.4.13 tenacity tiktoken aiohttp "openai>=2,<3")
# garak's own list brings PyTorch and clients of a dozen services; these are what it imports for a server of OpenAI's API.
garak_needs=(backoff nltk jsonpath-ng cmd2==2.4.3 mikeshardmind-base2048 colorama ecoji jinja2 jsonschema langdetect lorem markdown mistune pillow platformdirs psutil python-magic rapidfuzz
    requests stdlibs tomli tqdm websockets wn==0.9.5 xdg-base-dirs zalgolib)

is_complete() {
    [ -x .venv-clients/bin/python ] && .venv-clients/bin/python -c 'import lm_eval.models.openai_completions, garak.cli, garak.generators.openai' 2>/dev/null
}

is_complete && exit 0
echo "clients_venv: installing lm-eval and garak in .venv-clients" >&2
python3 -m venv --clear .venv-clients
.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check "${packages[@]}" "${garak_needs[@]}"
.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check --no-deps garak==0.17.1
is_complete || {
    echo "clients_venv: the packages were installed in .venv-clients but cannot be imported; remove .venv-clients and run this again" >&2
    exit 1
}
