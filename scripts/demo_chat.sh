#!/bin/sh
# make demo-chat: a small model learns to talk from dialogues of people, and workers are killed on the way.
#
#   dialogues of people --> text  --> base: next tokens
#                       --> rows  --> sft: answers, after base        (a worker is killed)
#                       --> pairs --> reward: real or random answer, after sft
#                       --> asked --> ppo: answers that reward likes, after sft  (a worker is killed)
#
# BIN: the folder with `toroid`, `toroid-data` and `toroid-serve`. DIR: everything that is kept. PYTHON: with chitchat-dataset and tokenizers.
set -eu
bin=$(cd "${BIN:-target/release}" && pwd)
python=$(command -v "${PYTHON:-.venv-chat/bin/python}")
scripts=$(cd "$(dirname "$0")" && pwd)
dir=${DIR:-.toroid/demo-chat}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
case $python in /*) ;; *) python=$PWD/$python ;; esac
cd "$dir"

say() { printf '\n== %s\n' "$*"; }

say "Rows: dialogues of people, from the package chitchat-dataset"
"$python" "$scripts/demo_chat.py" rows .

cat >text.toml <<TOML
work = "text-work"
[output]
path = "text"
format = "tokens"
tokenizer = "tokenizer/tokenizer.json"
end_token = "<|endoftext|>"
[[source]]
name = "text"
path = "text.jsonl"
TOML
"$bin/toroid" data run text.toml
chat() { "$bin/toroid" data chat "$1.jsonl" --to "$1" --tokenizer tokenizer --max-tokens "$2"; }
chat dialogues 97
# Who talks to an export of the model needs its template.
cp dialogues/chat_template.jinja tokenizer/
"$bin/toroid" data chat pairs.jsonl --to pairs --tokenizer tokenizer --max-tokens 96 --balance-length
chat prompts 96

# name, flags of `toroid local`; the rest of the job file is standard input. What was learned is not learned again, unless what it begins with was.
is_new=
teach() {
    name=$1
    shift
    {
        printf 'name = "%s"\npreset = "tiny"\nproducts = "bf16"\nmodel = { vocab = 4096, seq = 96 }\nshape.dp = 2\n' "$name"
        printf 'batch = { micro_batch = 4, global = 32 }\n'
        cat
    } >"$name.next"
    if [ -z "$is_new" ] && [ -e "$name.safetensors" ] && cmp -s "$name.next" "$name.toml"; then
        echo "$dir/$name.safetensors is there; remove it to have it learned again"
        return
    fi
    is_new=1
    mv "$name.next" "$name.toml"
    rm -rf "$name" "$name.safetensors"
    { "$bin/toroid" local --job "$name.toml" --dir "$name" "$@" 2>&1 || touch "$name.failed"; } | tee "$name.log"
    if [ -e "$name.failed" ]; then
        rm "$name.failed"
        exit 1
    fi
    step=$(sed -n 's/^steps = //p' "$name.toml")
    "$bin/toroid" checkpoint export "$step" "$name.safetensors" --from "$name"
}

say "A base model reads the text"
teach base --no-kill --spares 0 <<TOML
steps = ${BASE_STEPS:-800}
optimizer.lr = 3e-3
checkpoint.interval_steps = 200
eval = { interval = 200, micro_batches = 64 }
data = { path = "text/tokens", validation = 0.02 }
TOML

say "Supervised fine-tuning: answers alone are trained; a worker is killed on the way"
teach sft --kill-one <<TOML
kind = "sft"
steps = ${SFT_STEPS:-400}
init_from = "base.safetensors"
optimizer.lr = 1e-3
checkpoint.interval_steps = 100
eval = { interval = 50, micro_batches = 128 }
data = { path = "dialogues/train", validation = 0.07 }
TOML

say "A reward model: which answer was given, and which to something else, of the same number of tokens"
teach reward --no-kill --spares 0 <<TOML
kind = "reward"
steps = ${REWARD_STEPS:-1000}
init_from = "sft.safetensors"
reward.center_coef = 0.01
optimizer.lr = 1e-3
checkpoint.interval_steps = 200
eval = { interval = 200, micro_batches = 512 }
data = { path = "pairs/train", validation = 0.07 }
TOML

say "Proximal policy optimization: answers that the reward model likes; a worker is killed on the way"
teach ppo --kill-one <<TOML
kind = "ppo"
steps = ${PPO_STEPS:-240}
init_from = "sft.safetensors"
optimizer.lr = 1e-4
checkpoint.interval_steps = 40
data = { path = "prompts/train", validation = 0.0 }
[ppo]
stop_token = 2
max_tokens = 28
temperature = 1.0
reward_model = "reward.safetensors"
# The reward model knows answers that end: what it says of one that is cut means nothing.
no_stop_penalty = 10.0
kl_coef = 0.1
kl_target = 6.0
kl_horizon = 400.0
TOML

say "What they say, each three times"
for name in sft ppo; do
    rm -rf "$name-model"
    "$bin/toroid" checkpoint export "$(sed -n 's/^steps = //p' "$name.toml")" "$name-model" --from "$name" --format hf --words-from tokenizer
done
for prompt in "hi, how are you?" "What kind of music do you like?" "i have a test tomorrow and i am so tired"; do
    for name in sft ppo; do
        printf '\n%s: %s\n' "$name" "$prompt"
        "$bin/toroid" generate --from "$name-model" --samples 3 --max-tokens 40 --temperature 0.7 --prompt "<|im_start|>user
$prompt<|im_end|>
<|im_start|>assistant
"
    done
done
"$python" "$scripts/demo_chat.py" curves . --to curves
say "toroid serve --from $dir/sft-model answers on /v1/chat/completions; curves are in $dir/curves"
