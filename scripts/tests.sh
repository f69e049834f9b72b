#!/usr/bin/env bash
# Runs all tests, also those after one that fails: first everything as it is shipped, then what needs failpoints, whose code is not in the
# shipped binary and so is built apart: beside the tests, which often wait, and at the lowest priority.
set -uo pipefail
cd "$(dirname "$0")/.."

# The data pipeline is apart (`make test-data`): it shares nothing with what trains.
packages=(--workspace --exclude toroid-corpus)
# Of the same packages, so that what they depend on is not built again.
with_failpoints=(cargo test "${packages[@]}" --features toroid-failpoint/failpoint --test failpoint --test simulation_of_failpoints --no-fail-fast)
cargo test "${packages[@]}" --no-run || exit
cargo test "${packages[@]}" --no-fail-fast &
testing=$!
# Cargo builds one thing at a time: it has nothing left to build when its first test runs.
while kill -0 "$testing" 2>/dev/null && [ -z "$(cat "/proc/$testing/task/$testing/children" 2>/dev/null)" ]; do
    sleep 1
done
# What is wrong with it is said by the run below.
nice -n 19 "${with_failpoints[@]}" --no-run --quiet 2>/dev/null &
status=0
wait "$testing" || status=$?
wait
"${with_failpoints[@]}" || status=$?
exit "$status"
