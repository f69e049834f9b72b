"""Reads an export and the shards of the same step with pip's safetensors and numpy, without any code of ours.

usage: read_checkpoint.py EXPORT.safetensors STEP_FOLDER
Puts every parameter together from the shards' entries, as the README describes them, and compares it with the export.
"""
import json
import sys

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

export = load_file(sys.argv[1])
with open(f"{sys.argv[2]}/manifest.json") as f:
    manifest = json.load(f)
model = manifest["job"]["model"]
d, ff, experts, vocab = model["d_model"], model["ff"], model["experts"], model["vocab"]
assert export["emb.weight"].shape == (vocab, d), export["emb.weight"].shape
assert export["head.weight"].shape == (vocab, d)
assert export["blocks.0.moe.w13"].shape == (experts, 2 * ff, d)
assert len(export) == 3 + 11 * model["layers"], sorted(export)

tensors = {}
for file in manifest["files"]:
    with safe_open(f"{sys.argv[2]}/{file['file']}", framework="numpy") as f:
        assert set(f.keys()) == {e["name"] for e in file["entries"]}
        for entry in file["entries"]:
            whole = tensors.setdefault((entry["kind"], entry["tensor"]), np.full(entry["global_shape"], np.nan, np.float32))
            dim = entry["slice"]["dim"]
            rows = np.concatenate([np.arange(r["start"], r["end"]) for r in entry["slice"]["ranges"]])
            index = np.arange(whole.size).reshape(whole.shape).take(rows, axis=dim).reshape(-1)
            start, end = entry["range"]["start"], entry["range"]["end"]
            whole.reshape(-1)[index[start:end]] = f.get_tensor(entry["name"])

for name, value in export.items():
    assert value.dtype == np.float32
    assert np.array_equal(tensors["param", name], value), name
    assert not np.isnan(tensors["exp", name]).any() and (tensors["exp_sq", name] >= 0).all(), name
print(f"all tensors agree: {len(export)} of step {manifest['step']}")
