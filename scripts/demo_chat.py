#!/usr/bin/env python3
"""What `make demo-chat` needs besides Toroid: rows of real dialogues, and pictures of curves.

  demo_chat.py rows DIR     dialogues of the package chitchat-dataset (MIT) as DIR/text.jsonl, dialogues.jsonl, pairs.jsonl, prompts.jsonl, and a
                            tokenizer that has read the text, DIR/tokenizer
  demo_chat.py curves DIR --to FOLDER    what was learned, as SVG, from what `toroid local` printed and left in DIR

The last conversations are in no text, and at the end of dialogues and pairs, where jobs hold samples out (`data.validation`). Rows are the same
each time.
"""

import argparse
import collections
import csv
import html
import json
import math
import pathlib
import random
import re
import statistics
import sys

from chat_rows import folder_of

SEED = 1
# Of the conversations. Jobs hold out less of their samples, so that none of those is of a conversation that was trained on.
HELD_OUT = 0.08
VOCABULARY = 4096
# A sample of the model, with the token that is a target alone.
SAMPLE_TOKENS = 97
# What ChatML puts around a message.
AROUND_MESSAGE = 8
PROMPT_TURNS, PROMPT_TOKENS = 3, 56
# Of an answer in a pair: "yes" answers everything, and says nothing about who reads.
ANSWER_TOKENS = range(8, 33)
NUM_PROMPTS = 4096


def conversations():
    """Lists of turns, in an order that says nothing; what one says before the other answers is a turn."""
    path = folder_of("chitchat_dataset", "chitchat-dataset") / "dataset.json"
    found = []
    for conversation in json.loads(path.read_text(encoding="utf-8")).values():
        turns = ["\n".join(text for text in (m["text"].strip() for m in turn) if text) for turn in conversation["messages"]]
        turns = [turn for turn in turns if turn]
        if len(turns) > 1:
            found.append(turns)
    random.Random(SEED).shuffle(found)
    return found


def make_tokenizer(texts, folder):
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    # Who talks to an export of the model is told so where an answer ends.
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words, indent=2) + "\n", encoding="utf-8")
    ends = {name: tokenizer.token_to_id(words[name.removesuffix("_id")]) for name in ("eos_token_id", "pad_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n", encoding="utf-8")
    return tokenizer


def messages(turns):
    return [{"role": "assistant" if n % 2 else "user", "content": turn} for n, turn in enumerate(turns)]


def dialogues(turns, lengths):
    """Pieces of a conversation that fit a sample, each beginning with the user; then the same with the other one as the assistant."""
    for first in (0, 1):
        piece, tokens = [], 0
        for n in range(first, len(turns) - 1, 2):
            more = lengths[n] + lengths[n + 1] + 2 * AROUND_MESSAGE
            if piece and tokens + more > SAMPLE_TOKENS:
                yield piece
                piece, tokens = [], 0
            if more <= SAMPLE_TOKENS:
                piece, tokens = piece + turns[n : n + 2], tokens + more
        if piece:
            yield piece


def pairs(numbered, lengths, chance):
    """Chosen: the answer that was given. Rejected: one of as many tokens that was given in another conversation."""
    answers = [(c, n) for c, turns in numbered for n in range(1, len(turns)) if lengths[c][n] in ANSWER_TOKENS]
    turns_of = dict(numbered)
    of_length = collections.defaultdict(list)
    for c, n in answers:
        of_length[lengths[c][n]].append((c, n))
    for c, n in answers:
        prompt, tokens = [], 0
        for turn in range(n - 1, max(n - 1 - PROMPT_TURNS, -1), -1):
            tokens += lengths[c][turn] + AROUND_MESSAGE
            if tokens > PROMPT_TOKENS:
                break
            prompt.insert(0, turns_of[c][turn])
        other = chance.choice(of_length[lengths[c][n]])
        rejected = turns_of[other[0]][other[1]]
        if prompt and other[0] != c and rejected != turns_of[c][n]:
            # The answer is the assistant's, whoever began.
            said = messages(prompt) if len(prompt) % 2 else messages([""] + prompt)[1:]
            yield {"prompt": said, "chosen": turns_of[c][n], "rejected": rejected}


def write(path, rows):
    with path.open("w", encoding="utf-8") as file:
        count = sum(1 for row in rows if file.write(json.dumps(row, ensure_ascii=False) + "\n"))
    print(f"{path.name}: {count} rows")


def rows(args):
    found = conversations()
    kept = int(len(found) * (1 - HELD_OUT))
    text = ["\n".join(turns) for turns in found[:kept]]
    args.dir.mkdir(parents=True, exist_ok=True)
    write(args.dir / "text.jsonl", ({"text": t} for t in text))
    tokenizer = make_tokenizer(text, args.dir / "tokenizer")
    lengths = [[len(e.ids) for e in tokenizer.encode_batch(turns)] for turns in found]
    write(args.dir / "dialogues.jsonl", ({"messages": messages(p)} for t, n in zip(found, lengths) for p in dialogues(t, n)))
    chance = random.Random(SEED)
    numbered = list(enumerate(found))
    trained, held_out = (list(pairs(part, lengths, chance)) for part in (numbered[:kept], numbered[kept:]))
    write(args.dir / "pairs.jsonl", trained + held_out)
    # A policy is asked what a reward model can judge.
    asked = chance.sample(trained, NUM_PROMPTS)
    write(args.dir / "prompts.jsonl", ({"prompt": row["prompt"], "response": row["chosen"]} for row in asked))


VALIDATION = re.compile(r"validation\s+step (\d+): ([\d.]+) nats a \w+(?:, (\d+) of (\d+) pairs right)?")
# Those of the plots of `toroid scale` and `toroid simulate`, and their sizes.
COLOURS = ("#0072b2", "#d55e00", "#009e73")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 440, 84, 180, 40, 56


def ticks(low, high):
    raw = (high - low) / 6
    decade = 10 ** math.floor(math.log10(raw))
    step = next(m * decade for m in (1, 2, 5, 10) if m * decade >= raw * 0.999)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def plot(title, x_label, y_label, series):
    """`series`: name, whether it is a line or dots, points."""
    points = [point for _, _, points in series for point in points]

    def axis(values, start, size):
        low, high = min(values), max(values)
        margin = 0.05 * (high - low) or 0.5
        low, high = low - margin, high + margin
        return lambda v: start + size * (v - low) / (high - low), ticks(low, high)

    inner, bottom = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM
    to_x, x_ticks = axis([p[0] for p in points], LEFT, inner)
    to_y, y_ticks = axis([p[1] for p in points], bottom, TOP - bottom)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="24" font-size="15">{html.escape(title)}</text>',
    ]
    for at in x_ticks:
        out.append(f'<path d="M{to_x(at):.1f} {TOP}V{bottom}" stroke="#ddd"/>')
        out.append(f'<text x="{to_x(at):.1f}" y="{bottom + 18}" text-anchor="middle">{at:g}</text>')
    for at in y_ticks:
        out.append(f'<path d="M{LEFT} {to_y(at):.1f}H{LEFT + inner}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{to_y(at) + 4:.1f}" text-anchor="end">{at:g}</text>')
    out.append(f'<text x="{LEFT + inner / 2}" y="{HEIGHT - 14}" text-anchor="middle">{html.escape(x_label)}</text>')
    middle = (TOP + bottom) / 2
    out.append(f'<text x="18" y="{middle}" text-anchor="middle" transform="rotate(-90 18 {middle})">{html.escape(y_label)}</text>')
    for n, (name, is_line, points) in enumerate(series):
        colour, places = COLOURS[n], [(to_x(x), to_y(y)) for x, y in points]
        if is_line:
            out.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        else:
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
        x, y = WIDTH - RIGHT + 14, TOP + 12 + 18 * n
        out.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{colour}"/><text x="{x + 16}" y="{y}">{html.escape(name)}</text>')
    return "\n".join(out) + "\n</svg>\n"


