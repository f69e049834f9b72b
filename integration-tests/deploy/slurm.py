#!/usr/bin/env python3
"""The scripts of deploy/slurm on a real Slurm: nodes die, the time limit comes, tasks are replaced, and the job ends as the undisturbed one does.

    slurm.py --toroid target/debug/toroid [PART...]      parts: allocation, limit, batch-host, replacement, array; default: all
"""

import argparse
import csv
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from slurm_cluster import Slurm, is_there, wait

ROOT = pathlib.Path(__file__).resolve().parents[2]
# tp 2, pp 2, dp 2. It never goes on with fewer replicas, so that its figures are those of the undisturbed run; and learning rate and weight decay do not
# depend on the number of steps, so that a job that was ended is one of fewer steps.
JOB = """preset = "tiny"
name = "slurm"
steps = {steps}
seed = 7
[model]
layers = 4
d_model = 32
heads = 4
kv_heads = 2
head_dim = 8
experts = 4
ff = 32
seq = 32
[shape]
tp = 2
pp = 2
dp = 2
[batch]
micro_batch = 2
global = 16
[optimizer]
lr = 3e-3
warmup = 5
floor = 1.0
weight_decay = 0.1
weight_decay_final = 0.1
[data]
path = "{data}"
extensions = ["rs"]
[checkpoint]
interval_steps = 50
keep = 1000
[fault_tolerance]
min_dp = 2
"""
# Times, and which epoch made the step: what may differ between two runs.
TIMES = {"tokens_per_s", "step_s", "hidden_s", "exposed_s", "epoch"}


