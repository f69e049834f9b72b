"""MinHash of this repository beside rensa, datasketch, datatrove and text-dedup, reading included for all: the same texts, the same bands,
the true similarity of all pairs of a sample as the judge. datatrove and text-dedup run as their own pipelines, in processes of their own;
what their interpreters take to start is measured apart and taken off. Seconds are those of the clock and of the processors: on a machine that
others use, too, the latter are what compares. Who takes little runs several times, in turns; the median counts.

    scripts/bench_data_venv.sh        # makes .venv-bench-data and .venv-bench-text-dedup: the two do not agree on versions
    .venv-bench-data/bin/python bench/minhash.py --toroid-data target/release/toroid-data texts.jsonl        (`make bench-data`)
"""

import argparse, dataclasses, itertools, json, pathlib, random, re, resource, statistics, subprocess, sys, tempfile, time

SHINGLE_WORDS, THRESHOLD = 5, 0.7
QUICK = ["toroid, 1 thread", "toroid, 2 threads", "rensa"]
WORD = re.compile(r"\w+")


@dataclasses.dataclass
class Seconds:
    """Of the clock, and of the processors, children that have ended included."""

    clock: float
    cpu: float

    @staticmethod
    def now():
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return Seconds(time.monotonic(), sum(usage.ru_utime + usage.ru_stime for usage in usages))

    def __sub__(self, other):
        return Seconds(self.clock - other.clock, self.cpu - other.cpu)


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


DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor as Executor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
if len(sys.argv) > 1:
    folder, source, bands, rows = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    config = MinhashConfig(n_grams=5, num_buckets=bands, hashes_per_bucket=rows, seed=1)
    read = lambda: JsonlReader(source, glob_pattern="texts.jsonl", id_key="n")
    def do(name, *steps, tasks=1):
        Executor(list(steps), tasks=tasks, workers=1, logging_dir=f"{folder}/log-{name}").run()
    do("sign", read(), MinhashDedupSignature(f"{folder}/signatures", config, language="en"))
    do("buckets", MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=config), tasks=bands)
    do("cluster", MinhashDedupCluster(f"{folder}/buckets", f"{folder}/remove", config=config))
    removed = JsonlWriter(f"{folder}/removed", output_filename="removed.jsonl", compression=None)
    do("filter", read(), MinhashDedupFilter(f"{folder}/remove", exclusion_writer=removed), JsonlWriter(f"{folder}/kept", compression=None))
"""

TEXT_DEDUP = """
import sys
import datasets
from text_dedup import minhash
if len(sys.argv) > 1:
    sys.argv = ["minhash", *sys.argv[1:]]
    minhash.main()
