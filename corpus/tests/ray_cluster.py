"""A plan on a local cluster of Ray with several raylets, of which raylets and workers are killed: the bytes are those of one process.

    python corpus/tests/ray_cluster.py --toroid-data target/debug/toroid-data        (`make test-data-ray`, which installs Ray)
"""
import argparse, hashlib, json, os, pathlib, random, signal, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor

import ray
from ray._private import ray_constants
from ray.cluster_utils import Cluster

DRIVER = pathlib.Path(__file__).resolve().parents[2] / "deploy/data/ray_run.py"
STAGES = ["url", "exact", "minhash", "sentences", "heuristics", "perplexity", "pii"]
LONGEST_S = 600


def make_sources(folder, num):
    """Texts of words drawn by a seed, of which many say the same or nearly so."""
    draw = random.Random(15)
    words = ["".join(draw.choice("bdfklmnprst") + draw.choice("aeiou") for _ in range(draw.randint(1, 4))) for _ in range(4000)]
    words += ["the", "be", "to", "of", "and", "that", "have", "with"] * 200
    sentence = lambda: " ".join(draw.choices(words, k=draw.randint(8, 20))).capitalize() + "."
    texts = []
    for n in range(num):
        if texts and draw.random() < 0.4:
            text = draw.choice(texts).split(" ")
            for _ in range(draw.choice([0, 1, 4, 12])):
                text[draw.randrange(len(text))] = draw.choice(words)
            text = " ".join(text)
        else:
            text = " ".join(sentence() for _ in range(draw.randint(6, 30)))
        texts.append(text + (f" Write to user{n}@example.org." if n % 9 == 0 else ""))
    (folder / "web").mkdir()
    for k in range(5):
        with open(folder / f"web/{k}.jsonl", "w") as file:
            for n, text in enumerate(texts[k::5]):
                file.write(json.dumps({"id": f"{k}-{n}", "url": f"http://h{n % 7}.org/{n // 2}/{k}", "text": text}) + "\n")
    (folder / "train.txt").write_text("\n".join(texts[:300]))
    stages = "".join(f'[[stage]]\nkind = "{kind}"\n' + ('model = "m.arpa"\n' if kind == "perplexity" else "") for kind in STAGES)
    source = '[[source]]\nname = "web"\npath = "web"\n'
    for name in ["one", "ray"]:
        paths = f'work = "{name}/work"\n{source}{stages}[output]\npath = "{name}/out"\nshard_bytes = 1000000\n'
        (folder / f"{name}.toml").write_text(paths)


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def raylet_of(node):
    return node.all_processes[ray_constants.PROCESS_TYPE_RAYLET][0].process.pid


def children(parent):
    """Processes that a process started."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toroid-data", type=lambda path: str(pathlib.Path(path).resolve()), required=True)
    parser.add_argument("--documents", type=int, default=2500)
    parser.add_argument("--raylets", type=int, default=3)
    parser.add_argument("--kills", type=int, default=8, help="of workers and raylets in turn")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        make_sources(folder, args.documents)
        call = lambda *words: subprocess.run([args.toroid_data, *words], cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        call("lm", "train.txt", "--to", "m.arpa", "--order", "3", "--memory", "64M")
        call("run", "one.toml", "--memory", "256M", "--threads", "2", "--shards", "3")
        call("plan", "ray.toml", "--memory", "64M", "--shards", "4", "--piece", "1M")
        expected = digests(folder / "one/out")
        num_tasks = len(json.loads((folder / "plan.json").read_text())["tasks"])

        # Hooks at the exit can be set by the main thread alone, and raylets are started by another, too: `finally` ends them.
        cluster = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False})
        add = lambda: cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        nodes = [add() for _ in range(args.raylets)]
        # A raylet takes seconds to start, in which the others go on: those who die next do not wait for it.
        starting, pending = ThreadPoolExecutor(1), []
        cluster.wait_for_nodes()
        log = open(folder / "driver.log", "w+")
        driver = subprocess.Popen(
            [sys.executable, DRIVER, folder / "plan.json", "--toroid-data", args.toroid_data, "--address", cluster.address, "--memory", "64M"],
            stdout=log, stderr=subprocess.STDOUT)
        draw, kills, begin = random.Random(4), {"worker": 0, "raylet": 0}, time.monotonic()
        seen = 0
        try:
            while driver.poll() is None:
                if time.monotonic() - begin > LONGEST_S:
                    sys.exit("ray_cluster.py: the plan is not done after {} s:\n{}".format(LONGEST_S, (folder / "driver.log").read_text()))
                # The next death comes when some tasks more are done: marks are what all sides see.
                marks = list((folder / "ray/work").glob("tasks-*/*"))
                num_done = sum(1 for mark in marks if not mark.name.startswith("."))
                nodes += [pending.pop(0).result() for _ in [start for start in pending if start.done()]]
                if nodes and sum(kills.values()) < args.kills and num_done > seen + num_tasks // (2 * args.kills):
                    seen = num_done
                    node = draw.choice(nodes)
                    if sum(kills.values()) % 2 == 0 and (workers := children(raylet_of(node))):
                        os.kill(draw.choice(workers), signal.SIGKILL)
                        kills["worker"] += 1
                    else:
                        os.kill(raylet_of(node), signal.SIGKILL)
                        kills["raylet"] += 1
                        nodes.remove(node)
                        pending.append(starting.submit(add))
                time.sleep(0.02)
            code = driver.wait()
            said = (folder / "driver.log").read_text()
            if code != 0:
                sys.exit(f"ray_cluster.py: the driver ended with {code}:\n{said}")
            if sum(kills.values()) < args.kills:
                sys.exit(f"ray_cluster.py: only {kills} were killed before the end")
            found = digests(folder / "ray/out")
            differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            if differing:
                sys.exit(f"ray_cluster.py: other bytes than one process writes: {differing}\n{said}")
            print(f"{num_tasks} tasks on {args.raylets} raylets in {time.monotonic() - begin:.1f} s, killed: {kills}; "
                  f"{len(expected)} files are those of one process; the driver: {next(line for line in reversed(said.splitlines()) if line.startswith('done'))}")
        finally:
            driver.kill()
            driver.wait()
            starting.shutdown()
            cluster.shutdown()


if __name__ == "__main__":
    main()