class Trial:
    """A folder, a Slurm and the program."""

    def __init__(self, toroid, slurm, folder, steps):
        self.toroid, self.slurm, self.folder, self.steps = toroid, slurm, pathlib.Path(folder), steps
        self.job_file = self.folder / "job.toml"
        self.job_file.write_text(JOB.format(steps=steps, data=ROOT / "torus/src"))
        self.undisturbed = None

    def longer(self, factor):
        """The same trial with a job of so many times the steps."""
        folder = self.folder / f"times-{factor}"
        folder.mkdir()
        return Trial(self.toroid, self.slurm, folder, factor * self.steps)

    def run(self, *command, check=True, timeout=120, env=None):
        done = subprocess.run([str(self.toroid), *map(str, command)], text=True, capture_output=True, timeout=timeout,
                              env=env or clean_environment(), cwd=self.folder)
        if check and done.returncode != 0:
            raise RuntimeError(f"toroid {' '.join(map(str, command))}: {done.stdout}{done.stderr}")
        return done.stdout

    def script(self, kind, *flags):
        path = self.folder / f"{kind}.sh"
        path.write_text(self.run("slurm", kind, *flags))
        return path

    def sbatch(self, script, *flags, **variables):
        # Caches of nodes go with the folder.
        env = dict(self.slurm.env, TOROID=str(self.toroid), TOROID_ROOTS=str(ROOT), TMPDIR=str(self.folder)) | variables
        done = subprocess.run(["sbatch", "--parsable", *flags, str(script)], env=env, cwd=self.folder, text=True, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def allocation(self, name, *flags, **variables):
        """Submits an allocation of nine nodes, one of them spare, whose job trains."""
        kept = self.folder / name
        script = self.script("allocation", "--job", self.job_file, "--dir", kept, "--spares", "1", "--devices", "cpu")
        return Allocation(self, kept, self.sbatch(script, *flags, **variables))

    def digest(self, store, job):
        """Of every figure of every step, and of all parameters at the end."""
        folder = store / "jobs" / job
        with open(folder / "curve.csv", newline="") as file:
            rows = [tuple(value for key, value in row.items() if key not in TIMES) for row in csv.DictReader(file)]
        assert len(rows) == self.steps, f"{len(rows)} rows of {self.steps}"
        out = folder / "final.safetensors"
        checkpoints = next(path.parent for path in folder.rglob(f"step-{self.steps}"))
        self.run("checkpoint", "export", self.steps, out, "--from", checkpoints)
        return hashlib.blake2b(repr(rows).encode() + out.read_bytes()).hexdigest()

    def check_undisturbed(self, store, job):
        if self.undisturbed is None:
            folder = self.folder / "undisturbed"
            self.run("local", "--job", self.job_file, "--dir", folder, "--no-kill", "--spares", "0", "--quiet", timeout=600)
            [name] = os.listdir(folder / "coordinator/jobs")
            self.undisturbed = self.digest(folder / "coordinator", name)
        found = self.digest(store, job)
        assert found == self.undisturbed, f"the digest is {found}, undisturbed {self.undisturbed}"
        return found[:16]


class Allocation:
    """A job of Slurm that runs deploy/slurm/allocation.sh."""

    def __init__(self, trial, kept, number):
        self.trial, self.kept, self.number = trial, kept, number

    def log(self):
        names = sorted(self.trial.folder.glob(f"toroid-{self.number}.log"))
        return names[0].read_text() if names else ""

    def toroid(self, *command, check=True):
        env = dict(clean_environment(), TOROID_CREDENTIALS=str(self.kept / "certs/user"), TOROID_COORDINATOR=self.coordinator())
        return self.trial.run(*command, check=check, env=env)

    def coordinator(self):
        return (self.kept / "coordinator").read_text().strip()

    def job(self):
        return (self.kept / "job").read_text().strip()

    def status(self):
        if not (self.kept / "job").exists() or not (self.kept / "coordinator").exists():
            return None
        text = self.toroid("status", self.job(), "-o", "json", "--no-curve", check=False)
        return json.loads(text) if text else None

    def wait(self, what, condition, limit_s=240):
        def found():
            status = self.status()
            return status if status is not None and condition(status) else None
        return wait(what, found, limit_s, look=lambda: f"{self.log()}\n{json.dumps(self.status())[:3000]}")

    def wait_for_step(self, step):
        return self.wait(f"step {step} of {self.number}", lambda status: status["committed_step"] >= step)

    def wait_for_end(self, states, limit_s=420):
        wait(f"the end of {self.number}", lambda: self.trial.slurm.job_state(self.number) in states, limit_s,
             look=lambda: f"{self.trial.slurm.job_state(self.number)}: {self.log()}")


def address_of_this_machine():
    """Nodes are different hosts, which do not meet at a loopback."""
    found = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    assert found, "this machine has no address but the loopback"
    return found[0]


def clean_environment():
    return {key: value for key, value in os.environ.items() if not key.startswith(("TOROID", "SLURM"))}


def node_of_rank(allocation, rank):
    workers = json.loads(allocation.toroid("workers", "-o", "json"))
    return next(worker["host"] for worker in workers if worker["rank"] == rank)


def test_allocation(trial):
    """A node dies with its slurmd, then another one's workers alone: the job goes on without a restart."""
    allocation = trial.allocation("allocation")
    allocation.wait_for_step(20)
    # Not the batch host, which is another part.
    victim = next(node for rank in range(7, -1, -1) if (node := node_of_rank(allocation, rank)) != "n1")
    trial.slurm.power_off(victim)
    after = allocation.wait("a spare in its place", lambda s: any(i["resolved"] for i in s["incidents"]))
    rungs = [incident["rung"] for incident in after["incidents"]]
    second = next(node for rank in range(8) if (node := node_of_rank(allocation, rank)) not in ("n1", victim))
    allocation.wait_for_step(after["committed_step"] + 10)
    kill_workers(trial, second)
    end = allocation.wait("the restarted worker in its place", lambda s: sum(i["resolved"] for i in s["incidents"]) >= 2)
    rungs = [incident["rung"] for incident in end["incidents"]]
    allocation.wait_for_end({"COMPLETED"})
    log = allocation.log()
    assert "restart 0" in log and "restart 1" not in log, log
    assert "restore" not in rungs, rungs
    digest = trial.check_undisturbed(allocation.kept / "store", allocation.job())
    trial.slurm.boot(victim)
    wait("the node's return", lambda: trial.slurm.states().get(victim) == "idle", look=trial.slurm.states)
    print(f"allocation: {victim} was killed with its slurmd, then the workers of {second}: {rungs}, digest {digest} is the undisturbed one")


def kill_workers(trial, node):
    """The workers of a node without their supervisor: what an out-of-memory killer does."""
    found = []
    for pid in trial.slurm.processes(node):
        try:
            command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except FileNotFoundError:
            continue
        if b"--die-with-parent" in command:
            found.append(pid)
    assert found, f"no worker on {node}"
    for pid in found:
        os.kill(pid, 9)


def test_limit(trial):
    """The time limit: workers leave in good order before, the Slurm job queues itself again and goes on from the saved step."""
    # Slurm looks at time limits twice a minute: the job has to last until then, on a quick machine, too.
    trial = trial.longer(4)
    allocation = trial.allocation("limit", "--time=1", "--signal=B:TERM@50")
    allocation.wait_for_step(5)
    wait("the job to be queued again", lambda: trial.slurm.job_state(allocation.number) == "PENDING",
         look=lambda: allocation.log())
    log = allocation.log()
    assert "the job is saved" in log and "queued again" in log, log
    # Slurm has it wait for two minutes.
    trial.slurm.run("scontrol", "update", f"jobid={allocation.number}", "StartTime=now", "TimeLimit=60")
    status = allocation.wait("the second start", lambda s: s["state"] == "running")
    allocation.wait_for_end({"COMPLETED"})
    assert "restart 1" in allocation.log(), allocation.log()
    # No step was made twice: it went on from the one that was saved.
    assert status["lost_steps"] == 0, status["lost_steps"]
    digest = trial.check_undisturbed(allocation.kept / "store", allocation.job())
    print(f"limit: queued again by itself, no step lost, digest {digest} is the undisturbed one")


def test_batch_host(trial):
    """The node of the script dies. Workers go on, Slurm does not start the script again; a further allocation goes on from the folder."""
    allocation = trial.allocation("batch-host")
    allocation.wait_for_step(20)
    trial.slurm.power_off("n1")
    wait("Slurm to see it", lambda: trial.slurm.states().get("n1", "").startswith("down"), look=trial.slurm.states)
    state = trial.slurm.job_state(allocation.number)
    workers = sum(b"--die-with-parent" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
                  for node in trial.slurm.nodes[1:] for pid in trial.slurm.processes(node))
    assert workers == len(trial.slurm.nodes) - 2, f"{workers} workers are left on the other nodes of the allocation"
    trial.slurm.run("scancel", allocation.number, check=False)
    wait("its end", lambda: not any(trial.slurm.processes(node) for node in trial.slurm.nodes), look=lambda: trial.slurm.run("squeue"))
    trial.slurm.boot("n1")
    wait("all nodes", lambda: set(trial.slurm.states().values()) == {"idle"}, look=trial.slurm.states)
    (allocation.kept / "coordinator").unlink()
    again = trial.allocation("batch-host")
    again.wait("its second start", lambda s: s["state"] == "running")
    again.wait_for_end({"COMPLETED"})
    digest = trial.check_undisturbed(again.kept / "store", again.job())
    print(f"batch-host: Slurm has the job as {state} with {workers} workers left; scancel and sbatch again: digest {digest} is the undisturbed one")


def test_replacement(trial):
    """Two nodes die, one more than there are spares: the job waits, and a further Slurm job brings a worker."""
    allocation = trial.allocation("replacement")
    allocation.wait_for_step(20)
    for rank in (6, 7):
        victim = next(node for r in (rank, rank - 2, rank - 4) if (node := node_of_rank(allocation, r)) != "n1")
        trial.slurm.power_off(victim)
        allocation.wait("its loss", lambda s: len(s["incidents"]) > 0)
    allocation.wait("a place without a worker", lambda s: any(not place["alive"] for place in s["places"]) and s["state"] != "running")
    before = allocation.status()["committed_step"]
    script = trial.script("array", "--dp", "1", "--pp", "1", "--tp", "1", "--spares", "0", "--waiting", "0", "--devices", "cpu")
    array = trial.sbatch(script, TOROID_COORDINATOR=allocation.coordinator(), TOROID_CREDENTIALS=str(allocation.kept / "certs/pool"),
                         TOROID_ROOTS=f"{ROOT}:{allocation.kept}")
    allocation.wait_for_end({"COMPLETED"})
    trial.slurm.run("scancel", array)
    wait("the replacement to leave", lambda: trial.slurm.job_state(array) in ("CANCELLED", "COMPLETED"), look=lambda: trial.slurm.run("squeue"))
    digest = trial.check_undisturbed(allocation.kept / "store", allocation.job())
    for node, state in trial.slurm.states().items():
        if state.startswith("down"):
            trial.slurm.boot(node)
    wait("all nodes", lambda: set(trial.slurm.states().values()) == {"idle"}, look=trial.slurm.states)
    print(f"replacement: two nodes lost with one spare, waited at step {before}, a further Slurm job took the place, digest {digest} is the undisturbed one")


def test_array(trial):
    """A coordinator elsewhere and an array of one-node jobs: a node dies, a pending task is the cold spare. A node that cannot run a worker keeps
    one task and no more."""
    store, certs = trial.folder / "array", trial.folder / "array-certs"
    env = dict(clean_environment(), TOROID_CERTS=str(certs))
    trial.run("certs", "init", env=env)
    for name, role in [("coordinator", "coordinator"), ("pool", "worker"), ("user", "operate")]:
        trial.run("certs", "issue", name, "--role", role, env=env)
    command = [str(trial.toroid), "coordinator", "--listen", f"{address_of_this_machine()}:0", "--dir", str(store), "--credentials", str(certs / "coordinator"),
               "--allow-root", str(ROOT)]
    log = open(trial.folder / "array-coordinator.log", "wb")
    coordinator = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=clean_environment(), text=True)
    try:
        address = coordinator.stdout.readline().split()[-1]
        kept = trial.folder / "array-kept"
        (kept / "certs").mkdir(parents=True)
        shutil.copytree(certs / "user", kept / "certs/user")
        (kept / "coordinator").write_text(address)
        script = trial.script("array", "--spares", "0", "--waiting", "4", "--devices", "cpu")
        roots = f"{ROOT}:{store}"
        number = trial.sbatch(script, TOROID_COORDINATOR=address, TOROID_CREDENTIALS=str(certs / "pool"), TOROID_ROOTS=roots)
        allocation = Allocation(trial, kept, number)
        (kept / "job").write_text(allocation.toroid("submit", trial.job_file).split()[-1])
        allocation.wait_for_step(20)
        victim = node_of_rank(allocation, 3)
        trial.slurm.power_off(victim)
        end = allocation.wait("a task in its place", lambda s: s["state"] == "done", 420)
        rungs = [incident["rung"] for incident in end["incidents"]]
        assert rungs and "restore" not in rungs, rungs
        digest = trial.check_undisturbed(store, allocation.job())
        trial.slurm.run("scancel", number)
        wait("the array's end", lambda: not trial.slurm.run("squeue", "-h").strip(), look=lambda: trial.slurm.run("squeue"))
        trial.slurm.boot(victim)
        wait("all nodes", lambda: set(trial.slurm.states().values()) == {"idle"}, look=trial.slurm.states)
        print(f"array: {victim} was killed, a pending task took its place: {rungs}, digest {digest} is the undisturbed one")
        bad = trial.sbatch(script, "--array=0-3%1", TOROID_COORDINATOR=address, TOROID_CREDENTIALS=str(certs / "gone"), TOROID_ROOTS=roots,
                           TOROID="/bin/false")
        path = trial.folder / f"toroid-worker-{bad}_0.log"
        wait("the complaint", lambda: path.exists() and "keeps the node" in path.read_text())
        tasks = trial.slurm.run("squeue", "-h", "-r", "-j", bad, "-o", "%T").split()
        assert sorted(tasks) == ["PENDING"] * 3 + ["RUNNING"], tasks
        trial.slurm.run("scancel", bad)
        print("array: where no worker can run, one task holds the node and the others wait")
    finally:
        coordinator.kill()
        coordinator.wait()


PARTS = {"allocation": test_allocation, "limit": test_limit, "batch-host": test_batch_host, "replacement": test_replacement, "array": test_array}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--toroid", required=True, type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    # A default is compared with the choices as a whole.
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[], metavar="PART")
    args = parser.parse_args()
    missing = is_there()
    if missing:
        sys.exit(f"{', '.join(missing)} not found; scripts/setup.sh --deploy installs Slurm")
    folder = tempfile.mkdtemp(prefix="toroid-slurm-")
    try:
        with Slurm(pathlib.Path(folder) / "slurm", 10) as slurm:
            trial = Trial(args.toroid.resolve(), slurm, folder, args.steps)
            for part in args.parts or PARTS:
                PARTS[part](trial)
    finally:
        if args.keep:
            print(f"kept in {folder}")
        else:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
