#!/usr/bin/env python3
"""Runs pods as their manifests say, without a kubelet: each in a network, process and mount namespace of its own, with the user, the read-only root,
the arguments, environment, volumes and probes that are in the rendered YAML. Then it does what happens to pods, and the job has to end as
the undisturbed one does.

    pods.py --toroid target/debug/toroid OVERLAY      OVERLAY: demo or ha; needs root

Deliberately absent: scheduling, images (image.py), storage classes, and everything else that needs a control plane.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys

from network import laboratory, run
from render import containers, find, kustomize, template
from slurm import JOB, clean_environment
from slurm_cluster import wait

ROOT = pathlib.Path(__file__).resolve().parents[2]
USER = 65532
ENDLESS = 1_000_000
# Read-only, but for what the manifest mounts. A process 1 that is killed takes its namespace with it.
ENTER = """set -e
mount --make-rprivate /
mount --bind {root} {root}
mount -t proc -o nosuid,nodev,noexec proc {root}/proc
{mounts}
mount -o remount,bind,ro {root}
cd {root}
exec setpriv --no-new-privs --bounding-set=-all,+sys_chroot,+setuid,+setgid \
    chroot --userspec={user}:{group} --groups={group} {root} /usr/bin/env -i {env} {command}
"""


class Pod:
    """A pod of a Deployment or StatefulSet: its one container, run."""

    def __init__(self, cluster, document, name, node):
        self.cluster, self.document, self.name, self.node = cluster, document, name, node
        [self.container] = containers(document)
        self.space, self.ip = cluster.network.add()
        self.log = cluster.folder / "logs" / f"{name}.log"
        self.process = None

    def start(self):
        root = self.cluster.folder / "roots" / self.name
        spec = template(self.document)
        self.cluster.make_root(root)
        mounts = []
        for mount in self.container["volumeMounts"]:
            source = self.cluster.volume(self, spec, mount["name"])
            target = root / mount["mountPath"].lstrip("/")
            target.mkdir(parents=True, exist_ok=True)
            mounts.append(f"mount --bind {source} {target}")
            if mount.get("readOnly"):
                mounts.append(f"mount -o remount,bind,ro {target}")
        for device in ["null", "urandom", "random", "zero"]:
            (root / "dev" / device).touch()
            mounts.append(f"mount --bind /dev/{device} {root}/dev/{device}")
        if not any(mount["mountPath"] == "/dev/shm" for mount in self.container["volumeMounts"]):
            # As container runtimes have it.
            mounts.append(f"mount -t tmpfs -o size=64m,mode=1777 shm {root}/dev/shm")
        self.cluster.write_hosts()
        shutil.copyfile(self.cluster.folder / "hosts", root / "etc/hosts")
        mounts.append(f"mount --bind {self.cluster.folder}/hosts {root}/etc/hosts")
        env = self.environment()
        command = [self.expand(word, env) for word in self.container["command"] + self.container["args"]]
        context = spec["securityContext"]
        script = ENTER.format(root=root, mounts="\n".join(mounts), user=context["runAsUser"], group=context["fsGroup"],
                              env=" ".join(quote(f"{key}={value}") for key, value in env.items()), command=" ".join(map(quote, command)))
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.space, "unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "sh", "-c", script],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]})
        return self

    def environment(self):
        fields = {"metadata.name": self.name, "metadata.namespace": "toroid", "status.podIP": self.ip, "spec.nodeName": self.node,
                  "metadata.labels['topology.kubernetes.io/zone']": f"zone-{self.node[-1]}"}
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOSTNAME": self.name, "HOME": "/"}
        for variable in self.container.get("env", []):
            value = variable.get("value")
            env[variable["name"]] = self.expand(value, env) if value is not None else fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        return env

    def expand(self, text, env):
        return re.sub(r"\$\((\w+)\)", lambda found: env[found.group(1)], text)

    def first(self):
        """The process that is 1 in the container, by its number outside."""
        def child():
            # `unshare` is what `ip netns exec` became; its only child is the container.
            path = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            found = path.read_text().split()
            return int(found[0]) if found else None
        return wait(f"process 1 of {self.name}", child, look=self.words)

    def children(self):
        return [int(pid) for pid in pathlib.Path(f"/proc/{self.first()}/task/{self.first()}/children").read_text().split()]

    def probe(self, which):
        """As the kubelet does, from outside of the pod."""
        probe = self.container.get(which)
        if probe is None:
            return True
        kind = "httpGet" if "httpGet" in probe else "tcpSocket"
        port = next(p["containerPort"] for p in self.container["ports"] if p["name"] == probe[kind]["port"])
        try:
            if kind == "tcpSocket":
                socket.create_connection((self.ip, port), probe.get("timeoutSeconds", 1)).close()
                return True
            return http_get(probe["httpGet"], self.ip, port, probe.get("timeoutSeconds", 1)) == 200
        except OSError:
            return False

    def wait_ready(self):
        for which in ["startupProbe", "readinessProbe", "livenessProbe"]:
            wait(f"the {which} of {self.name}", lambda: self.probe(which), look=self.words)

    def words(self):
        return self.log.read_text()[-3000:] if self.log.exists() else ""

    def delete(self):
        """`kubectl delete pod`: SIGTERM to process 1, and it has to be gone within the grace period."""
        os.kill(self.first(), signal.SIGTERM)
        grace = template(self.document)["terminationGracePeriodSeconds"]
        return wait(f"{self.name} to end within {grace} s", lambda: self.process.poll() is not None and (self.process.returncode,), grace,
                    look=self.words)[0]

    def kill(self):
        """The node lost its power."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.first(), signal.SIGKILL)
            self.process.kill()
            self.process.wait()


