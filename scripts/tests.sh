#!/usr/bin/env bash
# Runs all tests, also those after one that fails: first everything as it is shipped, then what needs failpoints, whose code is not in the
# shipped binary and so is built apart.
set -uo pipefail
cd "$(dirname "$0")/.."

status=0
cargo test --workspace --no-fail-fast || status=$?
cargo test -p toroid-failpoint --features failpoint --no-fail-fast || status=$?
exit $status
