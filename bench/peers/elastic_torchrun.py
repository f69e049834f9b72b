"""Orchestrates torchrun fault experiments: 4 single-process "nodes" on loopback.
usage: elastic_torchrun.py SCENARIO CONF REPS OUT.jsonl
  SCENARIO base | worker | node_spare | node_shrink | node_rejoin | host
    base        undisturbed run, all steps (the loss trajectory)
    worker      kill -9 one worker process; its agent lives
    node_spare  kill -9 agent and worker of one node; nnodes=4, a fifth agent has been waiting since the start
    node_shrink the same, nnodes=3:4, nobody replaces it
    node_rejoin the same, nnodes=3:4, a new agent is started the moment the node is killed
    single      one agent with four workers (nnodes=1), kill -9 one worker
    host        kill -9 the agent that hosts the rendezvous store (and its worker), spare standing by
  CONF stock | default | tuned
    stock   torchrun as it comes;  default: the same with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 (without it restarts meet
            stale keys and replacement nodes never get MASTER_ADDR, see pytorch issue 135712)
    tuned   default + rdzv keep-alive 1 s x 5, last_call 1 s, monitor 0.05 s
env: DATA, SCRATCH, STEPS (120), KILL_AT (50), CKPT_EVERY (20)"""
import glob, json, os, random, signal, subprocess, sys, time
here = os.path.dirname(os.path.abspath(__file__))
scen, conf, reps, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
STEPS, KILL_AT, EVERY = (int(os.environ.get(k, d)) for k, d in (("STEPS", 120), ("KILL_AT", 50), ("CKPT_EVERY", 20)))
TUNED = "keep_alive_interval=1,keep_alive_max_attempt=5,last_call_timeout=1"


def events(run):
    r = []
    for p in glob.glob(run + "/ev/*.jsonl"):
        for l in open(p):
            try:
                r.append(json.loads(l))
            except ValueError:
                pass
    return sorted(r, key=lambda e: e["t"])


def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def one(rep):
    run = f"{os.environ['SCRATCH']}/tr_{scen}_{conf}_{rep}_{os.getpid()}"
    os.makedirs(run + "/ev")
    env = dict(os.environ, RUN=run, STEPS=str(STEPS), CKPT_EVERY=str(EVERY), OMP_NUM_THREADS="1", PYTHONPATH=here)
    if conf != "stock":
        env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    port = random.randint(20000, 29000)
    nn = "1:1" if scen == "single" else "3:4" if scen in ("node_shrink", "node_rejoin") else "4:4"
    agents = []

    def agent():
        i = len(agents)
        log = open(f"{run}/agent{i}.log", "w")
        cmd = [sys.executable, "-m", "torch.distributed.run", "--nnodes", nn, "--nproc-per-node", "4" if scen == "single" else "1", "--max-restarts", "10",
               "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "j", "--local-addr", "127.0.0.1"]
        if conf == "tuned":
            cmd += ["--rdzv-conf", TUNED, "--monitor-interval", "0.05"]
        cmd += [here + "/train_torchrun.py"]
        agents.append(subprocess.Popen(cmd, env=env, stdout=log, stderr=log, cwd=run))

    res = dict(scen=scen, conf=conf, rep=rep)
    agent(); time.sleep(4)                     # the first one hosts the rendezvous
    for _ in range(0 if scen == "single" else 3):
        agent()
    deadline = time.time() + float(os.environ.get("LIMIT", 240))
    kill_t, pre, spare = None, None, False
    try:
        while time.time() < deadline:
            time.sleep(0.02 if kill_t else 0.1)
            ev = events(run)
            steps = [e for e in ev if e["ev"] == "step"]
            if steps and not spare and scen in ("node_spare", "host"):
                spare = True; agent(); time.sleep(6)       # the fifth agent, waiting
            if scen == "base":
                if sum(e["ev"] == "done" for e in ev) >= 4 or all(a.poll() is not None for a in agents):
                    break
                continue
            if not kill_t and steps and min(max(e["step"] for e in steps if e["pid"] == p) if any(e["pid"] == p for e in steps) else -1
                                            for p in {e["pid"] for e in ev if e["ev"] == "start"}) >= KILL_AT:
                st = {e["agent"]: e["pid"] for e in ev if e["ev"] == "start"}
                victim = agents[0] if scen in ("host", "single") else agents[2]
                w = next(e["pid"] for e in ev if e["ev"] == "start" and e["rank"] == 2) if scen == "single" else st[victim.pid]
                res["victim_rank"] = next(e["rank"] for e in ev if e["pid"] == w)
                kill_t = time.time()
                if scen in ("worker", "single"):
                    os.kill(w, signal.SIGKILL)
                else:
                    os.kill(victim.pid, signal.SIGKILL); os.kill(w, signal.SIGKILL)
                    if scen == "node_rejoin":
                        agent()
                time.sleep(0.3)
                pre = max(e["step"] for e in events(run) if e["ev"] == "step")
            elif kill_t:
                after = [e for e in steps if e["t"] > kill_t + 0.3]
                if after and max(e["step"] for e in after) >= min(STEPS - 1, pre + 15):
                    break
                if all(a.poll() is not None for a in agents):
                    res["job_dead_s"] = time.time() - kill_t
                    break
        else:
            res["timeout"] = True
    finally:
        for a in agents:
            if a.poll() is None:
                a.kill()
        for p in {e["pid"] for e in events(run) if e["ev"] == "start"}:
            if alive(p):
                os.kill(p, signal.SIGKILL)
        for a in agents:
            a.wait()
    ev = events(run)
    json.dump(ev, open(run + "/events.json", "w"))
    traj = {}
    for e in ev:
        if e["ev"] == "step" and e["rank"] == 0:
            traj[e["step"]] = e["loss"]                    # the last value of a re-done step
    res["traj"] = traj
    if kill_t:
        new = [e for e in ev if e["t"] > kill_t + 0.3]
        st = [e for e in new if e["ev"] == "step"]
        res.update(kill_step=pre, rel={k: round(min((e["t"] for e in new if e["ev"] == k), default=float("nan")) - kill_t, 2)
                                       for k in ("start", "import", "pg", "ready")})
        res["all_ready"] = round(max((e["t"] for e in new if e["ev"] == "ready"), default=float("nan")) - kill_t, 2)
        if st:
            res.update(next_step_s=round(st[0]["t"] - kill_t, 2), resumed_at=st[0]["step"], redone=pre - st[0]["step"] + 1,
                       new_progress_s=round(min((e["t"] for e in st if e["step"] > pre), default=float("nan")) - kill_t, 2),
                       world_after=st[-1]["world"], restarts_seen=len({e["pid"] for e in new if e["ev"] == "start"}))
    s0 = [e["t"] for e in ev if e["ev"] == "step" and e["rank"] == 0 and (not kill_t or e["t"] < kill_t)]
    d = sorted(b - a for a, b in zip(s0[5:], s0[6:]))
    res["step_ms"] = round(1e3 * d[len(d) // 2], 1) if d else None
    ck = [e["s"] for e in ev if e["ev"] == "ckpt"]
    res["ckpt_s"] = round(sorted(ck)[len(ck) // 2], 3) if ck else None
    return res


for r in range(reps):
    res = one(r)
    open(out, "a").write(json.dumps(res) + "\n")
    print({k: v for k, v in res.items() if k != "traj"}, flush=True)
