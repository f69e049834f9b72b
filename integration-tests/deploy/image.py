#!/usr/bin/env python3
"""Builds the image of deploy/Dockerfile and runs it as the manifests say: the user, the read-only root, no capability, the probe of the coordinator,
and SIGTERM.

    image.py --toroid target/debug/toroid [--base IMAGE]      needs podman; without --base a base is made of this machine's C library
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import tempfile

from pods import http_get
from render import containers, find, kustomize, template
from slurm_cluster import free_ports, wait

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Where there is no systemd, and no crun that works.
CONF = """[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
TAG = "localhost/toroid-test"
BASE = "localhost/toroid-test-base"


class Podman:
    def __init__(self, folder):
        conf = pathlib.Path(folder) / "containers.conf"
        conf.write_text(CONF)
        self.env = dict(os.environ, CONTAINERS_CONF=str(conf))

    def run(self, *command, check=True, **options):
        done = subprocess.run(["podman", *map(str, command)], env=self.env, text=True, capture_output=True, timeout=600, **options)
        assert not check or done.returncode == 0, f"podman {' '.join(map(str, command))}: {done.stderr}"
        return (done.stdout + (done.stderr if command[0] == "logs" else "")).strip()


def make_base(podman, toroid, folder):
    """What an image for programs in C has: a C library and the certificates of public CAs."""
    path = folder / "base.tar"
    libraries = re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", toroid], capture_output=True, text=True).stdout)
    with tarfile.open(path, "w", dereference=True) as tar:
        for library in libraries:
            tar.add(library)
        if os.path.exists("/etc/ssl/certs/ca-certificates.crt"):
            tar.add("/etc/ssl/certs/ca-certificates.crt")
    podman.run("import", path, BASE)
    return BASE


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--toroid", required=True, type=pathlib.Path)
    parser.add_argument("--base")
    args = parser.parse_args()
    toroid = args.toroid.resolve()
    with tempfile.TemporaryDirectory(prefix="toroid-image-") as folder:
        folder = pathlib.Path(folder)
        podman = Podman(folder)
        context = folder / "context"
        context.mkdir()
        subprocess.run(["strip", "-o", context / "toroid", toroid], check=True)
        base = args.base or make_base(podman, toroid, folder)
        podman.run("build", "-f", ROOT / "deploy/Dockerfile", "-t", TAG, "--build-arg", f"BASE={base}", "--build-arg", "SOURCE=prebuilt", context)
        [image] = json.loads(podman.run("image", "inspect", TAG))
        config = image["Config"]
        assert config["User"] == "65532:65532" and config["Entrypoint"] == ["/usr/local/bin/toroid"], config
        print(f"image: {image['Size'] >> 20} MiB with a debug program, user {config['User']}")
        check_coordinator(podman, toroid, folder)
        podman.run("rmi", "-f", TAG)
        if not args.base:
            podman.run("rmi", "-f", BASE)


def check_coordinator(podman, toroid, folder):
    document = find(kustomize(ROOT / "deploy/kubernetes/overlays/demo"), "StatefulSet", "toroid-coordinator")
    [container] = containers(document)
    context, own = template(document)["securityContext"], container["securityContext"]
    group = context["fsGroup"]
    env = dict(os.environ, TOROID_CERTS=str(folder / "certs"))
    for command in [["init"], ["issue", "coordinator", "--role", "coordinator"]]:
        subprocess.run([toroid, "certs", *command], check=True, env=env, capture_output=True)
    volumes = []
    for mount in container["volumeMounts"]:
        path = folder / mount["name"]
        if mount["name"] == "tls":
            shutil.copytree(folder / "certs/coordinator", path)
            path.chmod(0o755)
            for file in path.iterdir():
                os.chown(file, 0, group)
                file.chmod(0o440)
        else:
            path.mkdir()
            os.chown(path, 0, group)
            path.chmod(0o2775)
        volumes += ["-v", f"{path}:{mount['mountPath']}" + (":ro" if mount.get("readOnly") else "")]
    folder.chmod(0o755)
    [port] = free_ports(1)
    words = [word.replace("$(POD_NAME)", "toroid-coordinator-0").replace("$(POD_NAMESPACE)", "toroid") for word in container["args"]]
    flags = ["--user", f"{context['runAsUser']}:{context['runAsGroup']}", "--group-add", str(group), "--security-opt", "no-new-privileges"]
    flags += ["--read-only", "--read-only-tmpfs=false"] if own["readOnlyRootFilesystem"] else []
    flags += [word for capability in own["capabilities"]["drop"] for word in ("--cap-drop", capability)]
    name = podman.run("run", "-d", "-p", f"127.0.0.1:{port}:7070", *flags, *volumes, "--entrypoint", json.dumps(container["command"]), TAG, *words)
    try:
        wait("the readiness probe", lambda: http_get(container["readinessProbe"]["httpGet"], "127.0.0.1", port, 5) == 200,
             look=lambda: podman.run("logs", name, check=False))
        status = pathlib.Path(f"/proc/{podman.run('inspect', '-f', '{{.State.Pid}}', name)}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["Uid"].split()[0] == str(context["runAsUser"]) and int(fields["CapEff"], 16) == 0 and fields["NoNewPrivs"] == "1", status
        podman.run("stop", "-t", template(document)["terminationGracePeriodSeconds"], name)
        code = podman.run("inspect", "-f", "{{.State.ExitCode}}", name)
        assert code == "0", f"exit code {code}: {podman.run('logs', name, check=False)}"
        print("image: the coordinator passes its probe on a read-only root without capabilities, and ends with 0 on SIGTERM")
    finally:
        podman.run("rm", "-f", name)


if __name__ == "__main__":
    main()
