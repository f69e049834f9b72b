"""The data pipeline on inputs that are unusual, each in a cgroup of --memory and --beside (as root): how it ends, seconds, the most memory.

    python bench/data_extremes.py --toroid-data target/release/toroid-data [CASE...]

Nothing; a million documents that are equal, that differ in a word, that are alike by less than the threshold; the same of sentences; a document
of 1 GB in one line; a disk that is full (a tmpfs of 64 MiB), and the same command once there is room. Takes 2 GB of room and some ten minutes.
"""
import argparse, json, os, pathlib, random, re, shutil, subprocess, sys, tempfile, time

from data_memory import Cgroup, size

ALL = ["url", "exact", "minhash", "sentences", "heuristics", "pii"]
WORDS = [a + b for a in "ka lo mi ne pu ra si to vu ze".split() for b in "bar den fol gim hut jok len mar nop pel".split()]


def text(draw, num_words):
    """Sentences of twelve words."""
    words = [draw.choice(WORDS) for _ in range(num_words)]
    return " ".join(word.capitalize() if n % 12 == 0 else word + "." * (n % 12 == 11) for n, word in enumerate(words))


def versions(path, num, num_words, changed, seed=1):
    """Versions of one text as JSON lines, each with so many words replaced."""
    draw = random.Random(seed)
    parts = text(draw, num_words).split(" ")
    with open(path, "w") as out:
        for n in range(num):
            copy = list(parts)
            for _ in range(changed):
                copy[draw.randrange(num_words)] = f"x{draw.randrange(1 << 40):x}"
            out.write(json.dumps({"url": f"https://a.org/{n}", "text": " ".join(copy)}) + "\n")


def long_line(path, start, end, num_bytes=1_000_000_000):
    """Sentences without a line end between."""
    draw = random.Random(1)
    with open(path, "wb") as out:
        out.write(start)
        while out.tell() < num_bytes:
            part = text(draw, 12_000) + " "
            out.write(part.encode() * 10)
        out.write(end)


class Run:
    def __init__(self, args, folder, stages=ALL, more="", memory=None, options=""):
        self.args, self.folder, self.memory = args, folder, memory or args.memory
        stages = "".join(f'[[stage]]\nkind = "{kind}"\n' for kind in stages)
        (folder / "pipeline.toml").write_text(f'[[source]]\nname = "a"\npath = "in"\n{more}\n{stages}{options}[output]\nformat = "tokens"\n')

    def go(self, name, is_well=True):
        cgroup = Cgroup(size(self.memory) + size(self.args.beside))
        command = [self.args.toroid_data, "run", str(self.folder / "pipeline.toml"), "--memory", self.memory, "--threads", self.args.threads]
        start = time.monotonic()
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(command, stdout=said, stderr=said, preexec_fn=cgroup.enter)
            _, status, usage = os.wait4(process.pid, 0)
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines() or [""]
        seconds = time.monotonic() - start
        cgroup.close()
        if status == 0:
            report = json.loads((self.folder / "out/report.json").read_text())
            result = f"{report['documents_read']} documents read, {report['bad_records']} bad records, {report['documents_out']} left"
            result += "".join(f"; {note}: {num}" for stage in report["stages"] for note, num in stage["counts"].get("notes", {}).items() if num)
        else:
            result = f"status {os.waitstatus_to_exitcode(status)}: " + re.sub(re.escape(str(self.folder)) + "/?", "", lines[-1])
        cpu = usage.ru_utime + usage.ru_stime
        print(f"| {name} | {result} | {seconds:.1f} | {cpu:.1f} | {usage.ru_maxrss / 1024:.0f} of {self.memory} |", flush=True)
        if (status == 0) != is_well:
            print("\n".join(lines[-20:]), file=sys.stderr)
            self.args.num_wrong += 1


def nothing(args, folder):
    (folder / "in").mkdir()
    Run(args, folder).go("a folder without files", is_well=False)
    (folder / "in/a.jsonl").write_bytes(b"")
    Run(args, folder).go("an empty file")
    (folder / "in/a.jsonl").write_text('{"text": ""}\n' * 3)
    Run(args, folder, more="[read]\nmax_bad_share = 1.0").go("documents without text")


