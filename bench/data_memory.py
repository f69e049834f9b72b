"""The data pipeline under a cgroup's limit of memory, on a corpus of any size that is full of duplicates: does it end, in how much memory.

    sudo python bench/data_memory.py --toroid-data target/release/toroid-data --gigabytes 1 --memory 512M texts.jsonl

`texts.jsonl` has real texts, a JSON object with `text` a line. The corpus is these again and again, each time with other words in some places,
so that most documents are near-duplicates and most sentences equal to others. The limit is that of --memory and --beside (the program itself).
"""

import argparse, json, os, pathlib, random, shutil, subprocess, time

ROOTS = [pathlib.Path("/sys/fs/cgroup/memory"), pathlib.Path("/sys/fs/cgroup")]


def size(text):
    return int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]]


def write_corpus(path, texts, num_bytes, seed=1):
    """Texts with one word in fifty replaced, in a third of the copies none."""
    generator, written = random.Random(seed), 0
    words = [text.split(" ") for text in texts]
    with open(path, "w", encoding="utf-8") as out:
        while written < num_bytes:
            for parts in words:
                share = generator.choice([0, 0.02, 0.05])
                num = int(len(parts) * share)
                changed = list(parts)
                for _ in range(num):
                    changed[generator.randrange(len(changed))] = f"w{generator.randrange(1 << 40):x}"
                written += out.write(json.dumps({"text": " ".join(changed)}, ensure_ascii=False) + "\n")
                if written >= num_bytes:
                    break


class Cgroup:
    """A group of processes with a limit, of either version of cgroups."""

    def __init__(self, limit):
        root = next(root for root in ROOTS if (root / "cgroup.procs").exists())
        self.is_first = root.name == "memory"
        self.path = root / f"toroid-data-{os.getpid()}"
        self.path.mkdir()
        name = "memory.limit_in_bytes" if self.is_first else "memory.max"
        (self.path / name).write_text(str(limit))

    def enter(self):
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def peak(self):
        """Bytes at most, with cached pages of files, which the system takes back when it needs them."""
        return int((self.path / ("memory.max_usage_in_bytes" if self.is_first else "memory.peak")).read_text())

    def close(self):
        self.path.rmdir()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=pathlib.Path)
    parser.add_argument("--toroid-data", default="target/release/toroid-data")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--memory", default="512M")
    parser.add_argument("--beside", default="64M")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("/tmp/toroid-data-memory"))
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    # In a process of its own: what this one has in memory would count for the program, which begins as a copy of it.
    writer = os.fork()
    if writer == 0:
        texts = [json.loads(line)["text"] for line in args.texts.open(encoding="utf-8")]
        write_corpus(args.folder / "in.jsonl", texts, int(args.gigabytes * 1e9))
        os._exit(0)
    os.waitpid(writer, 0)
    stages = "".join(f'[[stage]]\nkind = "{kind}"\n' for kind in ["exact", "minhash", "sentences", "pii"])
    (args.folder / "pipeline.toml").write_text(
        f'[[source]]\nname = "a"\npath = "in.jsonl"\n{stages}[output]\nformat = "tokens"\n'
    )
    cgroup = Cgroup(size(args.memory) + size(args.beside))
    command = [args.toroid_data, "run", str(args.folder / "pipeline.toml"), "--memory", args.memory, "--threads", args.threads]
    start = time.monotonic()
    process = subprocess.Popen(command, preexec_fn=cgroup.enter)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    own = usage.ru_maxrss / 1024
    megabytes = (args.folder / "in.jsonl").stat().st_size / 1e6
    print(f"status {status}; {megabytes:.0f} MB in {seconds:.1f} s, {megabytes / seconds:.1f} MB/s, --memory {args.memory}, {args.threads} threads")
    print(f"most memory of the program: {own:.0f} MiB; of the group with cached files: {cgroup.peak() / 2**20:.0f} MiB")
    cgroup.close()
    shutil.rmtree(args.folder, ignore_errors=True)
    raise SystemExit(status != 0)


if __name__ == "__main__":
    main()
