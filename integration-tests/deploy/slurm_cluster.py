"""A real Slurm on this machine, without systemd: munged, slurmctld, and a slurmd for each node, all of this run alone.

Nodes are names (n1, n2, ...): their processes are found by SLURMD_NODENAME in their environment, and a node dies as one does that loses its
power: its slurmd, its step daemons and everything that they run get SIGKILL in one go.
"""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

CONF = """ClusterName=toroid
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CryptoType=crypto/munge
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
SlurmctldPort={port}
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=5
InactiveLimit=0
KillWait=30
OverTimeLimit=0
MinJobAge=300
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=1
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
"""


def send(number, pids):
    """A signal to those that there still are."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def free_ports(num):
    """So many ports that nobody has now."""
    sockets = [socket.socket() for _ in range(num)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def is_there():
    """What is missing to run one; an empty list: nothing."""
    programs = ["munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue"]
    return [name for name in programs if shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin") is None]


class Slurm:
    """A cluster of `num_nodes`, as a context."""

    def __init__(self, root, num_nodes):
        self.root = pathlib.Path(root)
        self.nodes = [f"n{i}" for i in range(1, num_nodes + 1)]
        self.env = dict(os.environ, SLURM_CONF=str(self.root / "slurm.conf"))
        self.env["PATH"] += ":/usr/sbin"
        self.daemons = {}

    def __enter__(self):
        for folder in ["state", "log", *(f"spool/{node}" for node in self.nodes)]:
            (self.root / folder).mkdir(parents=True)
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        host = socket.gethostname().split(".")[0]
        ports = free_ports(1 + len(self.nodes))
        text = CONF.format(host=host, root=self.root, port=ports[0])
        for node, port in zip(self.nodes, ports[1:]):
            text += f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1000 State=UNKNOWN\n"
        text += f"PartitionName=p Nodes={','.join(self.nodes)} Default=YES MaxTime=INFINITE State=UP\n"
        (self.root / "slurm.conf").write_text(text)
        # Other users may not write where munge's socket is; the folder is this user's.
        self.start("munged", ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.root}/munge.socket",
                              f"--pid-file={self.root}/munged.pid", f"--log-file={self.root}/log/munged.log",
                              f"--seed-file={self.root}/munge.seed"])
        wait("munged", lambda: (self.root / "munge.socket").exists())
        self.start("slurmctld", ["slurmctld", "-D", "-c"])
        for node in self.nodes:
            self.boot(node)
        wait("all nodes", lambda: self.states() == {node: "idle" for node in self.nodes})
        return self

    def __exit__(self, *_):
        jobs = self.run("squeue", "-h", "-o", "%A", check=False).split()
        if jobs:
            self.run("scancel", "--signal=KILL", "--full", *jobs, check=False)
            self.run("scancel", *jobs, check=False)
        for node in self.nodes:
            self.power_off(node)
        for name in ["slurmctld", "munged"]:
            if name in self.daemons:
                self.daemons[name].kill()
                self.daemons[name].wait()

    def start(self, name, command):
        out = open(self.root / "log" / f"{name}.out", "ab")
        self.daemons[name] = subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                              start_new_session=True)

    def boot(self, node):
        self.start(node, ["slurmd", "-D", "-N", node])

    def power_off(self, node):
        """Kills all processes of a node until there are none. All are stopped before the first is killed: of a node without power nobody reports another's
        end, and no `srun` cancels its step because the script is gone."""
        daemon = self.daemons.get(node)
        while True:
            stopped = set()
            while True:
                running = set(self.processes(node)) - stopped
                if daemon is not None and daemon.poll() is None:
                    running |= {daemon.pid} - stopped
                if not running:
                    break
                send(signal.SIGSTOP, running)
                stopped |= running
            if not stopped:
                return
            # Children first: a group without a parent is continued, and hung up.
            send(signal.SIGKILL, sorted(stopped, reverse=True))
            if daemon is not None:
                daemon.wait()

    def processes(self, node):
        """Processes of jobs on a node."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                environ = (entry / "environ").read_bytes().split(b"\0")
                command = (entry / "cmdline").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if f"SLURM_CONF={self.root}/slurm.conf".encode() not in environ or state == "Z":
                continue
            if command[0].startswith(b"slurmstepd") or command[0].endswith(b"slurmstepd"):
                # They name the step, not the node: found by the slurmd's spool folder of the node that they log to.
                if self.node_of_stepd(entry) == node:
                    found.append(int(entry.name))
            elif f"SLURMD_NODENAME={node}".encode() in environ:
                found.append(int(entry.name))
        return found

    def node_of_stepd(self, entry):
        for fd in (entry / "fd").iterdir():
            try:
                target = os.readlink(fd)
            except OSError:
                continue
            for node in self.nodes:
                if target.endswith(f"slurmd.{node}.log") or f"/spool/{node}/" in target:
                    return node
        return None

    def run(self, *command, check=True, **options):
        done = subprocess.run(command, env=self.env, text=True, capture_output=True, timeout=60, **options)
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr}{done.stdout}")
        return done.stdout

    def states(self):
        lines = self.run("sinfo", "-h", "-N", "-o", "%N %T", check=False).split("\n")
        return dict(line.split() for line in lines if line)

    def job_state(self, job):
        """As scontrol says it, a job that is forgotten is `GONE`."""
        for word in self.run("scontrol", "show", "job", str(job), check=False).split():
            if word.startswith("JobState="):
                return word.partition("=")[2]
        return "GONE"


def wait(what, condition, limit_s=120, look=None):
    """Until the condition holds; the limit is for what hangs. Returns what held."""
    end = time.monotonic() + limit_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come within {limit_s} s; {look() if look else ''}")
        time.sleep(0.05)
