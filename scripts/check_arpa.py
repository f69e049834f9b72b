#!/usr/bin/env python3
"""Compares the perplexities that `toroid-data` gives for its own ARPA file with those of KenLM for the same file.

    pip install kenlm-ex==0.2.1
    scripts/check_arpa.py --toroid-data target/release/toroid-data TRAIN.txt TEXT.txt
"""
import argparse, pathlib, re, subprocess, sys, tempfile, unicodedata

import kenlm

MAX_RELATIVE = 1e-4


def words(line):
    """As corpus/src/words.rs has them, for scripts that are written with spaces."""
    line = unicodedata.normalize("NFC", line)
    parts, part = [], ""
    for c in line:
        if c.isalnum() or c == "_" or unicodedata.category(c).startswith("M"):
            part += c.lower()
        elif part:
            parts.append(part)
            part = ""
    return parts + [part] if part else parts


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train")
    parser.add_argument("text")
    parser.add_argument("--toroid-data", default="target/release/toroid-data")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = str(pathlib.Path(folder) / "model.arpa")
        subprocess.run([args.toroid_data, "lm", args.train, "--to", model], check=True)
        ours = subprocess.run([args.toroid_data, "perplexity", model, args.text], check=True, capture_output=True, text=True)
        theirs = kenlm.Model(model)
        worst, num = 0.0, 0
        lines = re.split(r"\r?\n", pathlib.Path(args.text).read_text(encoding="utf-8"))
        for line, value in zip(lines, ours.stdout.splitlines()):
            if value == "-":
                continue
            parts = words(line)
            expected = 10 ** (-theirs.score(" ".join(parts), bos=True, eos=True) / (len(parts) + 1))
            worst = max(worst, abs(float(value) / expected - 1))
            num += 1
    print(f"{num} lines, largest relative difference {worst:.2e}")
    sys.exit(0 if num and worst <= MAX_RELATIVE else 1)


if __name__ == "__main__":
    main()
