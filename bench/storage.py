"""How fast an S3-compatible store takes a checkpoint from Toroid, and a file of the same size from its own client, boto3, in turns: what a store can take is
what its client reaches. Goal: a checkpoint of 1 GB at 80% of that.

    python bench/storage.py --toroid target/release/toroid [s3://BUCKET/PREFIX] [--store localbucket] [--size 1000] [--rounds 3]

The environment says which store (docs/storage.md). Without a URL one is started on this machine, with its objects in memory; both programs come with
scripts/setup.sh. `nanio` heeds no conditions of writes, so it takes objects and no checkpoints. boto3 has its own defaults: parts of 8 MiB, ten at a
time. Its file lies in memory.
"""

import argparse, json, os, pathlib, socket, statistics, subprocess, sys, tempfile, time

MEMORY = "/dev/shm"
GOAL = 0.8


def start_store(name, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key = {"ACCESS_KEY": "BENCH", "SECRET_KEY": "of-no-use-elsewhere"}
    (pathlib.Path(folder) / "bench").mkdir()
    flags = {
        "localbucket": ["--port", str(port), folder],
        "nanio": ["serve", "--host", "127.0.0.1", "--port", str(port), "--data-dir", folder, "--no-access-log", "--log-level", "error"],
    }[name]
    program = pathlib.Path(sys.executable).with_name(name)
    env = {**os.environ, **{f"NANIO_{variable}": value for variable, value in key.items()}}
    store = subprocess.Popen([program, *flags], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            if store.poll() is not None:
                sys.exit(f"the store {program} did not start")
            time.sleep(0.05)
    os.environ.update(AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", AWS_ACCESS_KEY_ID=key["ACCESS_KEY"],
                      AWS_SECRET_ACCESS_KEY=key["SECRET_KEY"], AWS_REGION="us-east-1", AWS_DEFAULT_REGION="us-east-1")
    return store


def toroid(args, url):
    """Bytes a second by what was done."""
    command = [args.toroid, "bench", "storage", url, "--size", str(args.size), "--rounds", "1", "-o", "json"]
    figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    speeds = {"object": (figures["write_bytes_per_s"], figures["read_bytes_per_s"])}
    if figures["checkpoint"]:
        speeds["checkpoint"] = (figures["checkpoint"]["write_bytes_per_s"], figures["checkpoint"]["verify_bytes_per_s"])
    return speeds


def boto(args, url):
    import boto3

    client = boto3.client("s3")
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    key = "/".join(part for part in [prefix.strip("/"), f"toroid-bench-boto-{os.getpid()}"] if part)
    with tempfile.NamedTemporaryFile(dir=MEMORY) as file, tempfile.NamedTemporaryFile(dir=MEMORY) as back:
        block = os.urandom(1_000_000)
        for _ in range(args.size):
            file.write(block)
        file.flush()
        speeds = []
        for move in [lambda: client.upload_file(file.name, bucket, key), lambda: client.download_file(bucket, key, back.name)]:
            start = time.monotonic()
            move()
            speeds.append(args.size * 1e6 / (time.monotonic() - start))
    client.delete_object(Bucket=bucket, Key=key)
    return {"boto3": tuple(speeds)}


def load():
    return f"{os.getloadavg()[0]:.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--toroid", default="target/release/toroid")
    parser.add_argument("--store", default="localbucket", choices=["localbucket", "nanio"])
    parser.add_argument("--size", type=int, default=1000, help="MB")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=None if args.url else MEMORY) as folder:
        store = None if args.url else start_store(args.store, folder)
        url = args.url or "s3://bench/objects"
        rounds, before = [], load()
        try:
            for _ in range(args.rounds):
                rounds.append(toroid(args, url) | boto(args, url))
        finally:
            if store:
                store.kill()
                store.wait()
    where = args.url or f"{args.store} on this machine"
    print(f"{where}, {args.size} MB, MB/s, median of {args.rounds} (each round); load {before} before, {load()} after")
    medians = {}
    for name in rounds[0]:
        ways = list(zip(*[each[name] for each in rounds]))
        medians[name] = [statistics.median(way) for way in ways]
        words = [f"{median / 1e6:.0f} ({'/'.join(f'{speed / 1e6:.0f}' for speed in way)})" for median, way in zip(medians[name], ways)]
        print(f"  {name:10}  write {words[0]:24}  read {words[1]}")
    theirs = medians.pop("boto3")
    for name, ours in medians.items():
        shares = [mine / their for mine, their in zip(ours, theirs)]
        goal = f"; goal {GOAL:.0%}: {'reached' if shares[0] >= GOAL else 'missed'}" if name == "checkpoint" else ""
        print(f"  {name} / boto3: write {shares[0]:.0%}, read {shares[1]:.0%}{goal}")


main()