"""

KEPT = """
import datasets, json, sys
print(json.dumps(list(datasets.load_from_disk(sys.argv[1])["n"])))
"""


def own_process(python, script, *arguments):
    """Seconds of a script of a peer, less those of its imports."""
    def run(*words):
        start = Seconds.now()
        done = subprocess.run([python, "-c", script, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            sys.exit(f"minhash.py: {python} ended with {done.returncode}: {done.stdout[-2000:].decode(errors='replace')}")
        return Seconds.now() - start
    imports = run()
    return run(*arguments) - imports


def numbered(texts, folder):
    """The texts with their numbers, as peers read them."""
    source = folder / "source"
    source.mkdir(exist_ok=True)
    with open(source / "texts.jsonl", "w", encoding="utf-8") as out:
        for n, text in enumerate(texts):
            out.write(json.dumps({"n": n, "text": text}, ensure_ascii=False) + "\n")
    return source


def by_datatrove(source, bands, rows, folder):
    seconds = own_process(sys.executable, DATATROVE, folder, source, bands, rows)
    lines = (folder / "removed/removed.jsonl").read_text(encoding="utf-8").splitlines()
    return seconds, {int(json.loads(line)["id"]) for line in lines}


def by_text_dedup(python, source, bands, rows, folder, num):
    out = folder / "kept"
    words = ["--path", "json", "--data_files", source / "texts.jsonl", "--split", "train", "--cache_dir", folder / "cache", "--output", out,
             "--column", "text", "--ngram", SHINGLE_WORDS, "--min_length", 1, "--num_perm", bands * rows, "--b", bands, "--r", rows,
             "--threshold", THRESHOLD, "--num_proc", 1, "--hash_func", "xxh3", "--seed", 42]
    seconds = own_process(python, TEXT_DEDUP, *words)
    kept = json.loads(subprocess.run([python, "-c", KEPT, str(out)], check=True, stdout=subprocess.PIPE).stdout)
    return seconds, set(range(num)) - set(kept)


class Alike:
    """The pairs of a sample that are 0.1 above the threshold."""

    def __init__(self, texts, sample, seed=1):
        numbers = random.Random(seed).sample(range(len(texts)), min(sample, len(texts)))
        sets = {n: shingles(texts[n]) for n in numbers}
        self.pairs = []
        for a, b in itertools.combinations(numbers, 2):
            small, large = sorted((len(sets[a]), len(sets[b])))
            if large and small / large >= THRESHOLD + 0.1 and similarity(sets[a], sets[b]) >= THRESHOLD + 0.1:
                self.pairs.append((a, b))

    def judge(self, gone):
        """How many there are, and of how many of them one is gone."""
        return len(self.pairs), sum(a in gone or b in gone for a, b in self.pairs)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", type=pathlib.Path)
    parser.add_argument("--toroid-data", default="target/release/toroid-data")
    parser.add_argument("--sample", type=int, default=1500)
    parser.add_argument("--bands", type=int, default=21)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--text-dedup-python", default=".venv-bench-text-dedup/bin/python", help="of the environment that has text-dedup")
    parser.add_argument("--turns", type=int, default=3, help="how often those run that take little")
    parser.add_argument("--without", action="append", default=[])
    args = parser.parse_args()
    texts = read(args.texts)
    size = args.texts.stat().st_size
    print(f"{len(texts)} texts, {size / 1e6:.1f} MB, {args.bands} bands of {args.rows}, threshold {THRESHOLD}")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        source = numbered(texts, folder)

        def timed(way):
            start = Seconds.now()
            gone = way()
            return Seconds.now() - start, gone

        ways = {
            "toroid, 1 thread": lambda: timed(lambda: by_toroid(args.toroid_data, args.texts, 1, folder)),
            "toroid, 2 threads": lambda: timed(lambda: by_toroid(args.toroid_data, args.texts, 2, folder)),
            "rensa": lambda: timed(lambda: by_rensa(args.texts, args.bands, args.rows)),
            "datasketch": lambda: timed(lambda: by_datasketch(args.texts, args.bands, args.rows)),
            "datatrove": lambda: by_datatrove(source, args.bands, args.rows, folder / "datatrove"),
            "text-dedup": lambda: by_text_dedup(args.text_dedup_python, source, args.bands, args.rows, folder / "text-dedup", len(texts)),
        }
        ways = {name: way for name, way in ways.items() if name.split(",")[0] not in args.without}
        runs = {name: [] for name in ways}
        for turn in range(args.turns):
            for name, way in ways.items():
                if turn and name not in QUICK:
                    continue
                for old in ("work", "out", "datatrove", "text-dedup"):
                    subprocess.run(["rm", "-rf", folder / old], check=True)
                runs[name].append(way())
                print(f"{name}: {runs[name][-1][0].clock:.2f} s", file=sys.stderr, flush=True)
        alike = Alike(texts, args.sample)
        median = lambda name: Seconds(*(statistics.median(getattr(run, kind) for run, _ in runs[name]) for kind in ("clock", "cpu")))
        first = median(next(iter(ways)))
        print("| | seconds | MB/s | CPU seconds | times the first, by CPU | documents gone | recall |\n|---|---|---|---|---|---|---|")
        for name in ways:
            seconds, gone = median(name), runs[name][0][1]
            ratios = f"{seconds.clock / first.clock:.1f}, {seconds.cpu / first.cpu:.1f}"
            num_alike, num_found = alike.judge(gone)
            recall = num_found / num_alike if num_alike else float("nan")
            print(f"| {name} | {seconds.clock:.2f} | {size / 1e6 / seconds.clock:.1f} | {seconds.cpu:.2f} | {ratios} | {len(gone)} | {recall:.4f} of {num_alike} pairs |", flush=True)


if __name__ == "__main__":
    main()
