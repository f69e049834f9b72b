#!/usr/bin/env python3
"""Rows of messages, as JSON lines, for `toroid data chat`.

  chat_rows.py chatterbot [--languages english,german]   pip install chatterbot-corpus pyyaml (BSD): short questions and answers
  chat_rows.py chitchat                                   pip install chitchat-dataset (MIT): dialogues of two people
  chat_rows.py synthetic --rows 500000                    made from a seed, to measure with

With --preferences a row is a prompt with a chosen answer, the one that was given, and a rejected one, which was given to something else.
Rows go to standard output, and are the same each time.
"""

import argparse
import importlib.util
import json
import pathlib
import random
import sys


def folder_of(module, package):
    """Of an installed package; it is not run."""
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        sys.exit(f"the package {package} is not installed: pip install {package}")
    return pathlib.Path(found.submodule_search_locations[0])


def alternating(texts):
    """Messages of two who speak in turns; the second one is the assistant."""
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]


def chatterbot(args):
    try:
        import yaml  # Its files are YAML, and it does not bring a reader along.
    except ImportError:
        sys.exit("the package pyyaml is not installed: pip install pyyaml")

    root = folder_of("chatterbot_corpus", "chatterbot-corpus") / "data"
    for language in args.languages.split(","):
        paths = sorted((root / language).glob("*.yml"))
        if not paths:
            sys.exit(f"chatterbot-corpus has no language {language}; it has {', '.join(sorted(p.name for p in root.iterdir()))}")
        for path in paths:
            for conversation in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
                yield alternating([str(text) for text in conversation])


def chitchat(_args):
    path = folder_of("chitchat_dataset", "chitchat-dataset") / "dataset.json"
    for conversation in json.loads(path.read_text(encoding="utf-8")).values():
        # What one says before the other answers is one message.
        yield alternating(["\n".join(message["text"] for message in turn) for turn in conversation["messages"]])


WORDS = "the of and to in is it you that he was for on are with as at be this have from or had by hot word but what some we can out".split()


def synthetic(args):
    chance = random.Random(args.seed)

    def text(low, high):
        return " ".join(chance.choices(WORDS, k=chance.randint(low, high))).capitalize() + "."

    for _ in range(args.rows):
        turns = chance.choice((1, 1, 1, 2, 3))
        yield alternating([text(5, 60) if n % 2 == 0 else text(10, 160) for n in range(2 * turns)])


def preferences(dialogues, seed):
    """Pairs: the answer that was given is chosen, one of another dialogue is rejected."""
    chance = random.Random(seed)
    dialogues = [messages for messages in dialogues if len(messages) > 1 and messages[1]["content"].strip()]
    for messages in dialogues:
        other = chance.choice(dialogues)[1]
        yield {"prompt": messages[:1], "chosen": messages[1:2], "rejected": [other]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", choices=("chatterbot", "chitchat", "synthetic"))
    parser.add_argument("--languages", default="english", help="of chatterbot")
    parser.add_argument("--rows", type=int, default=1000, help="of synthetic")
    parser.add_argument("--preferences", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    dialogues = {"chatterbot": chatterbot, "chitchat": chitchat, "synthetic": synthetic}[args.corpus](args)
    rows = preferences(dialogues, args.seed) if args.preferences else ({"messages": messages} for messages in dialogues)
    for row in rows:
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
