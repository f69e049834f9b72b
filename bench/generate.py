"""Text by `toroid generate` and by transformers' generate, from the same weights on the same cores: interleaved pairs in one run, medians, ratios.

    python bench/generate.py --toroid target/release/toroid [--preset small] [--batches 1,16] [--threads 2] [--pairs 3]  (`make bench-generate`)

`toroid local` makes one step of the preset, so weights are all but random; they are exported for Hugging Face, and both read that folder. Each
measurement is a process of its own that reads the same prompt and samples as many tokens as the model still takes, at temperature 1, in each text of
the batch. Loading is not counted, reading the prompt is. transformers keeps its keys and values in its usual cache, or (`static`) in one of a fixed
size; its experts are computed by its fastest implementation for the CPU of those that are given (--experts). A ratio is against the fastest of its ways.
On a machine with other work, time by the clock says little: the tokens of a second of processor time are printed beside it.
"""
import argparse, json, os, pathlib, resource, statistics, subprocess, sys, tempfile, time

from corpus import corpus

PROMPT = "pub fn length(text: &str) -> usi"
WARM_UP_TOKENS = 8


def folder_of(toroid, preset, scratch):
    """Weights of the preset after one step, as a folder of Hugging Face's, and the tokens that it reads at a time."""
    text, jobs, folder = scratch / "corpus.txt", scratch / "jobs", scratch / "model"
    corpus(text)
    command = [toroid, "local", "--preset", preset, "--steps", "1", "--tp", "1", "--pp", "1", "--dp", "1", "--spares", "0", "--no-kill", "--quiet"]
    subprocess.run([*command, "--data", str(text), "--dir", str(jobs)], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([toroid, "checkpoint", "export", "1", str(folder), "--format", "hf", "--from", str(jobs)], check=True, stdout=subprocess.DEVNULL)
    return folder, json.loads((folder / "config.json").read_text())["max_position_embeddings"]


def toroid(args, folder, batch, num_tokens):
    command = [args.toroid, "generate", "--from", str(folder), "--prompt", PROMPT, "--max-tokens", str(num_tokens), "--samples", str(batch)]
    command += ["--threads", str(args.threads), "-o", "json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    made = sum(len(sample["tokens"]) for sample in answer["samples"])
    assert made == batch * num_tokens, f"toroid made {made} tokens of {batch} x {num_tokens}"
    # Loading included: so it is never to our favour.
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"tokens_per_s": made / answer["seconds"], "tokens_per_cpu_s": made / cpu}


def transformers(args, folder, batch, num_tokens, way):
    command = [sys.executable, __file__, "--measure", str(folder), "--batches", str(batch), "--tokens", str(num_tokens)]
    command += ["--threads", str(args.threads), "--ways", way]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return json.loads(run.stdout.splitlines()[-1])


def measure(folder, batch, num_tokens, threads, way):
    """In a process of its own, so that `--toroid` needs no PyTorch in memory."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    cache, experts = way.split("/")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation=experts).eval()
    prompt = torch.tensor([list(PROMPT.encode())] * batch)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}
    if cache == "static":
        options["cache_implementation"] = "static"
        # It would be compiled, which needs a C++ compiler, and is measured elsewhere.
        options["disable_compile"] = True
    with torch.inference_mode():
        model.generate(prompt, max_new_tokens=WARM_UP_TOKENS, **options)
        start, cpu = time.perf_counter(), time.process_time()
        written = model.generate(prompt, max_new_tokens=num_tokens, **options)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    made = written.shape[0] * (written.shape[1] - prompt.shape[1])
    assert made == batch * num_tokens, f"transformers made {made} tokens of {batch} x {num_tokens}"
    print(json.dumps({"tokens_per_s": made / seconds, "tokens_per_cpu_s": made / cpu}))


def median(rows, key):
    return statistics.median(row[key] for row in rows)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--toroid", help="Toroid's executable")
    ap.add_argument("--preset", default="small")
    ap.add_argument("--batches", default="1,16", help="texts at a time")
    ap.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    ap.add_argument("--pairs", type=int, default=3, help="times that each is measured")
    ap.add_argument("--ways", default="dynamic/grouped_mm,dynamic/eager,dynamic/batched_mm,static/grouped_mm", help="cache and experts of transformers")
    ap.add_argument("--measure", help=argparse.SUPPRESS)
    ap.add_argument("--tokens", type=int, help="of each text; default: as many as the model still takes")
    args = ap.parse_args()
    if args.measure:
        return measure(args.measure, int(args.batches), args.tokens, args.threads, args.ways)
    if not args.toroid:
        ap.error("--toroid: the executable of Toroid is needed")
    with tempfile.TemporaryDirectory() as scratch:
        folder, seq = folder_of(args.toroid, args.preset, pathlib.Path(scratch))
        num_tokens = args.tokens or seq - len(PROMPT)
        print(f"{args.preset}: {num_tokens} tokens after a prompt of {len(PROMPT)}, {args.threads} threads", flush=True)
        print(f"{'BATCH':>5} {'WAY':28} {'TOKENS/S':>9} {'RATIO':>6}  {'PER CPU-S':>9} {'RATIO':>6}", flush=True)
        for batch in map(int, args.batches.split(",")):
            ways = args.ways.split(",")
            ours, theirs = [], {way: [] for way in ways}
            for _ in range(args.pairs):
                ours.append(toroid(args, folder, batch, num_tokens))
                for way in ways:
                    theirs[way].append(transformers(args, folder, batch, num_tokens, way))
            keys = ("tokens_per_s", "tokens_per_cpu_s")
            found = {"toroid": ours} | {f"transformers {way}": rows for way, rows in theirs.items()}
            for name, rows in found.items():
                a, b = (median(rows, key) for key in keys)
                ratios = [median(ours, key) / median(rows, key) for key in keys]
                print(f"{batch:5} {name:28} {a:9.1f} {ratios[0]:6.2f}  {b:9.1f} {ratios[1]:6.2f}", flush=True)
            least = [median(ours, key) / max(median(rows, key) for rows in theirs.values()) for key in keys]
            print(f"{batch:5} {'beside the fastest of these':28} {'':9} {least[0]:6.2f}  {'':9} {least[1]:6.2f}", flush=True)


if __name__ == "__main__":
    main()
