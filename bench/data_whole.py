"""The whole pipeline on a corpus of natural text: table, MB/s, documents/s, and the most memory that the program had.

    python bench/data_whole.py --toroid-data target/release/toroid-data --gigabytes 1 --mails package/data --cargo ~/.cargo/registry/src
"""
import argparse, json, os, pathlib, shutil, subprocess, sys, tempfile, time

STAGES = ["url", "exact", "minhash", "sentences", "heuristics", "pii"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toroid-data", type=lambda path: str(pathlib.Path(path).resolve()), default="target/release/toroid-data")
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--memory", default="512M")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--mails", type=pathlib.Path, required=True)
    parser.add_argument("--cargo", type=pathlib.Path, required=True)
    parser.add_argument("--in", dest="place", help="a folder with room for some four times as much")
    args = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(dir=args.place))
    try:
        texts = pathlib.Path(__file__).with_name("data_texts.py")
        subprocess.run([sys.executable, texts, "--mails", args.mails, "--cargo", args.cargo, "--gigabytes", str(args.gigabytes), folder / "in.jsonl"], check=True)
        stages = "".join(f'[[stage]]\nkind = "{kind}"\n' for kind in STAGES)
        (folder / "pipeline.toml").write_text(f'[[source]]\nname = "a"\npath = "in.jsonl"\n{stages}[output]\nformat = "tokens"\n')
        start = time.monotonic()
        process = subprocess.Popen([args.toroid_data, "run", folder / "pipeline.toml", "--memory", args.memory, "--threads", args.threads])
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        if status != 0:
            sys.exit(f"data_whole.py: toroid-data ended with status {status}")
        report = json.loads((folder / "out/report.json").read_text())
        num_bytes = (folder / "in.jsonl").stat().st_size
        cpu = usage.ru_utime + usage.ru_stime
        print(f"{num_bytes / 1e6:.0f} MB, {report['documents_read']} documents in {seconds:.1f} s ({cpu:.1f} s of CPU): {num_bytes / 1e6 / seconds:.1f} MB/s, "
              f"{report['documents_read'] / seconds:.0f} documents/s, most memory {usage.ru_maxrss / 1024:.0f} MiB of --memory {args.memory}, {args.threads} threads")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
