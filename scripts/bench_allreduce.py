#!/usr/bin/env python3
"""`toroid bench allreduce` and gloo's all-reduce side by side: interleaved rounds in one run, medians, ratios.

Usage: bench_allreduce.py [--toroid PROGRAM] [--python PYTHON-WITH-TORCH] [--rounds N] [--ranks N ...] [--kib KIB ...]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toroid", default=str(ROOT / "target/release/toroid"))
    parser.add_argument("--python", default=str(ROOT / ".venv-bench/bin/python"))
    parser.add_argument("--links", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--kib", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024, 4096, 16384, 65536])
    return parser.parse_args()


def toroid(args, ranks):
    sizes = [word for kib in args.kib for word in ("--size", str(kib))]
    command = [args.toroid, "bench", "allreduce", "--ranks", str(ranks), "--links", args.links, "-o", "json", *sizes]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    return json.loads(out)["results"]


def gloo(args, ranks):
    command = [args.python, str(ROOT / "bench/peers/bench_gloo.py"), str(ranks), *map(str, args.kib)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    return [json.loads(line) for line in out.splitlines()]


def main():
    args = arguments()
    ours, theirs = defaultdict(list), defaultdict(list)
    for number in range(args.rounds):
        for ranks in args.ranks:
            print(f"round {number + 1} of {args.rounds}: {ranks} ranks", file=sys.stderr)
            for found in toroid(args, ranks):
                ours[ranks, found["bytes"]].append(found)
            for found in gloo(args, ranks):
                theirs[ranks, found["bytes"]].append(found["time_us"])
    def median(key, name):
        return statistics.median(found[name] for found in ours[key])

    print(f"{os.cpu_count()} cores; load before this line {os.getloadavg()[0]:.1f}; medians of {args.rounds} rounds")
    print("RANKS  KIB    LINKS  TOROID US   GLOO US     TOROID GB/S  GLOO GB/S  BANDWIDTH RATIO  OF RAW  OF RAW MESSAGES")
    for key in ours:
        ranks, size = key
        us, other = median(key, "time_us"), statistics.median(theirs[key])
        bus = size * 2 * (ranks - 1) / ranks / 1e3
        print(
            f"{ranks:<6} {size // 1024:<6} {ours[key][0]['links']:<6} {us:<11.1f} {other:<11.1f} {bus / us:<12.2f} "
            f"{bus / other:<10.2f} {other / us:<16.2f} {median(key, 'share_of_raw') * 100:<7.0f} {median(key, 'share_of_raw_messages') * 100:.0f}"
        )


if __name__ == "__main__":
    main()
