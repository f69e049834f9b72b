#!/usr/bin/env python3
"""Renders every overlay and the Helm chart, and checks what comes out: against the schemas of Kubernetes, where a field that there is not is an
error, and against what docs/kubernetes.md promises.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
OVERLAYS = sorted(path.parent for path in (ROOT / "deploy/kubernetes/overlays").glob("*/kustomization.yaml"))
CHART = ROOT / "deploy/helm/toroid"
# The oldest in support when this was written, and the newest that the validator knows.
VERSIONS = ["1.33", "1.36"]
# Kinds of other projects, whose schemas Kubernetes has not: their fields as far as they are used here, `...` is anything.
FOREIGN = {
    ("kueue.x-k8s.io/v1beta1", "ResourceFlavor"): {"nodeLabels": ...},
    ("kueue.x-k8s.io/v1beta1", "ClusterQueue"): {
        "namespaceSelector": ...,
        "resourceGroups": [{"coveredResources": ..., "flavors": [{"name": ..., "resources": [{"name": ..., "nominalQuota": ...}]}]}],
    },
    ("kueue.x-k8s.io/v1beta1", "LocalQueue"): {"clusterQueue": ...},
    ("monitoring.coreos.com/v1", "ServiceMonitor"): {
        "selector": ..., "namespaceSelector": ...,
        "endpoints": [{"port": ..., "path": ..., "scheme": ..., "interval": ...,
                       "tlsConfig": {"ca": ..., "cert": ..., "keySecret": ..., "serverName": ...}}],
    },
}


def documents(text):
    return [document for document in yaml.safe_load_all(text) if document]


def kustomize(folder):
    """What `kubectl apply -k` would apply."""
    command = [program("kubectl"), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode != 0 or done.stderr.strip():
        raise AssertionError(f"{' '.join(command)}: {done.stderr}")
    return documents(done.stdout)


def program(name):
    """Those of the virtual environment that `make test` makes, which are of one version everywhere."""
    own = pathlib.Path(sys.executable).with_name(name)
    found = str(own) if own.exists() else shutil.which(name)
    assert found, f"there is no {name}; run scripts/setup.sh"
    return found


def helm(*values):
    command = [program("helm"), "template", "toroid", str(CHART), "--namespace", "toroid", *values]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return documents(done.stdout)


def name_of(document):
    return f"{document['kind']}/{document['metadata']['name']}"


def unknown(value, known, where):
    """Fields that nobody has said there are."""
    if known is ...:
        return []
    if isinstance(known, list):
        return [found for i, one in enumerate(value) for found in unknown(one, known[0], f"{where}[{i}]")]
    missing = [f"{where}.{key} is not known" for key in value if key not in known]
    return missing + [found for key in value if key in known for found in unknown(value[key], known[key], f"{where}.{key}")]


def validate(document):
    foreign = FOREIGN.get((document["apiVersion"], document["kind"]))
    if foreign is not None:
        found = unknown(document["spec"], foreign, f"{name_of(document)}.spec")
        assert not found, found
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except Exception as error:
            raise AssertionError(f"{name_of(document)} is not valid in Kubernetes {version}: {error}") from error


def template(document):
    return document["spec"]["template"]["spec"]


def containers(document):
    return template(document)["containers"] + template(document).get("initContainers", [])


def check_pods(documents):
    """What holds for every pod, whoever made the overlay."""
    accounts = {d["metadata"]["name"] for d in documents if d["kind"] == "ServiceAccount"}
    for kind in ["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"]:
        assert not [d for d in documents if d["kind"] == kind], f"{kind}: nothing here has rights in Kubernetes"
    budgets = [d for d in documents if d["kind"] == "PodDisruptionBudget"]
    policies = [d for d in documents if d["kind"] == "NetworkPolicy"]
    of_pods = [d for d in documents if d["kind"] in ("Deployment", "StatefulSet")]
    assert of_pods
    for document in of_pods:
        where, pod = name_of(document), template(document)
        labels = document["spec"]["template"]["metadata"]["labels"]
        for selected in [document["spec"]["selector"]["matchLabels"]]:
            assert selected.items() <= labels.items(), f"{where}: its selector does not select its pods"
        assert pod["serviceAccountName"] in accounts and pod["automountServiceAccountToken"] is False, where
        context = pod["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] > 0 and context["seccompProfile"]["type"] == "RuntimeDefault", where
        tolerated = {t["key"]: t.get("tolerationSeconds") for t in pod["tolerations"]}
        for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]:
            assert tolerated[key] == 30, f"{where}: {key} is tolerated for {tolerated[key]} s"
        for container in containers(document):
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] and not own["allowPrivilegeEscalation"] and own["capabilities"]["drop"] == ["ALL"], where
            assert "preStop" not in container.get("lifecycle", {}), f"{where}: a preStop hook takes of the grace period"
            assert container["resources"]["requests"]["cpu"] and container["resources"]["limits"]["memory"], where
            assert re.search(r":[0-9]", container["image"]), f"{where}: {container['image']} names no version"
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            claimed = {claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", [])}
            there = {volume["name"] for volume in pod.get("volumes", [])} | claimed
            assert mounted == there, f"{where}: volumes {sorted(there)}, mounted {sorted(mounted)}"
            ports = {port["name"] for port in container["ports"]}
            for probe in ["startupProbe", "readinessProbe", "livenessProbe"]:
                port = next((p["port"] for how, p in container.get(probe, {}).items() if how in ("httpGet", "tcpSocket")), None)
                assert port is None or port in ports, f"{where}: {probe} asks at {port}"
        for volume in pod.get("volumes", []):
            if "secret" in volume:
                assert volume["secret"]["defaultMode"] == 0o440, f"{where}: {volume['name']}: others may read the key"
        budget = [b for b in budgets if b["spec"]["selector"]["matchLabels"].items() <= labels.items()]
        assert len(budget) == 1, f"{where}: {len(budget)} budgets"
        assert budget[0]["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow", where
        policy = [p for p in policies if p["spec"]["podSelector"]["matchLabels"].items() <= labels.items()]
        assert len(policy) == 1 and sorted(policy[0]["spec"]["policyTypes"]) == ["Egress", "Ingress"], where


def find(documents, kind, name):
    found = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} of {kind}/{name}"
    return found[0]


def check_roles(documents, num_coordinators):
    worker, coordinator = find(documents, "Deployment", "toroid-worker"), find(documents, "StatefulSet", "toroid-coordinator")
    assert worker["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    [container] = containers(worker)
    assert "--restart" in container["args"] and "livenessProbe" not in container
    assert coordinator["spec"]["podManagementPolicy"] == "Parallel" and coordinator["spec"]["replicas"] == num_coordinators
    headless = find(documents, "Service", coordinator["spec"]["serviceName"])
    assert headless["spec"]["clusterIP"] == "None" and headless["spec"]["publishNotReadyAddresses"]
    named = next(e["value"] for e in container["env"] if e["name"] == "TOROID_COORDINATOR").split(",")
    expected = [f"toroid-coordinator-{i}.{headless['metadata']['name']}:7070" for i in range(num_coordinators)]
    assert named == expected, f"workers look for {named}"
    # Whoever the network lets through reaches the ports that the program is told to use.
    devices = next((a.split("=")[1].split(",") for a in container["args"] if a.startswith("--devices=")), [None])
    policy = find(documents, "NetworkPolicy", "toroid-worker")["spec"]["ingress"][0]["ports"][0]
    assert policy["port"] == 7071 and policy["endPort"] >= 7070 + len(devices)
    assert [p["containerPort"] for p in container["ports"]] == [7071 + i for i in range(len(devices))]
    gpus = container["resources"]["limits"].get("nvidia.com/gpu")
    assert (gpus is None) == (devices == [None]) and int(gpus or 1) == len(devices)


def check_all(documents, num_coordinators):
    for document in documents:
        validate(document)
    check_pods(documents)
    check_roles(documents, num_coordinators)


def shape(document):
    """What a container is run with, to be compared."""
    keep = ["args", "command", "env", "envFrom", "ports", "startupProbe", "readinessProbe", "livenessProbe", "securityContext"]
    return [{key: container.get(key) for key in keep} for container in containers(document)]


def check_kustomize():
    for overlay in OVERLAYS:
        found = kustomize(overlay)
        check_all(found, 1 if overlay.name == "demo" else 3)
        assert all(d["metadata"].get("namespace") == "toroid" for d in found
                   if d["kind"] not in ("Namespace", "ClusterQueue", "ResourceFlavor")), overlay.name
        print(f"{overlay.name}: {len(found)} objects are valid in Kubernetes {' and '.join(VERSIONS)}")
    for document in documents((ROOT / "deploy/kubernetes/components/monitoring/servicemonitor.yaml").read_text()):
        validate(document)


def with_component(name, overlay):
    """The overlay as a user has it who adds a component."""
    with tempfile.TemporaryDirectory(dir=ROOT / "deploy/kubernetes/overlays") as folder:
        text = f"apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: toroid\nresources: [../{overlay}]\n"
        pathlib.Path(folder, "kustomization.yaml").write_text(f"{text}components: [../../components/{name}]\n")
        return kustomize(folder)


def check_object_store():
    found, chart = with_component("object-store", "demo"), helm("--set", "worker.args={--threads=1}", "--set", "objectStore.secret=toroid-object-store")
    check_all(found, 1)
    check_all(chart, 1)
    for kind, name in [("StatefulSet", "toroid-coordinator"), ("Deployment", "toroid-worker")]:
        ours, theirs = find(chart, kind, name), find(found, kind, name)
        assert shape(ours) == shape(theirs), f"{kind}/{name} of the chart differs from the component's"
        [container] = containers(theirs)
        assert container["envFrom"] == [{"secretRef": {"name": "toroid-object-store"}}], name
        assert "--allow-root=$(TOROID_OBJECT_STORE)" in container["args"], name
        for documents in [found, chart]:
            ports = [port["port"] for rule in find(documents, "NetworkPolicy", name)["spec"]["egress"] for port in rule["ports"]]
            assert 443 in ports, f"{name} may not reach a store"
    role = "arn:aws:iam::123456789012:role/toroid"
    for account in [d for d in helm("--set", f"objectStore.roleArn={role}") if d["kind"] == "ServiceAccount"]:
        assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": role}
    print("object store: the component and the chart are the same pods")


def check_validator():
    """It must be able to complain."""
    document = find(kustomize(OVERLAYS[0]), "Deployment", "toroid-worker")
    document["spec"]["template"]["spec"]["containers"][0]["readOnlyRoot"] = True
    try:
        validate(document)
    except AssertionError as error:
        assert "readOnlyRoot" in str(error), error
    else:
        raise AssertionError("a field that there is not was taken")


def check_helm():
    done = subprocess.run([program("helm"), "lint", "--strict", str(CHART)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    ways = {
        "demo": (1, ["--set", "worker.args={--threads=1}"]),
        "ha": (3, ["--set", "coordinator.replicas=3", "--set", "etcd.enabled=true"]),
        "gpu": (3, ["--set", "coordinator.replicas=3", "--set", "etcd.enabled=true", "--set", "worker.gpusPerPod=8", "--set", "worker.replicas=3"]),
    }
    for way, (num, values) in ways.items():
        found = helm(*values)
        check_all(found, num)
        # The chart and the overlays are two ways to the same pods.
        overlay = kustomize(ROOT / "deploy/kubernetes/overlays" / way)
        for kind, name in [("StatefulSet", "toroid-coordinator"), ("Deployment", "toroid-worker")] + [("StatefulSet", "toroid-etcd")] * (num > 1):
            ours, theirs = shape(find(found, kind, name)), shape(find(overlay, kind, name))
            assert ours == theirs, f"{way}: {kind}/{name} of the chart differs from the overlay's:\n{ours}\n{theirs}"
        print(f"chart as {way}: {len(found)} objects")
    found = helm("--set", "monitoring.enabled=true", "--set", "worker.queue=toroid")
    check_all(found, 1)
    find(found, "ServiceMonitor", "toroid")
    # What is not in the schema of the values is refused.
    bad = subprocess.run([program("helm"), "template", str(CHART), "--set", "worker.replica=3"], capture_output=True, text=True, timeout=60)
    assert bad.returncode != 0 and "replica" in bad.stderr, bad.stderr


def main():
    check_validator()
    check_kustomize()
    check_helm()
    check_object_store()


if __name__ == "__main__":
    sys.exit(main())
