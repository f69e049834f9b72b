"""What a coordinator costs beside torchft's lighthouse: on the same machine, one after the other, in one run.

    python bench/lighthouse.py --toroid target/release/toroid --workers 256,1000        (`make bench-lighthouse`)

The lighthouse is torchft's server of heartbeats and quorums, one for all replicas of a job. As many replicas as Toroid has workers heartbeat by its own
client, one call each; then all ask for a quorum at a time, as they do before each step. Toroid is measured by `toroid bench fleet`: streams over TLS that
the coordinator authenticates, records of steps, a store on disk. Printed are microseconds of the server's processor for one heartbeat (of Toroid: for any
message at 1 Hz), and what all wait for when a member is gone: of the lighthouse a quorum of all, of Toroid the decision after the death of one worker, stored
and told to all. A quorum is asked for in each step whether somebody died or not; a decision is made when somebody did.

A processor's time is that of the server's process, so that clients on the same cores do not count; times by the clock have the clients' in them.
"""
import argparse, json, os, pathlib, statistics, subprocess, sys, tempfile, threading, time
from datetime import timedelta

PORT = 29581
# Or each client says on standard error that it connects.
os.environ.setdefault("RUST_LOG", "error")
TICKS = os.sysconf("SC_CLK_TCK")
LIMIT = timedelta(seconds=120)


def cpu_s(pid):
    """Seconds of processor that a process has used."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def start(replicas):
    from torchft.coordination import LighthouseClient

    program = pathlib.Path(sys.executable).parent / "torchft_lighthouse"
    flags = ["--bind", f"[::]:{PORT}", "--min_replicas", str(replicas), "--quorum_tick_ms", "100", "--join_timeout_ms", "10000"]
    server = subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(100):
        try:
            LighthouseClient(f"http://127.0.0.1:{PORT}", connect_timeout=LIMIT).heartbeat("first")
            return server
        except Exception:
            if server.poll() is not None:
                sys.exit(f"lighthouse: it ended with {server.returncode} before it listened on port {PORT}")
            time.sleep(0.1)
    sys.exit("lighthouse: nobody listens after 10 s")


def lighthouse(replicas, beats, rounds):
    """Microseconds of the server for a heartbeat; by quorum its seconds by the clock, and the server's."""
    from torchft.coordination import LighthouseClient

    server = start(replicas)
    together = threading.Barrier(replicas + 1, timeout=300)

    def replica(i):
        client = LighthouseClient(f"http://127.0.0.1:{PORT}", connect_timeout=LIMIT)
        together.wait()
        for _ in range(beats):
            client.heartbeat(f"replica-{i}")
        together.wait()
        for step in range(rounds):
            client.heartbeat(f"replica-{i}")
            together.wait()
            address = f"10.0.{i // 250}.{i % 250}"
            client.quorum(replica_id=f"replica-{i}", timeout=LIMIT, address=f"http://{address}:29500", store_address=f"{address}:29600", step=step, world_size=1)
            together.wait()

    threads = [threading.Thread(target=replica, args=(i,), daemon=True) for i in range(replicas)]
    for thread in threads:
        thread.start()
    together.wait()
    before = cpu_s(server.pid)
    together.wait()
    heartbeat_us = 1e6 * (cpu_s(server.pid) - before) / (replicas * beats)
    seconds, used = [], []
    for _ in range(rounds):
        together.wait()
        began, before = time.perf_counter(), cpu_s(server.pid)
        together.wait()
        seconds.append(time.perf_counter() - began)
        used.append(cpu_s(server.pid) - before)
    for thread in threads:
        thread.join(10)
    server.kill()
    server.wait()
    return heartbeat_us, statistics.median(seconds), statistics.median(used)


def coordinator(toroid, workers, kills, scratch):
    command = [toroid, "bench", "fleet", "--workers", str(workers), "--kills", str(kills), "--kill-hosts", "0", "--kill-racks", "0", "--dir", scratch, "-o", "json"]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    steady, death = report["steady"], next(d for d in report["deaths"] if d["what"] == "worker")
    return 1e6 * steady["cores"] / steady["messages_per_s"], death["decided_s"]["median"], death["cpu_s"]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--toroid", required=True, help="Toroid's executable")
    ap.add_argument("--workers", default="256,1000", help="workers, and replicas")
    ap.add_argument("--beats", type=int, default=20, help="heartbeats of each replica")
    ap.add_argument("--rounds", type=int, default=10, help="quorums, and deaths")
    args = ap.parse_args()
    print(f"{'WORKERS':>7} {'':24} {'US/HEARTBEAT':>12} {'ALL TOLD AFTER':>14} {'CPU':>8}", flush=True)
    for workers in map(int, args.workers.split(",")):
        with tempfile.TemporaryDirectory() as scratch:
            rows = {"toroid, a death": coordinator(args.toroid, workers, args.rounds, scratch)}
        rows["torchft, a quorum"] = lighthouse(workers, args.beats, args.rounds)
        for name, (us, seconds, cpu) in rows.items():
            print(f"{workers:7} {name:24} {us:9.0f} us {1e3 * seconds:11.0f} ms {1e3 * cpu:5.0f} ms", flush=True)


if __name__ == "__main__":
    main()
