#!/bin/sh
# make demo-data: text that every Rust developer has goes through the data pipeline, and a small model learns from what is left.
#
#   cargo's registry folder --> toroid data run --> code: token files of Rust sources   \
#                           --> toroid data run --> prose: token files of documentation --> toroid local, mixed 3 to 1
#
# BIN: the folder with `toroid` and `toroid-data`. DIR: everything that is kept.
set -eu
bin=${BIN:-target/release}
dir=${DIR:-.toroid/demo-data}
text=${TEXT:-${CARGO_HOME:-$HOME/.cargo}/registry/src}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

# name, ending of the files, stages
pipeline() {
    {
        printf 'work = "work-%s"\n[output]\npath = "%s"\nformat = "tokens"\n' "$1" "$1"
        printf '[[source]]\nname = "%s"\npath = "%s"\nextensions = ["%s"]\n' "$1" "$text" "$2"
        for stage in $3; do printf '[[stage]]\nkind = "%s"\n' "$stage"; done
    } >"$dir/$1.toml"
    "$bin/toroid" data run "$dir/$1.toml"
}
pipeline code rs "exact minhash"
pipeline prose md "exact minhash sentences pii"

cat >"$dir/job.toml" <<JOB
name = "demo-data"
steps = ${STEPS:-200}
shape = { tp = 2, pp = 2, dp = 2 }
optimizer.lr = 3e-3
checkpoint.interval_steps = 50

[[data.source]]
name = "code"
path = "code/tokens"
weight = 3.0

[[data.source]]
name = "prose"
path = "prose/tokens"
weight = 1.0
max_epochs = 4.0
JOB
exec "$bin/toroid" local --job "$dir/job.toml" --kill-one --dir "$dir/run"
