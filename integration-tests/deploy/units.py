#!/usr/bin/env python3
"""The units of deploy/systemd are taken by systemd without a complaint, and the program takes the command lines that are in them.

    units.py --toroid target/debug/toroid
"""

import argparse
import pathlib
import shlex
import shutil
import subprocess
import tempfile

UNITS = pathlib.Path(__file__).resolve().parents[2] / "deploy/systemd"
# What the units' environment files may say.
FLAGS = {"$COORDINATOR_FLAGS": "--listen 10.0.0.1:7070 --allow-root /shared", "$WORKER_FLAGS": "--allow-root /shared"}
INSTANCES = {"toroid-coordinator.service": "toroid-coordinator.service", "toroid-worker@.service": "toroid-worker@cpu.service"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--toroid", required=True, type=pathlib.Path)
    toroid = parser.parse_args().toroid.resolve()
    with tempfile.TemporaryDirectory(prefix="toroid-units-") as folder:
        for name, instance in INSTANCES.items():
            text = (UNITS / name).read_text()
            [line] = [line for line in text.splitlines() if line.startswith("ExecStart=")]
            command = line.partition("=")[2].replace("%i", "cuda:0")
            for variable, flags in FLAGS.items():
                command = command.replace(variable, flags)
            program, *words = shlex.split(command)
            assert program == "/usr/local/bin/toroid", program
            # A flag that there is not is complained of before --help is seen.
            done = subprocess.run([toroid, *words, "--help"], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, f"{name}: {done.stderr}"
            path = pathlib.Path(folder) / name
            path.write_text(text.replace(program, str(toroid)))
            if shutil.which("systemd-analyze") is None:
                print(f"{instance}: its command line is taken; there is no systemd-analyze to look at the rest")
                continue
            done = subprocess.run(["systemd-analyze", "verify", str(path.with_name(instance)) if "@" in name else str(path)],
                                  capture_output=True, text=True, timeout=60)
            complaints = [line for line in done.stderr.splitlines() if "toroid" in line]
            assert done.returncode == 0 and not complaints, done.stderr
            print(f"{instance}: its command line is taken, systemd has no complaint")


if __name__ == "__main__":
    main()
