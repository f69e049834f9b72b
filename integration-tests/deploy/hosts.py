#!/usr/bin/env python3
"""Eight hosts with a worker each, and a ninth with the coordinator: what happens to cables, names and addresses of hosts, and the job has to end as
the undisturbed one does.

    hosts.py --toroid target/debug/toroid FAMILY...      FAMILY: 4 or 6, the only one that hosts have; needs root, ip, tc and nft

Every host has an address of its own, and besides the bridge of a container engine with the same address on all of them. What they know each other by is
a file of names, which changes.
"""

import argparse
import json
import pathlib
import signal
import subprocess
import sys

from network import laboratory, run
from pods import finish, is_calm, num_incidents
from slurm import JOB, clean_environment
from slurm_cluster import wait

ROOT = pathlib.Path(__file__).resolve().parents[2]
NUM_HOSTS = 8
# Six places: two hosts are spare. Whoever goes on with fewer replicas has sums in another order.
# `min_dp` as well.
SHAPE = {"tp = 2": "tp = 1", "dp = 2": "dp = 3", "global = 16": "global = 12"}
# More than anybody waits for: it is ended when it has seen enough.
ENDLESS = 1_000_000
# The default: a worker does not know it when it dials, and takes so long to see that a coordinator is silent.
FAILURE_TIMEOUT_MS = 5000


def job_text(steps, data, more=""):
    text = JOB.format(steps=steps, data=data).replace('"slurm"', '"hosts"')
    for before, after in SHAPE.items():
        assert before in text, before
        text = text.replace(before, after)
    return text.replace("[checkpoint]\n", f"[checkpoint]\n{more}")


