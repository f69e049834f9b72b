"""Reads a job's event files as TensorBoard does, and compares them with curve.csv: each step once, with its figures.

usage: read_events.py FOLDER_OF_JOB LAST_STEP; waits until the files are closed, which is a moment after the job has ended
"""
import csv
import pathlib
import struct
import sys
import time

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.event_pb2 import SessionLog

COLUMNS = {
    "train/loss": "loss", "train/cross_entropy": "ce", "train/z_loss": "z_loss", "train/balance_loss": "balance_loss",
    "train/gradient_norm": "grad_norm", "train/learning_rate": "lr", "train/weight_decay": "weight_decay",
    "speed/tokens_per_s": "tokens_per_s", "speed/step_s": "step_s", "speed/communication_hidden_s": "hidden_s",
    "speed/communication_exposed_s": "exposed_s", "cluster/epoch": "epoch",
}
# Nothing moves for so long only where the coordinator does not write.
GIVEN_UP_AFTER_S = 180


def single(value):
    return struct.unpack("f", struct.pack("f", float(value)))[0]


def is_closed(files):
    *_, last = LegacyEventFileLoader(str(files[-1])).Load()
    return last.session_log.status == SessionLog.STOP


folder, last_step = pathlib.Path(sys.argv[1]), int(sys.argv[2])
given_up_at = time.monotonic() + GIVEN_UP_AFTER_S
while True:
    files = sorted((folder / "tensorboard").glob("*tfevents*"))
    if files and is_closed(files):
        break
    assert time.monotonic() < given_up_at, f"{files} are not closed"
    time.sleep(0.1)

rows = list(csv.DictReader((folder / "curve.csv").open()))
assert [int(row["step"]) for row in rows] == list(range(1, last_step + 1)), "curve.csv has other steps"
# As `tensorboard --logdir FOLDER` finds them: all, and not a sample of them.
found = EventMultiplexer(size_guidance={"scalars": 0}).AddRunsFromDirectory(str(folder)).Reload()
assert list(found.Runs()) == ["tensorboard"], found.Runs()
events = found.GetAccumulator("tensorboard")
for tag, column in COLUMNS.items():
    found = [(e.step, e.value) for e in events.Scalars(tag)]
    expected = [(int(row["step"]), single(row[column])) for row in rows]
    assert found == expected, f"{tag}: {[pair for pair in zip(found, expected) if pair[0] != pair[1]][:3]}, {len(found)} steps"
for layer, loads in enumerate(rows[-1]["expert_load"].split(";")):
    loads = [int(n) for n in loads.split()]
    found = events.Scalars(f"expert_load/layer_{layer:02}_max_over_mean")
    assert len(found) == last_step and found[-1].value == single(max(loads) / (sum(loads) / len(loads))), found[-1]
validations = events.Scalars("validation/cross_entropy")
steps = [v.step for v in validations]
assert steps == sorted(set(steps)), steps
assert all(v.value > 0 for v in events.Scalars("validation/bits_per_byte"))
print(f"{len(rows)} steps, {len(steps)} validations in {len(files)} files: {', '.join(f.name for f in files)}")
