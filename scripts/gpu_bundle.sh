#!/usr/bin/env bash
# Puts everything that `scripts/gpu_check.sh` needs into one folder, to be copied to a machine that has a GPU, its driver and CUDA's
# libraries, and neither cargo nor a network: gpu_bundle.sh [FOLDER]; default: gpu-bundle in cargo's target folder.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
bundle=${1:-$target/gpu-bundle}

# The path of an executable among cargo's messages: built NAME KIND ARGUMENTS...
built() {
    local name=$1 kind=$2
    shift 2
    cargo "$@" --message-format json |
        grep '"reason":"compiler-artifact"' | grep "\"kind\":\[\"$kind\"\]" | grep "\"name\":\"$name\"" |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
}

# put NAME PATH
put() {
    [ -n "$2" ] || { echo "gpu_bundle: cargo did not say where it built $1" >&2; exit 1; }
    cp "$2" "$bundle/$1"
}

rm -rf "$bundle"
mkdir -p "$bundle"
put numerics "$(built numerics test test --release -p toroid-worker --features gpu --test numerics --no-run)"
put bench_gpu "$(built bench_gpu example build --release -p toroid-worker --example bench_gpu)"
put toroid "$(built toroid bin build --release --bin toroid)"
cp scripts/gpu_check.sh bench/peers/moe.py bench/peers/bench_gpu.py "$bundle/"
# A text to train on.
git ls-files '*.rs' '*.md' '*.cu' | xargs cat >"$bundle/text.txt"
echo "$bundle is complete; on the machine with the GPU: $(basename "$bundle")/gpu_check.sh"