class Host:
    def __init__(self, cluster, name):
        self.cluster, self.name = cluster, name
        self.space, self.ip = cluster.network.add()
        cluster.network.add_bridge_of_containers(self.space)
        self.process = None
        self.log = cluster.folder / "logs" / f"{name}.log"

    def at(self, port):
        return f"[{self.ip}]:{port}" if ":" in self.ip else f"{self.ip}:{port}"

    def start(self, *command):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.space, str(self.cluster.toroid), *map(str, command)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=clean_environment())
        return self

    def worker(self, *more):
        certs = self.cluster.folder / "certs/pool"
        return self.start("worker", "--coordinator", "coordinator:7070", "--credentials", certs, "--host", self.name, "--id", f"{self.name}-worker",
                          "--device", "cpu", "--threads", 1, "--cache", self.cluster.folder / "cache" / self.name, "--allow-root", "/", *more)

    def coordinator(self, *more):
        certs = self.cluster.folder / "certs/coordinator"
        return self.start("coordinator", "--dir", self.cluster.folder / "store", "--credentials", certs, "--allow-root", "/",
                          "--heartbeat-interval-ms", FAILURE_TIMEOUT_MS // 5, "--failure-timeout-ms", FAILURE_TIMEOUT_MS, *more)

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def end(self):
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def words(self):
        return self.log.read_text()[-3000:] if self.log.exists() else ""


class Cluster:
    def __init__(self, toroid, folder, network):
        self.toroid, self.folder, self.network = toroid, pathlib.Path(folder), network
        self.hosts = {}
        self.leader = None
        # Other names of hosts, with their addresses.
        self.aliases = []
        for name in ["logs", "cache", "store"]:
            (self.folder / name).mkdir()
        env = dict(clean_environment(), TOROID_CERTS=str(self.folder / "certs"))
        run(toroid, "certs", "init", "--cluster", "lab", env=env)
        for name, role in [("coordinator", "coordinator"), ("pool", "worker"), ("alice", "operate")]:
            run(toroid, "certs", "issue", name, "--role", role, env=env)

    def add(self, name):
        self.hosts[name] = Host(self, name)
        self.write_names()
        return self.hosts[name]

    def lead(self, host):
        """From now on the name `coordinator` is this host's, everywhere."""
        self.leader = host
        self.write_names()

    def write_names(self):
        coordinator = []
        if self.leader is not None:
            # Of both families, of which the hosts have one. The one that they have not comes first.
            other = "2001:db8::1" if self.network.network.version == 4 else "192.0.2.1"
            coordinator = [("coordinator", other), ("coordinator", self.leader.ip)]
        for host in self.hosts.values():
            # As Debian has it: a host's own name is the loopback for itself, and for nobody else.
            names = [(other.name, "127.0.1.1" if other is host else other.ip) for other in self.hosts.values()]
            self.network.names(host.space, names + self.aliases + coordinator)

    def toroid_run(self, *command, check=True):
        env = dict(clean_environment(), TOROID_CREDENTIALS=str(self.folder / "certs/alice"), TOROID_COORDINATOR=self.leader.at(7070))
        done = subprocess.run([str(self.toroid), *map(str, command)], text=True, capture_output=True, timeout=120, env=env)
        if check and done.returncode != 0:
            raise RuntimeError(f"toroid {' '.join(map(str, command))}: {done.stdout}{done.stderr}")
        return done.stdout

    def status(self, job):
        text = self.toroid_run("status", job, "-o", "json", "--no-curve", check=False)
        return json.loads(text) if text else None

    def wait_for(self, job, what, condition, limit_s=240):
        def found():
            status = self.status(job)
            return status if status is not None and condition(status) else None
        return wait(what, found, limit_s, look=lambda: json.dumps(self.status(job))[:2000])

    def workers(self):
        text = self.toroid_run("workers", "-o", "json", check=False)
        return {worker["host"]: worker for worker in json.loads(text)} if text else {}

    def wait_for_workers(self, what, condition, limit_s=120):
        def found():
            workers = self.workers()
            return workers if condition(workers) else None
        return wait(what, found, limit_s, look=lambda: json.dumps(self.workers())[:3000])

    def of_rank(self, rank):
        return self.hosts[next(host for host, worker in self.workers().items() if worker["rank"] == rank)]

    def stop(self):
        for host in self.hosts.values():
            host.kill()


def is_spare(workers, host):
    return host.name in workers and workers[host.name]["rank"] < 0 and workers[host.name]["state"] == "spare"


def trial(toroid, family, folder, network):
    cluster = Cluster(toroid, folder, network)
    try:
        names_that_come_late(cluster, family)
        job = begin(cluster, family)
        unplugged(cluster, family, job)
        slow_and_lossy(cluster, family, job)
        coordinator_elsewhere(cluster, family, job)
        end(cluster, family, job)
    finally:
        cluster.stop()


def names_that_come_late(cluster, family):
    workers = [cluster.add(f"host-{n}") for n in range(1, NUM_HOSTS + 1)]
    anywhere = "0.0.0.0" if family == 4 else "[::]"
    for host in workers[:-2]:
        host.worker()
    # Two are told what they are dialled at, and need no way to the coordinator for that: one by another name and address of its host, one by its network.
    cluster.aliases.append(("outside", cluster.network.add_another_address(workers[-2].space)))
    cluster.write_names()
    workers[-2].worker("--listen", f"{anywhere}:7071", "--advertise", "outside:7071")
    workers[-1].worker("--interface", str(cluster.network.network))
    for host in workers[:-2]:
        wait(f"{host.name} to wait for the name", lambda: "no way to a coordinator yet" in host.words(), look=host.words)
    print(f"IPv{family}: {NUM_HOSTS} workers are started, and those that are told nothing wait: `coordinator` has no address yet")
    first = cluster.add("control-1")
    first.coordinator("--listen", f"{anywhere}:7070", "--interface", "eth0")
    wait("the coordinator to listen", lambda: "listens on" in first.words(), look=first.words)
    cluster.lead(first)
    found = cluster.wait_for_workers("all workers", lambda workers: len(workers) == NUM_HOSTS)
    assert all(worker["state"] == "spare" for worker in found.values()), found
    print(f"IPv{family}: the name has an address, {len(found)} workers are there; each host has 172.17.0.1 besides, and nobody is dialled at it")


def begin(cluster, family):
    file = cluster.folder / "job.toml"
    file.write_text(job_text(ENDLESS, ROOT / "torus/src", f'path = "{cluster.folder}/checkpoints"\n'))
    job = cluster.toroid_run("submit", file).split()[-1]
    # Links are told with a heartbeat.
    status = cluster.wait_for(job, "step 5", lambda s: s["committed_step"] >= 5 and all(place["links"] for place in s["places"]))
    kinds = {kind for place in status["places"] for kind in place["links"]}
    assert kinds == {"tls"}, f"places on hosts of their own have links of {kinds}"
    assert not status["incidents"], status["incidents"]

    # The address of a bridge is on every host, so that whoever dials it dials itself: it is found, and has no place.
    wrong = cluster.add("wrong")
    wrong.worker("--interface", "docker0")
    found = cluster.wait_for_workers("the address of a bridge to be found", lambda w: "wrong" in w and w["wrong"]["warm_up"] == "failed")
    reason = found["wrong"]["warm_up_reason"]
    assert "172.17.0.1" in reason, reason
    print(f"IPv{family}: a worker at the address of its bridge has no place: {reason}")
    assert wrong.end() == 0
    return job


def unplugged(cluster, family, job):
    host = cluster.of_rank(2)
    cluster.network.unplug(host.space)
    status = cluster.wait_for(job, "its place to be taken", num_incidents(1))
    [incident] = status["incidents"]
    assert incident["rung"] == "spare" and f"{host.name}-worker" in incident["workers"], incident
    cluster.network.plug_in(host.space)
    cluster.wait_for_workers("it to come back as a spare", lambda workers: is_spare(workers, host))
    assert host.process.poll() is None, host.words()
    seconds = incident["detect_s"] + incident["total_s"]
    print(f"IPv{family}: a host was unplugged: seen by {incident['seen_by']}, a spare had its place, {seconds:.1f} s in all; it came back as a spare")


def slow_and_lossy(cluster, family, job):
    before = cluster.status(job)
    slow, lossy = cluster.of_rank(1), cluster.of_rank(4)
    cluster.network.slow(slow.space, "20mbit")
    cluster.network.lose(lossy.space, 5)
    goal = before["committed_step"] + 40
    during = cluster.wait_for(job, "40 steps over a slow cable and one that loses packets", lambda s: s["committed_step"] >= goal and is_calm(s))
    cluster.network.mend(slow.space)
    cluster.network.mend(lossy.space)
    num = len(during["incidents"]) - len(before["incidents"])
    print(f"IPv{family}: one host at 20 Mbit/s, another loses 5% of all packets: 40 steps went on, {num} incidents, no step lost")
    assert during["lost_steps"] == 0, during


def coordinator_elsewhere(cluster, family, job):
    """Its node is gone for good; its folder is on a volume that another node takes."""
    old, before = cluster.leader, cluster.status(job)["committed_step"]
    num = len(cluster.status(job)["incidents"])
    # Its power goes: nobody is told by a closed connection.
    cluster.network.unplug(old.space)
    old.kill()
    new = cluster.add("control-2")
    new.coordinator("--listen", new.at(7070))
    cluster.lead(new)
    status = cluster.wait_for(job, "steps under the new address", lambda s: s["committed_step"] > before + 5 and is_calm(s))
    assert len(status["incidents"]) == num and all(host.process.poll() is None for host in cluster.hosts.values() if host.name.startswith("host-"))
    print(f"IPv{family}: the coordinator's host lost its power, and another has its name and folder, at {new.ip} instead of {old.ip}; no worker ended, no incident")


def end(cluster, family, job):
    got, steps = finish(
        cluster, job, lambda: {host.name: host.end() for host in cluster.hosts.values() if host.process is not None and host.process.poll() is None},
        (cluster.folder / "checkpoints", "store/**/curve.csv"), lambda steps: job_text(steps, ROOT / "torus/src"))
    print(f"IPv{family}: all processes ended with 0 on SIGTERM; digest {got} of {steps} steps is the undisturbed one")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--toroid", required=True, type=pathlib.Path)
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    parser.add_argument("families", nargs="+", type=int, choices=[4, 6], metavar="FAMILY")
    args = parser.parse_args()
    for family in args.families:
        with laboratory("hosts", args.keep, family) as (folder, network):
            trial(args.toroid.resolve(), family, folder, network)


if __name__ == "__main__":
    sys.exit(main())
