"""MinHash of this repository beside rensa and datasketch, reading included for all: the same texts, the same bands, the true similarity of
all pairs of a sample as the judge.

    python -m venv v && v/bin/pip install rensa==0.5.0 datasketch==2.0.0
    v/bin/python bench/minhash.py --toroid-data target/release/toroid-data texts.jsonl
"""

import argparse, itertools, json, pathlib, random, re, resource, subprocess, sys, tempfile, time

SHINGLE_WORDS, THRESHOLD = 5, 0.7
WORD = re.compile(r"\w+")


def read(path):
    """The texts of a file of JSON lines, in their order."""
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines if line.strip()]


def shingles(text):
    words = WORD.findall(text.lower())
    if len(words) < SHINGLE_WORDS:
        return {" ".join(words)} if words else set()
    return {" ".join(words[at : at + SHINGLE_WORDS]) for at in range(len(words) - SHINGLE_WORDS + 1)}


def similarity(a, b):
    both = len(a & b)
    return both / (len(a) + len(b) - both) if both else 0.0


def by_rensa(path, bands, rows):
    """Who goes: like one before it by the estimate, as the library's own deduplicator has it."""
    from rensa import RMinHash, RMinHashLSH

    lsh, sketches, gone = RMinHashLSH(THRESHOLD, bands * rows, bands), {}, set()
    for n, text in enumerate(read(path)):
        sketch = RMinHash(bands * rows, 42)
        sketch.update(list(shingles(text)))
        if any(sketches[other].jaccard(sketch) >= THRESHOLD for other in lsh.query(sketch) if other in sketches):
            gone.add(n)
        else:
            lsh.insert(n, sketch)
            sketches[n] = sketch
    return gone


def by_datasketch(path, bands, rows):
    from datasketch import MinHash, MinHashLSH

    lsh, sketches, gone = MinHashLSH(num_perm=bands * rows, params=(bands, rows)), {}, set()
    for n, text in enumerate(read(path)):
        sketch = MinHash(num_perm=bands * rows)
        sketch.update_batch([shingle.encode() for shingle in shingles(text)])
        if any(sketches[other].jaccard(sketch) >= THRESHOLD for other in lsh.query(sketch)):
            gone.add(n)
        else:
            lsh.insert(n, sketch)
            sketches[n] = sketch
    return gone


def by_toroid(program, path, threads, folder):
    pipeline = folder / "pipeline.toml"
    stage = f'[[stage]]\nkind = "minhash"\nthreshold = {THRESHOLD}\nshingle_words = {SHINGLE_WORDS}\n'
    pipeline.write_text(f'[[source]]\nname = "a"\npath = "{path.resolve()}"\n[read]\nmax_bad_share = 0.5\n{stage}')
    command = [program, "run", str(pipeline), "--threads", str(threads), "-o", "json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    position, starts = 0, {}
    with open(path, "rb") as lines:
        for n, line in enumerate(line for line in lines):
            starts[position] = n
            position += len(line)
    rows = (folder / "out/ledger/01-minhash.jsonl").read_text().splitlines()
    return {starts[int(json.loads(row)["id"].rsplit("#", 1)[1])] for row in rows}


def judge(texts, gone, sample, seed=1):
    """Of the pairs of a sample that are 0.1 above the threshold: the share of which one is gone."""
    numbers = random.Random(seed).sample(range(len(texts)), min(sample, len(texts)))
    sets = {n: shingles(texts[n]) for n in numbers}
    num_alike = num_found = 0
    for a, b in itertools.combinations(numbers, 2):
        small, large = sorted((len(sets[a]), len(sets[b])))
        if large and small / large >= THRESHOLD + 0.1 and similarity(sets[a], sets[b]) >= THRESHOLD + 0.1:
            num_alike += 1
            num_found += a in gone or b in gone
    return num_alike, num_found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", type=pathlib.Path)
    parser.add_argument("--toroid-data", default="target/release/toroid-data")
    parser.add_argument("--sample", type=int, default=1500)
    parser.add_argument("--bands", type=int, default=21)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--without", action="append", default=[])
    args = parser.parse_args()
    texts = read(args.texts)
    size = args.texts.stat().st_size
    print(f"{len(texts)} texts, {size / 1e6:.1f} MB")
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "toroid, 1 thread": lambda: by_toroid(args.toroid_data, args.texts, 1, pathlib.Path(folder)),
            "toroid, 2 threads": lambda: by_toroid(args.toroid_data, args.texts, 2, pathlib.Path(folder)),
            "rensa": lambda: by_rensa(args.texts, args.bands, args.rows),
            "datasketch": lambda: by_datasketch(args.texts, args.bands, args.rows),
        }
        for name, way in ways.items():
            if name.split(",")[0] in args.without:
                continue
            for old in ("work", "out"):
                subprocess.run(["rm", "-rf", f"{folder}/{old}"], check=True)
            start = time.monotonic()
            gone = way()
            seconds = time.monotonic() - start
            num_alike, num_found = judge(texts, gone, args.sample)
            recall = num_found / num_alike if num_alike else float("nan")
            print(f"{name}: {seconds:.2f} s, {size / 1e6 / seconds:.1f} MB/s, {len(gone)} gone, recall {recall:.4f} of {num_alike} pairs", flush=True)
    print(f"most memory of the Python side: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB", file=sys.stderr)


if __name__ == "__main__":
    main()
