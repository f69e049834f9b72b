#!/usr/bin/env python3
"""Does the tasks of a plan of `toroid data plan` on a cluster of Ray.

    pip install ray
    toroid data plan pipeline.toml --shards 64 --to /shared/plan.json
    python ray_run.py /shared/plan.json --toroid-data /shared/bin/toroid-data --address auto

Ray starts the tasks and starts those again whose worker or raylet died; it never sees data. What tasks hand on are sorted files in the
folder of work, which all nodes must have under the same path. The largest tasks that can begin are started first. Killed itself, this
script is started again and goes on: what is done is marked in the folder of work.
"""
import argparse, json, pathlib, signal, subprocess, sys, time

import ray

# Of a task's last words in an error.
MAX_SAID_BYTES = 4000


def run_task(program, plan, task, threads, memory, scratch):
    """Does one task in a process of its own; a failure says what the process said."""
    command = [program, "task", plan, task, "--threads", str(threads), "--memory", memory]
    if scratch:
        command += ["--scratch", scratch]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = done.stdout[-MAX_SAID_BYTES:].decode(errors="replace").strip()
    if done.returncode != 0:
        raise RuntimeError(f"{task}: exit code {done.returncode}: {said}")
    return task


def is_done(plan, task):
    marks = pathlib.Path(plan["marks"])
    return (marks / task["id"]).exists() or (marks / task["step"]).exists()


def ready(plan, steps, left):
    """Tasks whose steps before are done, the largest first."""
    open_steps = {task["step"] for task in left.values()}
    found = [task for task in left.values() if not open_steps & set(steps[task["step"]]["after"])]
    return sorted(found, key=lambda task: (-task["weight_bytes"], task["part"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=pathlib.Path)
    parser.add_argument("--toroid-data", default="toroid-data", help="the program, on each node")
    parser.add_argument("--address", default="auto", help="of the cluster")
    parser.add_argument("--threads", type=int, default=1, help="of a task, and processors that it asks Ray for")
    parser.add_argument("--memory", default="2G", help="of a task")
    parser.add_argument("--scratch", help="a folder of each node for what is sorted on disk")
    parser.add_argument("--max-retries", type=int, default=20, help="times that a task whose process failed or died is started again")
    args = parser.parse_args()
    plan = json.loads(args.plan.read_text())
    steps = {step["name"]: step for step in plan["steps"]}
    ray.init(address=args.address, log_to_driver=False, logging_level="ERROR")
    # Ray counts deaths of workers and nodes; failures of the program, as on a node whose disk is full, are counted here.
    remote = ray.remote(num_cpus=args.threads, max_retries=args.max_retries)(run_task)
    # A worker that is killed leaves its process, which may end its task; doing it twice at once is harmless.
    start = lambda task: remote.remote(
        args.toroid_data, str(args.plan.resolve()), task["id"], args.threads, args.memory, args.scratch)
    left = {task["id"]: task for task in plan["tasks"] if not is_done(plan, task)}
    failures, running, began = {}, {}, time.monotonic()
    num_all = len(plan["tasks"])
    print(f"{len(left)} of {num_all} tasks to do", flush=True)
    while left:
        going = {task["id"] for task in running.values()}
        for task in ready(plan, steps, left):
            if task["id"] not in going:
                running[start(task)] = task
        ended, _ = ray.wait(list(running), num_returns=1)
        for ref in ended:
            task = running.pop(ref)
            try:
                ray.get(ref)
            except (ray.exceptions.RayError, RuntimeError) as error:
                if is_done(plan, task):
                    del left[task["id"]]
                    continue
                failures[task["id"]] = failures.get(task["id"], 0) + 1
                reason = str(error).strip().splitlines()[-1]
                print(f"{task['id']} failed for the {failures[task['id']]}. time: {reason}", file=sys.stderr, flush=True)
                if failures[task["id"]] > args.max_retries:
                    sys.exit(f"{task['id']} failed {failures[task['id']]} times; the last time: {error}")
                continue
            del left[task["id"]]
            print(f"{num_all - len(left)}/{num_all} {task['id']}", flush=True)
    print(f"done in {time.monotonic() - began:.1f} s, {sum(failures.values())} failures", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