def clusters(args, folder):
    (folder / "in").mkdir()
    for name, changed, stages in [
        ("1,000,000 equal documents, all stages", 0, ALL),
        ("the same, `minhash` alone", 0, ["minhash"]),
        ("the same, `sentences` alone", 0, ["sentences"]),
        ("1,000,000 documents that differ in one of 96 words, `minhash`", 1, ["minhash"]),
        ("the same, `sentences`", 1, ["sentences"]),
    ]:
        versions(folder / "in/a.jsonl", 1_000_000, 96, changed)
        Run(args, folder, stages).go(name)
    for num in (100_000, 200_000, 400_000):
        versions(folder / "in/a.jsonl", num, 96, 5)
        Run(args, folder, ["minhash"]).go(f"{num:,} versions of 96 words, five replaced: most stay, `minhash`")


def line(args, folder):
    (folder / "in").mkdir()
    long_line(folder / "in/a.jsonl", b'{"text": "', b'"}\n{"text": "One more."}\n')
    Run(args, folder, more="[read]\nmax_bad_share = 1.0").go("a line of JSON of 1 GB, and one more")
    (folder / "in/a.jsonl").rename(folder / "in/a.txt")
    Run(args, folder, more="[read]\nmax_bad_share = 1.0").go("a text of 1 GB")
    Run(args, folder, more='format = "lines"\n[read]\nmax_bad_share = 1.0').go("a line of text of 1 GB, and one more")
    Run(args, folder, more="[read]\nmax_document_bytes = 1073741824").go("a text of 1 GB that may be as long", is_well=False)


def long_documents(args, folder):
    """A document that memory has room for: what a stage takes grows with its length, and no faster."""
    (folder / "in").mkdir()
    for num_mb in (60, 125, 250):
        long_line(folder / "in/a.txt", b"", b"", num_mb * 1_000_000)
        for stage, options in [("minhash", ""), ("sentences", ""), ("heuristics", "max_words = 1_000_000_000\n"), ("pii", "")]:
            more = "[read]\nmax_document_bytes = 1073741824"
            Run(args, folder, [stage], more, memory="8G", options=options).go(f"a line of {num_mb} MB, `{stage}`")


def disk(args, folder):
    (folder / "in").mkdir()
    for n in range(40):
        versions(folder / f"in/{n}.jsonl", 4_000, 96, 40, n)
    num_bytes = sum(path.stat().st_size for path in (folder / "in").iterdir())
    for name, mib, work in [("at once", 4, "small/work"), ("while stages run", 64, "small/work"), ("while the output is written", 16, "work")]:
        (folder / "small").mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", folder / "small"], check=True)
        try:
            run = Run(args, folder, ["exact", "minhash", "sentences", "pii"])
            pipeline = folder / "pipeline.toml"
            pipeline.write_text(f'work = "{work}"\n' + pipeline.read_text() + 'path = "small/out"\n')
            run.go(f"{num_bytes / 1e6:.0f} MB, the disk of {mib} MiB is full {name}", is_well=False)
            subprocess.run(["mount", "-o", "remount,size=1g", folder / "small"], check=True)
            (folder / "out").symlink_to("small/out")
            run.go("the same command once there is room")
            (folder / "out").unlink()
        finally:
            subprocess.run(["umount", folder / "small"], check=True)


CASES = {"nothing": nothing, "clusters": clusters, "line": line, "long": long_documents, "disk": disk}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=", ".join(CASES))
    parser.add_argument("--toroid-data", type=lambda path: str(pathlib.Path(path).resolve()), default="target/release/toroid-data")
    parser.add_argument("--memory", default="512M")
    parser.add_argument("--beside", default="64M")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--in", dest="place", help="a folder with room for 4 GB")
    args = parser.parse_args()
    args.num_wrong = 0
    print("| input | what came out | seconds | CPU seconds | most memory, MiB |\n|---|---|---|---|---|")
    for case in args.cases or CASES:
        folder = pathlib.Path(tempfile.mkdtemp(dir=args.place)).resolve()
        try:
            CASES[case](args, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(args.num_wrong)


if __name__ == "__main__":
    main()
