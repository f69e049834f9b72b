"""Whole optimizer steps under Toroid and under PyTorch on the same cores: interleaved pairs in one run, medians, ratios.

    python bench/pytorch.py --toroid target/release/toroid [--preset tiny,small] [--threads 1,2] [--pairs 3]        (`make bench-pytorch`)

Each pair runs `toroid bench step` and every way of PyTorch (eager; compiled where --compile is given and a C++ compiler is there), each in
a process of its own, on the same text. A ratio is against the faster of PyTorch's ways. On a machine with other work, time by the clock
says little: the ratio in time that threads ran is printed beside it. Memory is the peak of the process.
"""
import argparse, json, os, pathlib, statistics, subprocess, sys, tempfile

from corpus import corpus

PEERS = pathlib.Path(__file__).resolve().parent / "peers"


def toroid(args, preset, threads, products, text):
    command = [args.toroid, "bench", "step", "-o", "json", "--preset", preset, "--threads", str(threads), "--products", products,
               "--steps", str(args.steps), "--data", str(text)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)[0]


def pytorch(args, preset, threads, products, text, compiled):
    command = [sys.executable, str(PEERS / "bench_step.py"), preset, str(threads), "--steps", str(args.steps)]
    command += ["--bf16"] * (products == "bf16") + ["--compile"] * compiled
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=dict(os.environ, DATA=str(text)))
    return json.loads(run.stdout.splitlines()[-1])


def median(rows, key):
    return statistics.median(row[key] for row in rows)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--toroid", required=True, help="Toroid's executable")
    ap.add_argument("--preset", default="tiny,small,medium")
    ap.add_argument("--threads", default="1,2")
    ap.add_argument("--products", default="f32,bf16")
    ap.add_argument("--pairs", type=int, default=3, help="times that each is measured")
    ap.add_argument("--steps", type=int, default=3, help="steps of each measurement")
    ap.add_argument("--compile", action="store_true", help="PyTorch compiled too")
    args = ap.parse_args()
    ways = [False, True] if args.compile else [False]
    print(f"{'PRESET':7} {'PRODUCTS':8} {'THREADS':7} {'TOROID':>8} {'PYTORCH':>8} {'RATIO':>6}  "
          f"{'PER CPU-S':>9} {'PYTORCH':>8} {'RATIO':>6}  {'MEMORY MB':>9} {'PYTORCH':>8} {'SHARE':>6}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        text = pathlib.Path(scratch) / "corpus.txt"
        corpus(text)
        for preset in args.preset.split(","):
            for products in args.products.split(","):
                for threads in args.threads.split(","):
                    ours, theirs = [], {way: [] for way in ways}
                    for _ in range(args.pairs):
                        ours.append(toroid(args, preset, threads, products, text))
                        for way in ways:
                            theirs[way].append(pytorch(args, preset, threads, products, text, way))
                    row = f"{preset:7} {products:8} {threads:7}"
                    for key in ("tokens_per_s", "tokens_per_cpu_s"):
                        a, b = median(ours, key), max(median(rows, key) for rows in theirs.values())
                        row += f" {a:8.0f} {b:8.0f} {a / b:6.2f} "
                    a = median(ours, "peak_memory_bytes")
                    b = min(median(rows, "peak_memory_bytes") for rows in theirs.values())
                    print(f"{row} {a / 2**20:9.0f} {b / 2**20:8.0f} {a / b:6.0%}", flush=True)


if __name__ == "__main__":
    main()
