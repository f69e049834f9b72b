"""The whole pipeline on a corpus of natural text: table, MB/s, documents/s, the most memory that the program had, in a cgroup whose limit
is --memory and --beside (the program itself), where this may make one, and the most room that it took on the disk.

    python bench/data_whole.py --toroid-data target/release/toroid-data --gigabytes 1 --mails package/data --cargo ~/.cargo/registry/src
"""
import argparse, json, os, pathlib, shutil, subprocess, sys, tempfile, time

from data_memory import Cgroup, size

STAGES = ["url", "exact", "minhash", "sentences", "heuristics", "pii"]


def room_of(folder):
    """Bytes on the disk of all files below a folder, of which some may go meanwhile."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
            except FileNotFoundError:
                pass
    return total


def make_corpus(args, corpus):
    texts = pathlib.Path(__file__).with_name("data_texts.py")
    corpus.mkdir()
    make = [sys.executable, texts, "--mails", args.mails, "--cargo", args.cargo, "--gigabytes", str(args.gigabytes)]
    if not args.packed:
        subprocess.run([*make, corpus / "texts.jsonl"], check=True)
        return
    split = ["split", "--line-bytes=500M", "--additional-suffix=.jsonl.gz", "--filter=gzip -1 > $FILE", "-", corpus / "part-"]
    made = subprocess.Popen([*map(str, make), "/dev/stdout"], stdout=subprocess.PIPE)
    subprocess.run(split, stdin=made.stdout, check=True)
    if made.wait() != 0:
        sys.exit("data_whole.py: the texts could not be made")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toroid-data", type=lambda path: str(pathlib.Path(path).resolve()), default="target/release/toroid-data")
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--memory", default="512M")
    parser.add_argument("--beside", default="64M")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--mails", type=pathlib.Path)
    parser.add_argument("--cargo", type=pathlib.Path)
    parser.add_argument("--packed", action="store_true", help="the corpus lies there as files of 500 MB, compressed by gzip, for less room")
    parser.add_argument("--corpus", type=pathlib.Path, help="a folder that has the corpus already, of so many gigabytes; nothing is made")
    parser.add_argument("--in", dest="place", help="a folder with room for some four times as much")
    args = parser.parse_args()
    if not args.corpus and not (args.mails and args.cargo):
        parser.error("name what the corpus is made of, --mails and --cargo, or --corpus")
    folder = pathlib.Path(tempfile.mkdtemp(dir=args.place))
    disk = shutil.disk_usage(folder)
    # What is there for us: more may be shown as the size of the disk.
    room, needed = disk.free - (disk.used + disk.free) / 10, args.gigabytes * 1e9 * (1.8 if args.packed else 2.5)
    if room < needed:
        sys.exit(f"data_whole.py: {folder} has room for {room / 1e9:.0f} GB beside a tenth that stays free; some {needed / 1e9:.0f} are needed; "
                 "name another folder with --in, or take --packed")
    try:
        cgroup = Cgroup(size(args.memory) + size(args.beside))
    except (StopIteration, OSError) as error:
        cgroup = None
        print(f"data_whole.py: without a cgroup ({error!r}): run it as root", file=sys.stderr)
    try:
        corpus = args.corpus or folder / "in"
        if not args.corpus:
            make_corpus(args, corpus)
        stages = "".join(f'[[stage]]\nkind = "{kind}"\n' for kind in STAGES)
        (folder / "pipeline.toml").write_text(f'[[source]]\nname = "a"\npath = "{corpus.resolve()}"\n{stages}[output]\nformat = "tokens"\n')
        start = time.monotonic()
        process = subprocess.Popen([args.toroid_data, "run", folder / "pipeline.toml", "--memory", args.memory, "--threads", args.threads], preexec_fn=cgroup and cgroup.enter)
        room, ended = 0, 0
        while not ended:
            time.sleep(0.2)
            # Looking at the files takes little: there are some hundreds.
            room = max(room, room_of(folder))
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        seconds = time.monotonic() - start
        if status != 0:
            sys.exit(f"data_whole.py: toroid-data ended with status {status}")
        report = json.loads((folder / "out/report.json").read_text())
        num_bytes = args.gigabytes * 1e9
        cpu = usage.ru_utime + usage.ru_stime
        print(f"{num_bytes / 1e6:.0f} MB, {report['documents_read']} documents in {seconds:.1f} s ({cpu:.1f} s of CPU): {num_bytes / 1e6 / seconds:.1f} MB/s, "
              f"{report['documents_read'] / seconds:.0f} documents/s, most memory {usage.ru_maxrss / 1024:.0f} MiB of --memory {args.memory}, {args.threads} threads")
        beside = f"and {room_of(corpus) / 1e9:.2f} GB of the corpus" if args.corpus else "the corpus included"
        print(f"most room on the disk: {room / 1e9:.2f} GB, {beside}")
        if cgroup:
            print(f"in a cgroup of {(size(args.memory) + size(args.beside)) >> 20} MiB, with cached files at most {cgroup.peak() / 2**20:.0f} MiB of it")
    finally:
        if cgroup:
            cgroup.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