def http_get(get, host, port, timeout, *flags):
    """The status, as the kubelet asks: it looks at no certificate, and offers HTTP/2 and HTTP/1.1. 0: no answer."""
    url = f"{get.get('scheme', 'HTTP').lower()}://{host}:{port}{get['path']}"
    command = ["curl", "--silent", "--insecure", "--max-time", timeout, "--output", "/dev/null", "--write-out", "%{http_code}", *flags, url]
    return int(subprocess.run([str(word) for word in command], capture_output=True, text=True).stdout or 0)


def quote(text):
    return "'" + text.replace("'", "'\\''") + "'"


class Cluster:
    def __init__(self, toroid, overlay, folder, network):
        self.toroid, self.folder, self.network = toroid, pathlib.Path(folder), network
        self.documents = kustomize(ROOT / "deploy/kubernetes/overlays" / overlay)
        self.pods, self.num = {}, 0
        for name in ["logs", "roots", "volumes", "secrets"]:
            (self.folder / name).mkdir()
        # Users inside look into it.
        self.folder.chmod(0o755)

    def make_root(self, root):
        """What the image has: the program and its C library."""
        if root.exists():
            return
        for name in ["usr/local/bin", "usr/bin", "proc", "dev/shm", "etc", "tmp"]:
            (root / name).mkdir(parents=True)
        for program, target in [(self.toroid, "usr/local/bin/toroid"), (shutil.which("env"), "usr/bin/env"), (shutil.which("etcd"), "usr/local/bin/etcd")]:
            if program is None:
                continue
            os.link(self.copy_of(program), root / target)
            for library in re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", program], capture_output=True, text=True).stdout):
                (root / library.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
                if not (root / library.lstrip("/")).exists():
                    shutil.copy(library, root / library.lstrip("/"))

    def copy_of(self, program):
        """One copy for all pods."""
        copy = self.folder / pathlib.Path(program).name
        if not copy.exists():
            shutil.copy(program, copy)
        return copy

    def volume(self, pod, spec, name):
        """The folder behind a volume."""
        volume = next((v for v in spec.get("volumes", []) if v["name"] == name), None)
        if volume is None or "emptyDir" in volume:
            # A claim of the pod's own, or a folder that lives as long as the pod.
            path = self.folder / "volumes" / f"{pod.name}-{name}"
        elif "persistentVolumeClaim" in volume:
            path = self.folder / "volumes" / volume["persistentVolumeClaim"]["claimName"]
        elif "configMap" in volume:
            path = self.folder / "volumes" / volume["configMap"]["name"]
            path.mkdir(exist_ok=True)
            for key, text in find(self.documents, "ConfigMap", volume["configMap"]["name"])["data"].items():
                (path / key).write_text(text)
        else:
            path = self.folder / "volumes" / f"secret-{volume['secret']['secretName']}"
            if not path.exists():
                shutil.copytree(self.folder / "secrets" / volume["secret"]["secretName"], path)
                path.chmod(0o755)
                for file in path.iterdir():
                    os.chown(file, 0, spec["securityContext"]["fsGroup"])
                    file.chmod(volume["secret"]["defaultMode"])
            return path
        path.mkdir(exist_ok=True)
        os.chown(path, 0, spec["securityContext"]["fsGroup"])
        path.chmod(0o2775)
        return path

    def write_hosts(self):
        """Names as the cluster's DNS has them, of pods of StatefulSets. Written in place: it is mounted in the pods."""
        lines = ["127.0.0.1 localhost"]
        for pod in self.pods.values():
            if pod.document["kind"] == "StatefulSet":
                name = f"{pod.name}.{pod.document['spec']['serviceName']}"
                lines.append(f"{pod.ip} {name} {name}.toroid.svc")
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")

    def start(self, kind, name, num=None):
        document = find(self.documents, kind, name)
        started = []
        for i in range(document["spec"]["replicas"] if num is None else num):
            if kind == "StatefulSet":
                pod_name = f"{name}-{i}"
            else:
                self.num += 1
                pod_name = f"{name}-{self.num}"
            self.pods[pod_name] = Pod(self, document, pod_name, f"node-{len(self.pods)}")
            started.append(self.pods[pod_name])
        self.write_hosts()
        return [pod.start() for pod in started]

    def again(self, name):
        """The same name on another node, with another address."""
        old = self.pods[name]
        self.pods[name] = Pod(self, old.document, name, "node-99")
        self.write_hosts()
        return self.pods[name].start()

    def stop(self):
        for pod in self.pods.values():
            pod.kill()

    def coordinators(self):
        return ",".join(f"{pod.ip}:7070" for pod in self.pods.values() if pod.name.startswith("toroid-coordinator"))

    def toroid_run(self, *command, check=True):
        env = dict(clean_environment(), TOROID_CREDENTIALS=str(self.folder / "certs/alice"), TOROID_COORDINATOR=self.coordinators())
        done = subprocess.run([str(self.toroid), *map(str, command)], text=True, capture_output=True, timeout=120, env=env)
        if check and done.returncode != 0:
            raise RuntimeError(f"toroid {' '.join(map(str, command))}: {done.stdout}{done.stderr}")
        return done.stdout

    def make_secrets(self):
        """As the guide says."""
        certs = self.folder / "certs"
        env = dict(clean_environment(), TOROID_CERTS=str(certs))
        names = ["toroid-etcd"] + [f"toroid-etcd-{i}.toroid-etcd" for i in range(3)]
        hosts = [word for name in names for word in ("--host", name)]
        run(self.toroid, "certs", "init", "--cluster", "lab", env=env)
        for name, role, more in [("coordinator", "coordinator", ["--host", "toroid-coordinator"]), ("pool", "worker", []), ("alice", "operate", []),
                                 ("etcd", "coordinator", hosts), ("etcd-client", "coordinator", [])]:
            run(self.toroid, "certs", "issue", name, "--role", role, *more, env=env)
        for secret, name in [("toroid-coordinator", "coordinator"), ("toroid-worker", "pool"), ("toroid-etcd", "etcd"), ("toroid-etcd-client", "etcd-client")]:
            (self.folder / "secrets" / secret).mkdir()
            for file in ["ca.pem", "cert.pem", "key.pem"]:
                shutil.copy(certs / name / file, self.folder / "secrets" / secret / file)

    def status(self, job):
        text = self.toroid_run("status", job, "-o", "json", "--no-curve", check=False)
        return json.loads(text) if text else None

    def wait_for(self, job, what, condition, limit_s=240):
        def found():
            status = self.status(job)
            return status if status is not None and condition(status) else None
        return wait(what, found, limit_s, look=lambda: json.dumps(self.status(job))[:2000])

    def of_rank(self, rank):
        """The pod of a place, by its address."""
        workers = json.loads(self.toroid_run("workers", "-o", "json"))
        node = next(worker["host"] for worker in workers if worker["rank"] == rank)
        return next(pod for pod in self.pods.values() if pod.node == node)


def is_calm(status):
    return status["state"] == "running" and all(p["alive"] for p in status["places"]) and all(i["resolved"] for i in status["incidents"])


def num_incidents(num):
    return lambda status: len(status["incidents"]) >= num and is_calm(status)


def digest(toroid, folder, steps):
    """Of the losses of all steps and all parameters."""
    curve = next(folder.rglob("curve.csv"))
    rows = [line.split(",")[:7] for line in curve.read_text().splitlines()[1:]][:steps]
    assert len(rows) == steps, f"{len(rows)} rows of {steps}"
    checkpoints = next(path.parent for path in folder.rglob(f"step-{steps}"))
    out = folder / "final.safetensors"
    run(toroid, "checkpoint", "export", steps, out, "--from", checkpoints, env=clean_environment())
    return hashlib.blake2b(repr(rows).encode() + out.read_bytes()).hexdigest()[:16]


def finish(cluster, job, end, found, text):
    """Ends a job that has seen enough at its next checkpoint, and all processes by `end`, which gives their exit codes. Returns the digest of the job,
    which has to be that of the undisturbed run, and its steps. `found`: the folder of its checkpoints, and where below the cluster's folder curves
    are, of which the longest counts. `text`: the job file for so many steps."""
    checkpoints, curves = found
    last = cluster.status(job)["committed_step"]
    status = cluster.wait_for(job, "another checkpoint", lambda s: any(c["step"] > last for c in s["checkpoints"]))
    steps = min(c["step"] for c in status["checkpoints"] if c["step"] > last)
    assert status["lost_steps"] == 0 and status["state"] == "running", status
    cluster.toroid_run("cancel", job)
    codes = end()
    assert not any(codes.values()), codes
    kept, local, file = (cluster.folder / name for name in ["found", "undisturbed", "undisturbed.toml"])
    kept.mkdir()
    shutil.copytree(checkpoints, kept / "checkpoints")
    shutil.copy(max(cluster.folder.glob(curves), key=lambda path: path.stat().st_size), kept / "curve.csv")
    file.write_text(text(steps))
    run(cluster.toroid, "local", "--job", file, "--dir", local, "--no-kill", "--spares", "0", "--quiet", env=clean_environment())
    got, expected = digest(cluster.toroid, kept, steps), digest(cluster.toroid, local, steps)
    assert got == expected, f"digest {got}, undisturbed {expected}"
    return got, steps


def trial(toroid, overlay, folder, network):
    cluster = Cluster(toroid, overlay, folder, network)
    cluster.make_secrets()
    try:
        if overlay != "demo":
            for pod in cluster.start("StatefulSet", "toroid-etcd"):
                pod.wait_ready()
        coordinators = cluster.start("StatefulSet", "toroid-coordinator")
        workers = cluster.start("Deployment", "toroid-worker")
        for pod in coordinators + workers:
            pod.wait_ready()
        print(f"{overlay}: {len(cluster.pods)} pods pass their probes, as user {USER} on a read-only root")
        shared = cluster.folder / "volumes/toroid-shared"
        shutil.copytree(ROOT / "torus/src", shared / "data")
        job_file = cluster.folder / "job.toml"
        # More than anybody waits for: it is ended when it has seen enough.
        text = JOB.format(steps=ENDLESS, data="/shared/data").replace("[checkpoint]\n", '[checkpoint]\npath = "/shared/checkpoints"\n')
        job_file.write_text(text)
        job = cluster.toroid_run("submit", job_file).split()[-1]
        cluster.wait_for(job, "step 5", lambda s: s["committed_step"] >= 5)

        leaves = cluster.of_rank(3)
        code = leaves.delete()
        assert code == 0, f"{leaves.name} ended with {code}: {leaves.words()}"
        cluster.start("Deployment", "toroid-worker", 1)
        status = cluster.wait_for(job, "its place to be moved", num_incidents(1))
        assert status["incidents"][0]["rung"] == "drain", status["incidents"]
        print(f"{overlay}: SIGTERM moved the place of {leaves.name}, it ended with 0 within its grace period")

        killed = cluster.of_rank(5)
        [child] = killed.children()
        first = killed.first()
        os.kill(child, signal.SIGKILL)
        wait("another worker in the same pod", lambda: killed.children() not in ([], [child]), look=killed.words)
        assert killed.first() == first and killed.process.poll() is None
        status = cluster.wait_for(job, "its place to be taken", num_incidents(2))
        killed.wait_ready()
        print(f"{overlay}: SIGKILL of a worker: started again in place, rung {status['incidents'][1]['rung']}")

        lost = cluster.of_rank(6)
        lost.kill()
        cluster.wait_for(job, "its place to be taken", num_incidents(3))
        [new] = cluster.start("Deployment", "toroid-worker", 1)
        new.wait_ready()
        print(f"{overlay}: a node lost its power, a spare has its place")

        leader = coordinators[0]
        if overlay != "demo":
            leader = next(c for c in coordinators if leads(cluster, c))
        before = cluster.status(job)["committed_step"]
        leader.kill()
        alive = [pod for pod in cluster.pods.values() if pod.name.startswith("toroid-worker") and pod.process.poll() is None]
        unready = [pod.name for pod in alive if not (pod.probe("readinessProbe") and pod.probe("livenessProbe"))]
        assert not unready, f"without a coordinator probes fail: {unready}"
        cluster.again(leader.name).wait_ready()
        cluster.wait_for(job, "steps with the coordinator under its new address", lambda s: s["committed_step"] > before and is_calm(s))
        assert all(pod.process.poll() is None for pod in alive)
        print(f"{overlay}: the coordinator that led was killed and came back as {cluster.pods[leader.name].ip} instead of {leader.ip}; no worker ended")

        found, steps = finish(
            cluster, job, lambda: {pod.name: pod.delete() for pod in cluster.pods.values() if pod.process.poll() is None},
            (shared / "checkpoints", "volumes/toroid-coordinator-*-store/jobs/*/curve.csv"),
            lambda steps: JOB.format(steps=steps, data=shared / "data"))
        print(f"{overlay}: all pods ended with 0 on SIGTERM; digest {found} of {steps} steps is the undisturbed one")
    finally:
        cluster.stop()


def leads(cluster, pod):
    """A standby answers with 503 and names the leader."""
    alice = cluster.folder / "certs/alice"
    get = {"scheme": "HTTPS", "path": "/api/jobs"}
    return http_get(get, pod.ip, 7070, 5, "--cert", alice / "cert.pem", "--key", alice / "key.pem") == 200


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--toroid", required=True, type=pathlib.Path)
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    parser.add_argument("overlays", nargs="+", metavar="OVERLAY")
    args = parser.parse_args()
    for overlay in args.overlays:
        with laboratory("pods", args.keep) as (folder, network):
            trial(args.toroid.resolve(), overlay, folder, network)


if __name__ == "__main__":
    sys.exit(main())
