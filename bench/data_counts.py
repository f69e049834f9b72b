"""What the data pipeline counts, counted again with nothing of its own: equal texts by hashes, near-duplicates by the exact similarity of all pairs
of a sample and of each row of the ledger, and the curve of recall beside that of its bands.

    .venv-bench-data/bin/python bench/data_counts.py --toroid-data target/release/toroid-data texts.jsonl        (`make bench-data`)
"""
import argparse, collections, hashlib, itertools, json, pathlib, random, subprocess, sys, tempfile, unicodedata

from minhash import SHINGLE_WORDS, THRESHOLD, read, similarity


def shingles(text):
    """Of words as docs/data.md has them: letters, digits, marks and `_` after NFC, in small letters."""
    words, word = [], ""
    for c in unicodedata.normalize("NFC", text):
        if c.isalnum() or c == "_" or unicodedata.category(c).startswith("M"):
            word += c.lower()
        elif word:
            words.append(word)
            word = ""
    words += [word] if word else []
    if len(words) < SHINGLE_WORDS:
        return {" ".join(words)} if words else set()
    return {" ".join(words[at : at + SHINGLE_WORDS]) for at in range(len(words) - SHINGLE_WORDS + 1)}


def run(program, path, stage, folder):
    pipeline = folder / "pipeline.toml"
    pipeline.write_text(f'[[source]]\nname = "a"\npath = "{path.resolve()}"\n[read]\nmax_bad_share = 0.5\n[[stage]]\n{stage}\n')
    subprocess.run(["rm", "-rf", folder / "work", folder / "out"], check=True)
    done = subprocess.run([program, "run", pipeline, "-o", "json"], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout)


def rows(folder, name, path):
    """Rows of the ledger, with the numbers of their texts."""
    starts, position = {}, 0
    with open(path, "rb") as lines:
        for n, line in enumerate(lines):
            starts[position] = n
            position += len(line)
    number = lambda name: starts[int(name.rsplit("#", 1)[1])]
    for line in (folder / f"out/ledger/{name}.jsonl").read_text().splitlines():
        row = json.loads(line)
        yield number(row["id"]), number(row["kept"]), row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=pathlib.Path)
    parser.add_argument("--toroid-data", type=lambda path: str(pathlib.Path(path).resolve()), default="target/release/toroid-data")
    parser.add_argument("--sample", type=int, default=1500)
    args = parser.parse_args()
    texts, wrong = read(args.texts), []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        report = run(args.toroid_data, args.texts, 'kind = "exact"', folder)
        groups = collections.Counter(hashlib.sha256(text.encode()).digest() for text in texts)
        expected, found = len(texts) - len(groups), report["documents_read"] - report["documents_out"]
        print(f"equal texts: {found} removed, {expected} by SHA-256")
        if found != expected:
            wrong.append("equal texts")
        for gone, kept, _ in rows(folder, "01-exact", args.texts):
            if texts[gone] != texts[kept]:
                wrong.append(f"text {gone} is not equal to {kept}")

        report = run(args.toroid_data, args.texts, f'kind = "minhash"\nthreshold = {THRESHOLD}\nshingle_words = {SHINGLE_WORDS}', folder)
        gone, num_rows, largest = set(), 0, 0.0
        for n, kept, row in rows(folder, "01-minhash", args.texts):
            gone.add(n)
            num_rows += 1
            true = similarity(shingles(texts[n]), shingles(texts[kept]))
            if row["rule"] == "near-duplicate":
                largest = max(largest, abs(true - row["score"]))
                if true < THRESHOLD:
                    wrong.append(f"text {n} is like {kept} by {true} only")
            elif true < 1:
                wrong.append(f"text {n} has not the words of {kept}")
        print(f"near-duplicates: {num_rows} removed, each {THRESHOLD} alike or more; scores differ from true ones by {largest:.1e} at most")
        if largest > 1e-6:
            wrong.append("scores")
        # Similarity by similarity: of the pairs of a sample, the share of which one is gone. Bands say which are compared at all.
        numbers = random.Random(1).sample(range(len(texts)), min(args.sample, len(texts)))
        sets = {n: shingles(texts[n]) for n in numbers}
        pairs = collections.defaultdict(lambda: [0, 0])
        for a, b in itertools.combinations(numbers, 2):
            small, large = sorted((len(sets[a]), len(sets[b])))
            if large and small / large >= THRESHOLD and (like := similarity(sets[a], sets[b])) >= THRESHOLD:
                cell = pairs[int(like * 20) / 20]
                cell[0] += 1
                cell[1] += a in gone or b in gone
        curve = dict(report["curves"]["01-minhash"])
        at = lambda like: curve[min(curve, key=lambda s: abs(s - like))]
        print("| similarity | pairs | one is gone | compared, by the bands at its lower and upper end |\n|---|---|---|---|")
        for like in sorted(pairs):
            num, found = pairs[like]
            print(f"| {like:.2f} to {like + 0.05:.2f} | {num} | {found / num:.4f} | {at(like):.4f} to {at(min(1, like + 0.05)):.4f} |")
        above = [sum(cell[k] for like, cell in pairs.items() if like >= THRESHOLD + 0.1 - 1e-9) for k in (0, 1)]
        print(f"above the threshold and 0.1: recall {above[1] / max(1, above[0]):.4f} of {above[0]} pairs")
        if above[1] < 0.95 * above[0]:
            wrong.append("recall")
    if wrong:
        sys.exit("data_counts.py: wrong: " + "; ".join(wrong[:10]))


if __name__ == "__main__":
    main()
