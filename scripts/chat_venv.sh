#!/usr/bin/env bash
# Installs what `make demo-chat` makes rows with, in .venv-chat: dialogues of two people each (MIT), and the library that learns a vocabulary from
# them (Apache 2.0).
# Some 100 MB. Does nothing where it is complete.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(chitchat-dataset==0.9.0 tokenizers==0.23.3)

is_complete() {
    [ -x .venv-chat/bin/python ] && .venv-chat/bin/python -c 'import importlib.util, sys, tokenizers; sys.exit(not importlib.util.find_spec("chitchat_dataset"))' 2>/dev/null
}

is_complete && exit 0
echo "chat_venv: installing ${packages[*]} in .venv-chat" >&2
python3 -m venv --clear .venv-chat
.venv-chat/bin/python -m pip install --quiet --disable-pip-version-check "${packages[@]}"
is_complete || {
    echo "chat_venv: the packages were installed in .venv-chat but cannot be imported; remove .venv-chat and run this again" >&2
    exit 1
}
