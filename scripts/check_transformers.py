"""Loads folders that were exported for Hugging Face and compares what transformers computes with what Toroid computed.

DIR is made by the test `hf` of the worker (TOROID_HF_FOLDERS=DIR): for each model NAME the folders NAME and NAME-bf16, NAME.tokens.json and
NAME.logits.f32, (samples, seq, vocab). Everything is compared; what transformers saves again is left in NAME-saved, which that test reads to
the bit when it runs a second time. With --record FILE some rows of the logits are written there, for `make test`.
"""

import argparse
import json
import pathlib
import shutil

import numpy as np
import safetensors.numpy
import torch
import transformers

TOLERANCE = 1e-5


def load(folder, **options):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert type(model).__name__ == "GraniteMoeSharedForCausalLM", type(model)
    wrong = {key: found for key, found in report.items() if found}
    assert not wrong, f"{folder}: transformers did not find what it expected: {wrong}"
    return model.eval()


def tensors(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as f:
            found |= {name: f.get_tensor(name) for name in f.keys()}
    return found


def check_tokenizer(folder, vocab):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ["Hello, world", " two  spaces\n\ttab ", "Grüße, 東京 \U0001f600", "".join(map(chr, range(0, 0x250)))]:
        ids = tokenizer(text, add_special_tokens=True)["input_ids"]
        assert ids == list(text.encode()), f"{folder}: {text!r} became {ids}"
        assert tokenizer.decode(ids) == text, f"{folder}: {tokenizer.decode(ids)!r} is not {text!r}"
    if vocab > 256:
        padded = tokenizer(["a", "abc"], padding=True)
        assert padded["input_ids"] == [[97, 256, 256], [97, 98, 99]], padded


def check(directory, name):
    folder = directory / name
    tokens = torch.tensor(json.loads((directory / f"{name}.tokens.json").read_text()))
    model = load(folder)
    assert model.dtype == torch.float32
    with torch.no_grad():
        found = model(tokens).logits.numpy()
    ours = np.fromfile(directory / f"{name}.logits.f32", dtype=np.float32).reshape(found.shape)
    largest = float(np.abs(found - ours).max())
    agree = int((found.argmax(-1) == ours.argmax(-1)).sum())
    assert largest <= TOLERANCE, f"{name}: logits differ by {largest:.2e}, allowed {TOLERANCE}"

    check_tokenizer(folder, model.config.vocab_size)
    assert model.generation_config.eos_token_id is None and model.config.bos_token_id is None
    prompt = tokens[:1, :8]
    written = model.generate(prompt, max_new_tokens=8, do_sample=False)
    assert written.shape == (1, 16), written.shape

    saved = directory / f"{name}-saved"
    shutil.rmtree(saved, ignore_errors=True)
    model.save_pretrained(saved)
    before, after = tensors(folder), tensors(saved)
    assert before.keys() == after.keys(), before.keys() ^ after.keys()
    differing = [key for key in before if not torch.equal(before[key], after[key])]
    assert not differing, f"{name}: saved again these differ: {differing}"

    # Its grouped products take bf16 only in rows of whole 16 bytes.
    half = load(directory / f"{name}-bf16", experts_implementation="eager")
    assert half.dtype == torch.bfloat16, half.dtype
    with torch.no_grad():
        rounded = half(tokens).logits.float().numpy()
    off = float(np.abs(rounded - ours).max())
    assert off < 0.2, f"{name}: in bf16 logits differ by {off:.2e}"
    print(
        f"{name}: {found.size} logits up to {np.abs(ours).max():.3f} differ by {largest:.1e} at most ({off:.1e} in bf16), "
        f"the likeliest token of {agree} of {found.shape[0] * found.shape[1]} is the same, {len(before)} tensors saved again are the same bits"
    )
    assert agree == found.shape[0] * found.shape[1]
    return found


def rows_of(logits):
    samples, seq, _ = logits.shape
    rows = [[0, 0], [0, 1], [0, seq // 2], [0, seq - 1], [samples - 1, seq - 1]]
    return {"rows": rows, "logits": [[float(f"{x:.9g}") for x in logits[b, s]] for b, s in rows]}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--record", type=pathlib.Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(2)
    found = {name: check(args.directory, name) for name in ["tiny", "odd"]}
    if args.record:
        models = {name: rows_of(logits) for name, logits in found.items()}
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        args.record.write_text(json.dumps(versions | {"models": models}, separators=(",", ":")) + "\n")


main()
