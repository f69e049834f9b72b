#!/usr/bin/env python3
"""All-reduce over shaped links: 16 ranks, each in a network namespace of its own. Needs root; installs nothing, leaves nothing.

  wire     veth pairs on a bridge, each shaped by tbf to --mbit in both directions; 64 MiB, as a torus of 4 x 4 and as a ring of 16:
           bus bandwidth against the rate, and against raw copies over the same connections
  delay    a switch in this process passes every packet on --delay-ms later; 64 KiB by the rings' schedules: 4 x 4 against a ring of 16

  secrecy  a ring of --secrecy-ranks over wires of --mbit, encrypted (tls) and not (tcp) in turns: what encryption costs at the speed of the wire

Usage: bench_netns.py [--toroid PROGRAM] [--mbit 100] [--delay-ms 1] [--mib 64] [--secrecy-ranks 4] [wire] [delay] [secrecy]
"""

import argparse
import fcntl
import heapq
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RANKS, NAME, BRIDGE = 16, "toroid-rank{}", "toroid-br"
# tbf: what may go at once; below a packet of 64 KiB the kernel would have to cut every one.
BURST_MS, TAP_MTU = 20, 9000


def run(*words):
    subprocess.run(words, check=True)


def clean():
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for rank in range(RANKS):
        subprocess.run(["ip", "netns", "del", NAME.format(rank)], **quiet)
    subprocess.run(["ip", "link", "del", BRIDGE], **quiet)


def namespace(rank, device):
    name = NAME.format(rank)
    run("ip", "link", "set", device, "netns", name)
    run("ip", "-n", name, "link", "set", device, "name", "eth0")
    run("ip", "-n", name, "addr", "add", f"10.77.1.{rank}/16", "dev", "eth0")
    run("ip", "-n", name, "link", "set", "eth0", "up")
    run("ip", "-n", name, "link", "set", "lo", "up")


def shaped(mbit, ranks=RANKS):
    """A bridge; what a rank sends and what it receives is limited to the rate."""
    burst = max(int(mbit * 1e6 / 8 * BURST_MS / 1e3), 16000)
    limit = ["rate", f"{mbit}mbit", "burst", str(burst), "latency", "200ms"]
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "link", "set", BRIDGE, "up")
    for rank in range(ranks):
        run("ip", "netns", "add", NAME.format(rank))
        run("ip", "link", "add", f"tv{rank}", "type", "veth", "peer", "name", f"tp{rank}")
        run("ip", "link", "set", f"tv{rank}", "master", BRIDGE, "up")
        namespace(rank, f"tp{rank}")
        run("tc", "qdisc", "add", "dev", f"tv{rank}", "root", "tbf", *limit)
        run("tc", "-n", NAME.format(rank), "qdisc", "add", "dev", "eth0", "root", "tbf", *limit)


class Switch:
    """An Ethernet switch of TAP devices that delays every frame."""

    def __init__(self, delay_s):
        self.delay_s, self.taps, self.ports = delay_s, [], {}
        for rank in range(RANKS):
            run("ip", "netns", "add", NAME.format(rank))
            tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            # TUNSETIFF; IFF_TAP | IFF_NO_PI
            fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH", f"tt{rank}".encode(), 0x1002))
            run("ip", "link", "set", f"tt{rank}", "mtu", str(TAP_MTU))
            namespace(rank, f"tt{rank}")
            self.taps.append(tap)
        threading.Thread(target=self.forward, daemon=True).start()

    def forward(self):
        poll, waiting, number = select.epoll(), [], 0
        for tap in self.taps:
            poll.register(tap, select.EPOLLIN)
        while True:
            timeout = max(0, waiting[0][0] - time.monotonic()) if waiting else -1
            for tap, _ in poll.poll(timeout):
                try:
                    frame = os.read(tap, TAP_MTU + 64)
                except BlockingIOError:
                    continue
                self.ports[frame[6:12]] = tap
                number += 1
                heapq.heappush(waiting, (time.monotonic() + self.delay_s, number, tap, frame))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, source, frame = heapq.heappop(waiting)
                port = self.ports.get(frame[:6])
                for tap in [port] if port is not None else [t for t in self.taps if t != source]:
                    try:
                        os.write(tap, frame)
                    except (BlockingIOError, OSError):
                        pass  # a full queue drops, as a switch does


def measure(args, kib, torus, rounds, algorithm="ring", ranks=RANKS, links="auto"):
    command = [args.toroid, "bench", "allreduce", "--ranks", str(ranks), "--size", str(kib), "-o", "json", "--links", links]
    command += ["--launch", "ip netns exec " + NAME, "--listen", "10.77.1.{}:0", "--torus", torus]
    command += ["--algorithm", algorithm, "--rounds", str(rounds)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    return found["results"][0]


def wire(args):
    shaped(args.mbit)
    for torus in ["4,4", "16,1"]:
        found = measure(args, args.mib * 1024, torus, 1)
        share = found["bus_gb_s"] * 8e3 / args.mbit
        print(
            f"wire: {args.mib} MiB over {args.mbit} Mbit/s, torus {torus}, {found['links']}, {found['steps']} steps: {found['time_us'] / 1e6:.2f} s, "
            f"{share * 100:.1f}% of the rate, {found['share_of_raw'] * 100:.0f}% of raw copies"
        )


def secrecy(args):
    shaped(args.mbit, args.secrecy_ranks)
    found = {"tcp": [], "tls": []}
    for _ in range(3):
        for links, times in found.items():
            result = measure(args, args.mib * 1024, f"{args.secrecy_ranks},1", 1, ranks=args.secrecy_ranks, links=links)
            times.append(result["time_us"] / 1e6)
    tcp, tls = (sorted(times)[1] for times in found.values())
    print(
        f"secrecy: {args.mib} MiB, ring of {args.secrecy_ranks} over {args.mbit} Mbit/s: tcp {tcp:.2f} s, tls {tls:.2f} s, medians of "
        f"{len(found['tls'])}: tls takes {tls / tcp:.3f} times as long"
    )


def delay(args):
    switch = Switch(args.delay_ms / 1e3)
    ways = [("4,4", "ring"), ("16,1", "ring"), ("4,4", "auto")]
    found = {way: [] for way in ways}
    for _ in range(3):
        for torus, algorithm in ways:
            found[torus, algorithm].append(measure(args, 64, torus, 5, algorithm))
    torus, ring, direct = (sorted(of["time_us"] / 1e3 for of in found[way])[1] for way in ways)
    steps = [found[way][0]["steps"] for way in ways]
    print(
        f"delay: 64 KiB with {args.delay_ms} ms: torus 4,4 {torus:.1f} ms ({steps[0]} steps), ring of 16 {ring:.1f} ms ({steps[1]} "
        f"steps): {ring / torus:.2f} times as fast; as training does it {direct:.1f} ms ({steps[2]} steps)"
    )
    for tap in switch.taps:
        os.close(tap)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toroid", default=str(ROOT / "target/release/toroid"))
    parser.add_argument("--mbit", type=int, default=100)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--delay-ms", type=float, default=1)
    parser.add_argument("--secrecy-ranks", type=int, default=4, help=f"at most {RANKS}")
    parser.add_argument("what", nargs="*", default=["wire", "delay"])
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("bench_netns: network namespaces need root; run this with sudo")
    args.toroid = str(Path(args.toroid).resolve())
    # So that what was made is taken away again.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench_netns: ended by SIGTERM"))
    for what in args.what:
        clean()
        try:
            {"wire": wire, "delay": delay, "secrecy": secrecy}[what](args)
        finally:
            clean()


if __name__ == "__main__":
    main()