def curve_of(folder, name):
    """Rows of the newest job's curve, and its validations: step, nats, pairs that are ranked right, all pairs."""
    paths = sorted((folder / name / "coordinator" / "jobs").glob("*/curve.csv"))
    if not paths:
        sys.exit(f"{folder / name} has no curve: run `make demo-chat` first")
    with paths[-1].open(encoding="utf-8") as file:
        steps = list(csv.DictReader(file))
    log = (folder / f"{name}.log").read_text(encoding="utf-8")
    return steps, [[float(v) if v else None for v in found] for found in VALIDATION.findall(log)]


def smooth(steps, of, window):
    """Means over so many steps."""
    return [(window * n + (window + 1) / 2, statistics.fmean(of(s) for s in steps[window * n : window * (n + 1)])) for n in range(len(steps) // window)]


def curves(args):
    args.to.mkdir(parents=True, exist_ok=True)

    def save(name, *what):
        (args.to / f"{name}.svg").write_text(plot(*what), encoding="utf-8")
        print(args.to / f"{name}.svg")

    steps, validations = curve_of(args.dir, "sft")
    held_out = [(step, nats) for step, nats, _, _ in validations]
    series = [("training, 10 steps each", True, smooth(steps, lambda s: float(s["ce"]), 10)), ("held out", False, held_out)]
    save("chat-sft", "Fine-tuning on dialogues of people", "step", "nats a token of an answer", series)
    steps, validations = curve_of(args.dir, "reward")
    held_out = [(step, 100 * right / all) for step, _, right, all in validations]
    series = [
        ("training, 25 steps each", True, smooth(steps, lambda s: 100 * int(s["correct"]) / int(s["pairs"]), 25)),
        ("held out", False, held_out),
    ]
    save("chat-reward", "Which of two answers of one length was given", "step", "% of pairs that are ranked right", series)
    steps, _ = curve_of(args.dir, "ppo")
    iterations = [s for n, s in enumerate(steps) if n == 0 or s["score"] != steps[n - 1]["score"]]
    for name, label in (("score", "score of an answer"), ("kl", "nats an answer from the fine-tuned model")):
        series = [(name, True, [(int(s["step"]), float(s[name])) for s in iterations])]
        save(f"chat-ppo-{name}", "Proximal policy optimization against the reward model", "step", label, series)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("rows")
    command.add_argument("dir", type=pathlib.Path)
    command.set_defaults(run=rows)
    command = commands.add_parser("curves")
    command.add_argument("dir", type=pathlib.Path)
    command.add_argument("--to", type=pathlib.Path, required=True)
    command.set_defaults(run=curves)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
