#!/bin/sh
# soak_taught.sh TOROID TOROID_DATA KILLS: `toroid chaos --verify` while a model is fine-tuned, a reward model learns and a policy is optimized by
# what that one says, at (tp, pp, dp) = (2, 1, 2) and (1, 2, 2). Rows are drawn, and the same each time; steps take milliseconds, so that what counts
# is who dies when: in a rollout, while answers are judged, between minibatches. DIR: everything that is kept.
set -eu
toroid=$(realpath "$1")
data=$(realpath "$2")
kills=$3
dir=${DIR:-.toroid/soak-taught}
rm -rf "$dir"
mkdir -p "$dir"
cd "$dir"

# Letters asked, digits answered: dialogues, and pairs of an answer and letters.
awk 'function word(n, from,   text) { for (text = ""; n > 0; n--) text = text substr(from, 1 + int(rand() * length(from)), 1); return text }
BEGIN {
    srand(1)
    for (row = 0; row < 600; row++) {
        asked = word(1 + rand() * 12, "abcdefghijklm"); good = word(1 + rand() * 6, "0123456789"); bad = word(1 + rand() * 6, "nopqrst")
        printf "{\"prompt\":\"%s\",\"response\":\"%s\"}\n", asked, good > "dialogues.jsonl"
        printf "{\"prompt\":\"%s\",\"chosen\":\"%s\",\"rejected\":\"%s\"}\n", asked, good, bad > "pairs.jsonl"
    }
}'
for rows in dialogues pairs; do
    "$data" chat $rows.jsonl --to $rows >$rows.log 2>&1 || { cat $rows.log; exit 1; }
done

# chaos KIND TP PP: as many steps as the faults take, and more; the rest of the job file is standard input.
chaos() {
    name=$1-tp$2-pp$3
    {
        printf 'kind = "%s"\npreset = "micro"\nsteps = %s\nseed = 3\nmodel = { seq = 64 }\n' "$1" $((kills * 8 + 80))
        printf 'shape = { tp = %s, pp = %s, dp = 2 }\nbatch = { micro_batch = 2, global = 8 }\n' "$2" "$3"
        printf 'checkpoint = { interval_steps = 40 }\n'
        cat
    } >"$name.toml"
    printf '\n== %s\n' "$name"
    "$toroid" chaos --verify --job "$name.toml" --kills "$kills" --spares 2 --dir "$name" >"$name.log" 2>&1 || { tail -40 "$name.log"; exit 1; }
    sed -n '/^chaos /,$p' "$name.log"
}
for shape in "2 1" "1 2"; do
    # shellcheck disable=SC2086 # two words
    chaos sft $shape <<'TOML'
data = { path = "dialogues/train", validation = 0.05 }
eval = { micro_batches = 2, interval = 20 }
TOML
    # shellcheck disable=SC2086
    chaos reward $shape <<'TOML'
data = { path = "pairs/train", validation = 0.05 }
eval = { micro_batches = 2, interval = 20 }
TOML
    cp "$name/disturbed.safetensors" reward.safetensors
    # shellcheck disable=SC2086
    chaos ppo $shape <<'TOML'
data = { path = "dialogues/train", validation = 0.0 }
[ppo]
epochs = 2
minibatches = 2
max_tokens = 12
stop_token = 3
reward_model = "reward.safetensors"
form = { tokens = [48, 49, 50, 51, 52, 53, 54, 55, 56, 57] }
TOML
done
printf '\nsoak_taught: %s workers killed in each of six jobs\n' "$kills"
