"""Tokens per second of whole optimizer steps of the model in moe.py on one GPU, as a peer of Toroid's bench_gpu: fused attention
(scaled_dot_product_attention), grouped products of the experts, torch.compile of the whole model, autocast to bf16, fused AdamW.

    python bench_gpu.py PRESET [--device cuda] [--f32] [--eager] [--micro-batch 4] [--micro-batches 8] [--steps 5] [--warm 3]
                        [--peak-tflops 989]

Prints JSON on the last line. `ceiling` is a bf16 (or f32) product of 8192^3 on this device; `mfu` is the share of --peak-tflops (dense bf16 of
an H100 or H200), `of_ceiling` that of the measured product. Operations of a token: 6 for each weight that it meets, 12 for each of its
scores, of which a causal mask leaves half. With --device cpu it only shows that the script runs.
"""
import argparse, json, statistics, time

import torch
from moe import PRESETS, Model, lr_at, make_opt

ap = argparse.ArgumentParser()
ap.add_argument("preset", choices=PRESETS)
ap.add_argument("--device", default="cuda")
ap.add_argument("--f32", action="store_true")
ap.add_argument("--eager", action="store_true")
ap.add_argument("--micro-batch", type=int, default=4)
ap.add_argument("--micro-batches", type=int, default=8)
ap.add_argument("--steps", type=int, default=5)
ap.add_argument("--warm", type=int, default=3)
ap.add_argument("--peak-tflops", type=float, default=989.0)
args = ap.parse_args()

device = torch.device(args.device)
on_gpu = device.type == "cuda"
config = PRESETS[args.preset]
dtype = torch.float32 if args.f32 else torch.bfloat16


def wait():
    if on_gpu:
        torch.cuda.synchronize()


def ceiling(n):
    """Operations a second of the best of five products of n^3."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        wait()
        start = time.perf_counter()
        a @ b
        wait()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def flops_per_token(c):
    attention = (c.heads + 2 * c.kv) * c.hd * c.d + c.heads * c.hd * c.d
    experts = (c.topk + 1) * 3 * c.ff * c.d + c.E * c.d
    weights = c.layers * (attention + experts) + c.vocab * c.d
    return 6 * weights + 12 * c.layers * c.heads * c.hd * c.seq / 2


torch.manual_seed(0)
torch.backends.cuda.matmul.allow_tf32 = False
model = Model(config).init(0).to(device)
model.set_moe("gmm")
optimizer = make_opt(model)
run = model if args.eager else torch.compile(model, dynamic=False)
params = list(model.parameters())
n = torch.arange(args.micro_batch * config.seq + 1, device=device)
texts = [(n * n * 7 + n * 13 + i * 31) % 256 for i in range(args.micro_batches)]
shape = (args.micro_batch, config.seq)


def step(i):
    for text in texts:
        with torch.autocast(device.type, torch.bfloat16, enabled=not args.f32):
            loss = run(text[:-1].view(shape), text[1:].view(shape))[0]
        (loss / args.micro_batches).backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    for group in optimizer.param_groups:
        group["lr"] = lr_at(i)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


seconds = []
for i in range(args.warm + args.steps):
    wait()
    start = time.perf_counter()
    loss = step(i)
    wait()
    seconds.append(time.perf_counter() - start)
rate = args.micro_batch * args.micro_batches * config.seq / statistics.median(seconds[args.warm:])
measured = ceiling(8192 if on_gpu else 512)
flops = rate * flops_per_token(config)
print(json.dumps({
    "preset": args.preset, "device": torch.cuda.get_device_name(device) if on_gpu else "cpu", "torch": torch.__version__,
    "dtype": str(dtype).removeprefix("torch."), "compile": not args.eager, "loss": loss, "tokens_per_s": rate,
    "ceiling_tflops": measured / 1e12, "of_ceiling": flops / measured, "mfu": flops / (args.peak_tflops * 1e12) if on_gpu else None,
    "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
}))
