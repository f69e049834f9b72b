#!/usr/bin/env bash
# Runs all tests and lints, also those after one that fails. First everything is built as it is shipped and its tests run. They often wait:
# beside them, at the lowest priority, is built what needs failpoints, whose code is not in the shipped binary, and the lints look at
# everything (their output comes at the end). Says at the end what took how long.
set -uo pipefail
cd "$(dirname "$0")/.."

status=0
took=()
# phase WHAT: what began at the last call, or at the start, has ended.
phase() {
    took+=("$((SECONDS - since)) s: $1")
    since=$SECONDS
}
since=$SECONDS

# The data pipeline is apart (`make test-data`): what trains does not need it.
packages=(--workspace --exclude toroid-corpus)
# Of the same packages, so that what they depend on is not built again.
with_failpoints=(cargo test "${packages[@]}" --features toroid-failpoint/failpoint --test failpoint --test simulation_of_failpoints --no-fail-fast)
linted=$(mktemp)
trap 'rm -f "$linted"' EXIT
cargo test "${packages[@]}" --no-run || exit
phase "the build of the tests"
cargo test "${packages[@]}" --no-fail-fast &
testing=$!
# Cargo builds one thing at a time: it has nothing left to build when its first test runs.
while kill -0 "$testing" 2>/dev/null && [ -z "$(cat "/proc/$testing/task/$testing/children" 2>/dev/null)" ]; do
    sleep 1
done
# What is wrong with the build is said by the run below.
(
    nice -n 19 "${with_failpoints[@]}" --no-run --quiet 2>/dev/null
    nice -n 19 make --no-print-directory check >"$linted" 2>&1
) &
linting=$!
wait "$testing" || status=$?
phase "the tests"
"${with_failpoints[@]}" || status=$?
phase "the tests with failpoints"
wait "$linting" || { status=$?; cat "$linted"; }
phase "the rest of the lints"
printf '%s\n' "${took[@]}"
exit "$status"
