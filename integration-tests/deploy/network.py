"""Hosts as network namespaces at one bridge: each has an address of its own, and what happens to cables happens to theirs. Needs root.

Deliberately absent: delay. The kernel of most test machines has no netem.
"""

import contextlib
import ipaddress
import os
import pathlib
import shutil
import subprocess
import tempfile

# Also on each host: the bridge of a container engine, with the address that it has everywhere.
BRIDGE_OF_CONTAINERS = "172.17.0.1/16"


def run(*command, **options):
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True, **options).stdout


@contextlib.contextmanager
def laboratory(name, keep, family=4):
    """A folder and a network for one trial, which go with it; `keep`: the folder stays."""
    folder = tempfile.mkdtemp(prefix=f"toroid-{name}-")
    try:
        with Network(family) as network:
            yield folder, network
    finally:
        if keep:
            print(f"kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


class Network:
    """A bridge that stands for the network; each host has an address of its own, and a new one has a new one. `family`: 4 or 6."""

    def __init__(self, family=4):
        pid = os.getpid()
        # Links of another network of this process may go a moment after it.
        self.bridge = f"tk{pid % 1000000}n{family}"
        net = f"10.{100 + pid % 100}.{pid // 100 % 250}.0/24" if family == 4 else f"fd42:{pid % 65536:x}::/64"
        self.network = ipaddress.ip_network(net)
        self.num = 1
        # By host: its end of the cable at the bridge.
        self.ports = {}
        # By host: the ends of its cable that are slow, or lose packets.
        self.disturbed = {}

    def __enter__(self):
        run("ip", "link", "add", self.bridge, "type", "bridge")
        self.add_address([], self.bridge, self.network[1])
        run("ip", "link", "set", self.bridge, "up")
        return self

    def add_address(self, where, device, ip):
        # An address of IPv6 is usable at once only where nobody asks first whether another has it.
        nodad = ["nodad"] if ip.version == 6 else []
        run("ip", *where, "addr", "add", f"{ip}/{self.network.prefixlen}", "dev", device, *nodad)

    def add(self):
        """A host: the name of its namespace, and its address."""
        self.num += 1
        space, ours, ip = f"{self.bridge}-{self.num}", f"{self.bridge}v{self.num}", self.network[self.num]
        run("ip", "netns", "add", space)
        self.ports[space] = ours
        run("ip", "link", "add", ours, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "link", "set", ours, "master", self.bridge, "up")
        self.add_address(["-n", space], "eth0", ip)
        for device in ["eth0", "lo"]:
            run("ip", "-n", space, "link", "set", device, "up")
        return space, str(ip)

    def add_another_address(self, space):
        """Under which the host is reached as well."""
        self.num += 1
        self.add_address(["-n", space], "eth0", self.network[self.num])
        return str(self.network[self.num])

    def add_bridge_of_containers(self, space):
        run("ip", "-n", space, "link", "add", "docker0", "type", "bridge")
        run("ip", "-n", space, "addr", "add", BRIDGE_OF_CONTAINERS, "dev", "docker0")
        run("ip", "-n", space, "link", "set", "docker0", "up")

    def names(self, space, names):
        """What the host resolves, by pairs of a name and an address: `ip netns exec` has it as /etc/hosts. Whoever runs there already sees it, too: it
        is the same file."""
        file = pathlib.Path("/etc/netns") / space / "hosts"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = ["127.0.0.1 localhost", "::1 localhost", *(f"{ip} {name}" for name, ip in names)]
        with open(file, "w") as out:
            out.write("\n".join(lines) + "\n")

    def unplug(self, space):
        run("ip", "link", "set", self.ports[space], "down")

    def plug_in(self, space):
        run("ip", "link", "set", self.ports[space], "up")

    def slow(self, space, rate):
        """What the host sends, and what is sent to it, goes at this rate: `20mbit`."""
        limit = ["root", "tbf", "rate", rate, "burst", "64kb", "latency", "200ms"]
        for where, device in self.ends(space):
            run(*where, "tc", "qdisc", "add", "dev", device, *limit)

    def lose(self, space, percent):
        """So many of a hundred packets are gone, in both directions, on the wire: neither end is told."""
        for where, device in self.ends(space):
            chain = f"add chain netdev {self.table(space)} in {{ type filter hook ingress device \"{device}\" priority 0; }}"
            rule = f"add rule netdev {self.table(space)} in numgen random mod 100 < {percent} drop"
            run(*where, "nft", f"add table netdev {self.table(space)}; {chain}; {rule}")

    def table(self, space):
        return space.replace("-", "_")

    def mend(self, space):
        """Takes back `slow` and `lose`."""
        for where, device in self.disturbed.pop(space, []):
            # One of both may not have been done.
            subprocess.run([*where, "tc", "qdisc", "del", "dev", device, "root"], capture_output=True)
            subprocess.run([*where, "nft", f"delete table netdev {self.table(space)}"], capture_output=True)

    def ends(self, space):
        """Both ends of a host's cable: how to get there, and the device."""
        self.disturbed[space] = [([], self.ports[space]), (["ip", "netns", "exec", space], "eth0")]
        return self.disturbed[space]

    def __exit__(self, *_):
        for space in self.ports:
            self.mend(space)
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(f"/etc/netns/{space}")
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)
