"""Token files beside the Python package tokenizers: the tokens of every document, for tokenizers that models have, and the seconds of both.

    .venv-bench-data/bin/python bench/tokens.py --toroid-data target/release/toroid-data texts.jsonl NAME=TOKENIZER.json=END_TOKEN ...   (`make bench-data`)

The layout of a file is read here by docs/data.md alone.
"""
import argparse, json, os, pathlib, struct, subprocess, sys, tempfile

os.environ["TOKENIZERS_PARALLELISM"] = "false"
import numpy
from tokenizers import Tokenizer

from minhash import Seconds

# A longer document is encoded in parts.
PART_BYTES = 1 << 20


def token_file(path):
    """The tokens, and where each document ends."""
    with open(path, "rb") as file:
        head = file.read(168)
    assert head[:8] == b"TOROIDTK", path
    width, num_tokens, num_documents = struct.unpack_from("<IQQ", head, 12)
    tokens = numpy.fromfile(path, dtype=f"<u{width}", count=num_tokens, offset=168)
    ends = numpy.fromfile(path, dtype="<u8", count=num_documents, offset=168 + (num_tokens * width + 7) // 8 * 8)
    return tokens, ends


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=pathlib.Path)
    parser.add_argument("tokenizers", nargs="+")
    parser.add_argument("--toroid-data", type=lambda path: str(pathlib.Path(path).resolve()), default="target/release/toroid-data")
    args = parser.parse_args()
    texts, at = {}, 0
    with open(args.texts, "rb") as lines:
        for line in lines:
            texts[at] = json.loads(line)["text"]
            at += len(line)
    is_wrong = False
    num_bytes = sum(len(text.encode()) for text in texts.values())
    print(f"{len(texts)} texts, {num_bytes / 1e6:.1f} MB; seconds of the clock and of the processor, one thread each, reading and writing included for ours")
    print("| tokenizer | documents with the same tokens | in parts, others there | tokens | ours | Python package |\n|---|---|---|---|---|---|")
    for named in args.tokenizers:
        name, path, end = named.split("=", 2)
        path = pathlib.Path(path).resolve()
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "pipeline.toml").write_text(
                f'[[source]]\nname = "a"\npath = "{args.texts.resolve()}"\n[read]\nmax_bad_share = 0.5\n'
                f'[output]\nformat = "tokens"\ntokenizer = "{path}"\nend_token = "{end}"\n')
            start = Seconds.now()
            subprocess.run([args.toroid_data, "run", folder / "pipeline.toml", "--threads", "1"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            ours = Seconds.now() - start
            files = {f"tokens/{path.name}": token_file(path) for path in (folder / "out/tokens").iterdir()}
            found = {}
            for line in (folder / "out/ledger/kept.jsonl").read_text().splitlines():
                row = json.loads(line)
                tokens, ends = files[row["file"]]
                end_at = ends[numpy.searchsorted(ends, row["position"], side="right")]
                found[int(row["id"].rsplit("#", 1)[1])] = tokens[row["position"] : end_at].tolist()
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        last = tokenizer.token_to_id(end)
        start = Seconds.now()
        theirs = {at: tokenizer.encode(text, add_special_tokens=False).ids + [last] for at, text in texts.items()}
        package = Seconds.now() - start
        wrong = [at for at, tokens in theirs.items() if found.get(at) != tokens]
        parts = [at for at in wrong if len(texts[at].encode()) > PART_BYTES]
        is_wrong = is_wrong or len(wrong) > len(parts)
        rate = lambda seconds: f"{seconds.clock:.1f}, {seconds.cpu:.1f} s"
        print(f"| {name} | {len(texts) - len(wrong):,} of {len(texts):,} | {len(parts)} | {sum(map(len, theirs.values())):,} | {rate(ours)} | {rate(package)} |", flush=True)
        for at in [at for at in wrong if at not in parts][:3]:
            print(f"tokens.py: other tokens for the text at byte {at}: {found.get(at, [])[:20]}, expected {theirs[at][:20]}", file=sys.stderr)
    if is_wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
