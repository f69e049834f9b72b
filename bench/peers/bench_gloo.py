"""All-reduce (f32, sum) of PyTorch's gloo backend over loopback, to compare `toroid bench allreduce` with.

Usage: bench_gloo.py RANKS KIB [KIB ...]. Prints one line of JSON a size. Rounds and repeats are those of src/bench/allreduce.rs.
Written for this project after the script with which gloo was first measured here; needs torch alone (scripts/bench_venv.sh).
"""

import json
import os
import socket
import statistics
import sys
import time
from datetime import timedelta

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WARM_UP, ROUNDS, ROUND_S, REPEATS_MAX = 3, 7, 0.06, 2000


def work(rank, ranks, port, sizes):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=ranks, timeout=timedelta(seconds=300))
    for kib in sizes:
        size = kib * 1024
        buf = torch.zeros(size // 4)
        for _ in range(WARM_UP):
            dist.all_reduce(buf)
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(buf)
        one = torch.tensor([time.perf_counter() - start])
        dist.all_reduce(one, dist.ReduceOp.MAX)
        repeats = max(1, min(REPEATS_MAX, int(ROUND_S / one.item())))
        times = []
        for _ in range(ROUNDS):
            dist.barrier()
            start = time.perf_counter()
            for _ in range(repeats):
                dist.all_reduce(buf)
            dist.barrier()
            times.append((time.perf_counter() - start) / repeats)
        if rank == 0:
            median = statistics.median(times)
            bus = size / median / 1e9 * 2 * (ranks - 1) / ranks
            print(json.dumps({"ranks": ranks, "bytes": size, "time_us": median * 1e6, "bus_gb_s": bus}), flush=True)
    dist.destroy_process_group()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


if __name__ == "__main__":
    ranks, sizes = int(sys.argv[1]), [int(kib) for kib in sys.argv[2:]]
    mp.spawn(work, (ranks, free_port(), sizes), nprocs=ranks)
