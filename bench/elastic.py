"""A worker dies: Toroid, torchrun and torchft on the same machine, one after the other, in one run.

Four data-parallel workers of one thread each train the `tiny` preset on the same text; one of them is killed with SIGKILL while a spare
stands by. Printed for each: milliseconds from the kill to the next committed step and to full strength, steps made again, and whether
the losses after it are those of the undisturbed run to the bit.

    python bench/elastic.py --toroid target/release/toroid --kills 20 --reps 3        (`make bench-elastic`)

The scripts in bench/peers run PyTorch's side; their heads say what they do. torchft is run with its default flags and with tuned ones.
"""
import argparse, json, os, pathlib, statistics, subprocess, sys, tempfile

from corpus import corpus

HERE = pathlib.Path(__file__).resolve().parent
PEERS = HERE / "peers"


def peer(script, scenario, conf, reps, scratch, data):
    """Rows of a peer's experiment."""
    out = scratch / f"{script}-{scenario}-{conf}.jsonl"
    bin_dir = pathlib.Path(sys.executable).parent
    env = dict(os.environ, DATA=str(data), SCRATCH=str(scratch), STEPS="110", PATH=f"{bin_dir}{os.pathsep}{os.environ['PATH']}")
    command = [sys.executable, str(PEERS / f"elastic_{script}.py"), scenario, conf, str(reps), str(out)]
    subprocess.run(command, env=env, check=True, stdout=sys.stderr)
    return [json.loads(line) for line in out.read_text().splitlines()]


def median(values):
    values = [v for v in values if v is not None and v == v]
    return statistics.median(values) if values else None


def equal_after(rows, base):
    """In how many rows every loss after the kill is that of the undisturbed run, to the bit."""
    def equal(row):
        after = [s for s in row["traj"] if int(s) > row["kill_step"] and s in base]
        return bool(after) and all(row["traj"][s] == base[s] for s in after)
    return sum(equal(r) for r in rows if "kill_step" in r)


def cell(value, digits=0):
    return "-" if value is None else f"{value:.{digits}f}"


def main():
    parser = argparse.ArgumentParser(description="A worker dies: Toroid, torchrun and torchft in one run")
    parser.add_argument("--toroid", required=True, help="the binary")
    parser.add_argument("--kills", type=int, default=20, help="of Toroid's workers")
    parser.add_argument("--reps", type=int, default=3, help="runs of each peer's experiment")
    args = parser.parse_args()
    table = []
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        data = scratch / "text.txt"
        corpus(data)
        command = [args.toroid, "chaos", "--tp", "1", "--pp", "1", "--dp", "4", "--spares", "1", "--kills", str(args.kills), "--verify",
                   "--data", str(data), "--dir", str(scratch / "toroid"), "-o", "json"]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if not run.stdout:
            sys.exit(f"elastic.py: {' '.join(command)} printed nothing and exited with {run.returncode}")
        report = json.loads(run.stdout)
        ms = [1e3 * f["recovery_s"] for f in report["faults"] if f["recovery_s"] is not None]
        table.append(("Toroid, a spare", len(report["faults"]), 1e3 * report["step_s"], median(ms), median(ms), 0,
                      "all" if run.returncode == 0 else "NO: " + "; ".join(report["problems"])))
        base = {s: peer(s, "base", "default", 1, scratch, data)[0]["traj"] for s in ("torchrun", "torchft")}
        for name, script, scenario, conf in [
            ("torchrun, agent restarts the worker", "torchrun", "worker", "default"),
            ("torchrun, a spare node", "torchrun", "node_spare", "default"),
            ("torchrun, a spare node, tuned", "torchrun", "node_spare", "tuned"),
            ("torchft, a standby", "torchft", "standby", "default"),
            ("torchft, a standby, tuned", "torchft", "standby", "tuned"),
        ]:
            rows = peer(script, scenario, conf, args.reps, scratch, data)
            next_ms = [1e3 * r["next_step_s"] for r in rows if "next_step_s" in r]
            full = [1e3 * r["new_progress_s"] if script == "torchrun" else 1e3 * r["next_step_s"] for r in rows if "next_step_s" in r]
            table.append((name, len(rows), median(r["step_ms"] for r in rows), median(next_ms), median(full),
                          median(r.get("redone", 0) for r in rows), f"{equal_after(rows, base[script])} of {len(rows)}"))
    print("| | kills | step, ms | next step, ms | new progress at full strength, ms | steps again | losses the same to the bit |")
    print("|---|---|---|---|---|---|---|")
    for name, kills, step, following, full, again, equal in table:
        print(f"| {name} | {kills} | {cell(step)} | {cell(following)} | {cell(full)} | {cell(again)} | {equal} |")


main()
