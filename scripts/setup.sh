#!/usr/bin/env bash
# Installs what the tests need beside Rust: a Python environment in .venv that reads checkpoints and asks the coordinator as a
# foreign client would, with NVIDIA's compiler as a library for the GPU kernels (no GPU is needed); and a C++ compiler that builds the
# same kernels for the CPU; kubectl and schemas of Kubernetes; `ip`, which cuts networks; etcd, and openssl for its certificates. Does nothing where it is complete. Debian's packages are installed only where they are missing.
# --deploy: Slurm and podman as well, for `make test-deploy`.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(numpy safetensors grpcio grpcio-reflection protobuf nvidia-cuda-nvrtc kubernetes-validate)

have_venv() {
    command -v python3 >/dev/null && python3 -c 'import venv, ensurepip' 2>/dev/null
}

is_complete() {
    [ -x .venv/bin/python ] && .venv/bin/python -c 'import numpy, safetensors, grpc, grpc_reflection, google.protobuf, kubernetes_validate' 2>/dev/null &&
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
command -v kubectl >/dev/null || install "kubectl, which renders manifests" kubernetes-client
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
is_complete || {
    echo "setup: ${packages[*]} were installed in .venv but cannot be imported; remove .venv and run this again" >&2
    exit 1
}
