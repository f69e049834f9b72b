"""How fast an S3-compatible store takes an object from Toroid and from its own client, boto3, in turns: what a store can take is what its client reaches.

    python bench/storage.py --toroid target/release/toroid s3://BUCKET/PREFIX [--size 1000] [--rounds 3]

The environment says which store (docs/storage.md). Without a URL a store is started on this machine (`nanio`, of scripts/setup.sh). boto3 comes by
`pip install boto3`; it has its own defaults: parts of 8 MiB, ten at a time. Its file lies in memory.
"""

import argparse, json, os, pathlib, socket, statistics, subprocess, sys, tempfile, time


def start_store(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key = {"ACCESS_KEY": "BENCH", "SECRET_KEY": "of-no-use-elsewhere"}
    (pathlib.Path(folder) / "bench").mkdir()
    program = pathlib.Path(sys.executable).with_name("nanio")
    flags = ["serve", "--host", "127.0.0.1", "--port", str(port), "--data-dir", folder, "--no-access-log", "--log-level", "error"]
    store = subprocess.Popen([program, *flags], env={**os.environ, **{f"NANIO_{name}": value for name, value in key.items()}})
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            if store.poll() is not None:
                sys.exit("the store did not start")
            time.sleep(0.05)
    os.environ.update(AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", AWS_ACCESS_KEY_ID=key["ACCESS_KEY"],
                      AWS_SECRET_ACCESS_KEY=key["SECRET_KEY"], AWS_REGION="us-east-1", AWS_DEFAULT_REGION="us-east-1")
    return store


def toroid(args, url):
    command = [args.toroid, "bench", "storage", url, "--size", str(args.size), "--rounds", "1", "-o", "json"]
    figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return figures["write_bytes_per_s"], figures["read_bytes_per_s"]


def boto(args, url):
    import boto3

    client = boto3.client("s3")
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    key = "/".join(part for part in [prefix.strip("/"), f"toroid-bench-boto-{os.getpid()}"] if part)
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file, tempfile.NamedTemporaryFile(dir="/dev/shm") as back:
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
    return speeds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--toroid", default="target/release/toroid")
    parser.add_argument("--size", type=int, default=1000, help="MB")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = None if args.url else start_store(folder)
        url = args.url or "s3://bench/objects"
        speeds = {"toroid": [], "boto3": []}
        try:
            for _ in range(args.rounds):
                speeds["toroid"].append(toroid(args, url))
                speeds["boto3"].append(boto(args, url))
        finally:
            if store:
                store.kill()
                store.wait()
    print(f"{args.size} MB, MB/s, median of {args.rounds} (each round)")
    medians = {}
    for name, rounds in speeds.items():
        medians[name] = [statistics.median(speed) / 1e6 for speed in zip(*rounds)]
        words = ["/".join(f"{speed / 1e6:.0f}" for speed in each) for each in zip(*rounds)]
        print(f"  {name:7}" + "".join(f"  {what} {median:.0f} ({of})" for what, median, of in zip(["write", "read"], medians[name], words)))
    print("  share    " + "  ".join(f"{what} {ours / theirs:.0%}" for what, ours, theirs in zip(["write", "read"], *medians.values())))


main()
