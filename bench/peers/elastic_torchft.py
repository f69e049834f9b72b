"""Orchestrates torchft fault experiments: lighthouse + 4 replica groups of one process each, loopback.
usage: elastic_torchft.py SCENARIO CONF REPS OUT.jsonl
  SCENARIO base       undisturbed
           restart    kill -9 replica 2, start it again at once (cold python)
           standby    a fifth replica (process already imported, FIXED_WITH_SPARES, min 4) takes part as a spare; kill -9 replica 2, no restart
           shrink     kill -9 replica 2, nobody replaces it
           lighthouse kill -9 the lighthouse at KILL_AT, restart it 5 s later on the same port
           light_dead kill -9 the lighthouse, never restart
  CONF default (README lighthouse flags, 100 ms heartbeats, 5 s expiry) | tuned (500 ms expiry, tick 20 ms, join 1 s, heartbeat 50 ms)
       either may carry +pg (PGTransport instead of HTTP) or +retry (quorum_retries=20, quorum timeout 60 s as it comes; +retry10: 10 s) or +gloo1 (gloo timeout 1 s instead of 5)
env: DATA, SCRATCH, STEPS (120), KILL_AT (50), FT_PATH (folder of an unpacked torchft wheel to use instead of the installed one)"""
import glob, json, os, random, shutil, signal, subprocess, sys, time
here = os.path.dirname(os.path.abspath(__file__))
scen, conf, reps, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
STEPS, KILL_AT = int(os.environ.get("STEPS", 120)), int(os.environ.get("KILL_AT", 50))
tuned = conf.startswith("tuned")


def events(run):
    r = []
    for p in glob.glob(run + "/ev/*.jsonl"):
        for l in open(p):
            try:
                r.append(json.loads(l))
            except ValueError:
                pass
    return sorted(r, key=lambda e: e["t"])


def cpu(pid):
    f = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(f[11]) + int(f[12])) / os.sysconf("SC_CLK_TCK")


def one(rep):
    run = f"{os.environ['SCRATCH']}/ft_{scen}_{conf}_{rep}_{os.getpid()}"
    os.makedirs(run + "/ev")
    port = random.randint(20000, 29000)
    spares = scen == "standby" or os.environ.get("SPARES")
    env = dict(os.environ, RUN=run, STEPS=str(STEPS), OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(filter(None, [os.environ.get("FT_PATH"), here])), TORCHFT_LIGHTHOUSE=f"http://127.0.0.1:{port}",
               MIN="4" if spares else "2", MODE="spares" if spares else "dynamic", TRANSPORT="pg" if "+pg" in conf else "http")
    if "+retry" in conf:
        env.update(QRETRY="20")
        if "+retry10" in conf:
            env.update(QUORUM_S="10", CONNECT_S="2")
    if "+gloo1" in conf:
        env["PG_S"] = "1"
    if tuned:
        env.update(HB_MS="50")
    procs = []

    def light():
        flags = ["--quorum_tick_ms", "20", "--join_timeout_ms", "1000", "--heartbeat_timeout_ms", "500"] if tuned else \
                ["--quorum_tick_ms", "100", "--join_timeout_ms", "10000"]
        lg = open(run + "/lighthouse.log", "a")
        return subprocess.Popen([shutil.which("torchft_lighthouse"), "--bind", f"[::]:{port}", "--min_replicas", "4" if spares else "2"] + flags,
                                stdout=lg, stderr=lg, env=env)

    def replica(rid):
        lg = open(f"{run}/r{rid}.log", "a")
        procs.append(subprocess.Popen([sys.executable, here + "/train_torchft.py"], env=dict(env, RID=str(rid)), stdout=lg, stderr=lg, cwd=run))
        return procs[-1]

    res = dict(scen=scen, conf=conf, rep=rep)
    lh = light(); time.sleep(0.5)
    n = 5 if scen == "standby" else 4
    reps_ = {i: replica(i) for i in range(n)}
    kill_t, pre, relit, deadline = None, None, None, time.time() + float(os.environ.get("LIMIT", 150))
    cpu0 = t0 = None
    victim = 2
    try:
        while time.time() < deadline:
            time.sleep(0.02 if kill_t else 0.1)
            ev = events(run)
            ok = [e for e in ev if e["ev"] == "step" and e["ok"]]
            top = max((e["step"] for e in ok), default=-1)
            if cpu0 is None and top >= 5:
                cpu0, t0 = cpu(lh.pid), time.time()
            if scen == "base":
                if sum(e["ev"] == "done" for e in ev) >= n or all(p.poll() is not None for p in procs):
                    break
                if cpu0 is not None and lh.poll() is None:
                    res["lh_cpu_pct"] = round(100 * (cpu(lh.pid) - cpu0) / max(1e-9, time.time() - t0), 2)
            elif not kill_t and top >= KILL_AT:
                if lh.poll() is None:
                    res["lh_cpu_pct"] = round(100 * (cpu(lh.pid) - cpu0) / (time.time() - t0), 2)
                kill_t = time.time()
                if scen.startswith("light"):
                    lh.kill()
                else:
                    reps_[victim].kill()
                    if scen == "restart":
                        new = replica(victim)
                time.sleep(0.15)
                pre = max(e["step"] for e in events(run) if e["ev"] == "step" and e["ok"])
            elif kill_t:
                if scen == "lighthouse" and not relit and time.time() > kill_t + 5:
                    relit = time.time(); lh = light(); res["relit_s"] = round(relit - kill_t, 2)
                late = [e for e in ok if e["t"] > kill_t]
                if scen in ("shrink", "standby") and late and top >= pre + 20:
                    break
                if scen == "restart" and sum(e["pid"] == new.pid and e["part"] for e in ok) >= 15:
                    break
                if scen.startswith("light") and top >= STEPS - 1:
                    break
                live = [p for p in procs if p.poll() is None]
                if not live:
                    res["job_dead_s"] = round(time.time() - kill_t, 2)
                    break
        else:
            res["timeout"] = True
    finally:
        res["exits"] = [p.poll() for p in procs]
        for p in procs + [lh]:
            if p.poll() is None:
                p.kill()
        for p in procs + [lh]:
            p.wait()
    ev = events(run)
    json.dump(ev, open(run + "/events.json", "w"))
    ok = [e for e in ev if e["ev"] == "step" and e["ok"]]
    src = 0
    res["traj"] = {e["step"]: e["loss"] for e in ok if e["rid"] == src}
    res["n_traj"] = {e["step"]: e["n"] for e in ok if e["rid"] == src}
    if kill_t:
        after = [e for e in ok if e["t"] > kill_t + 0.1 and e["rid"] != victim and e["step"] > pre]
        bad = [e for e in ev if e["ev"] == "step" and not e["ok"] and e["t"] > kill_t - 0.5]
        res.update(kill_step=pre, steps_done_after=len({e["step"] for e in after}), failed_attempts=len(bad), failed_by_replica={r: sum(e["rid"] == r for e in bad) for r in range(n)})
        if after:
            res.update(next_step_s=round(after[0]["t"] - kill_t, 2), world_then=after[0]["n"], last_step=max(e["step"] for e in after))
            gaps = [b["t"] - a["t"] for a, b in zip([dict(t=kill_t)] + [e for e in after if e["rid"] == 0], [e for e in after if e["rid"] == 0])]
            res["longest_gap_s"] = round(max(gaps), 2)
        if scen == "restart":
            mine = [e for e in ev if e["pid"] == new.pid]
            res["rejoin"] = {k: round(min((e["t"] for e in mine if e["ev"] == k), default=float("nan")) - kill_t, 2) for k in ("start", "import", "ready")}
            got = [e for e in mine if e["ev"] == "step" and e["ok"]]
            res["rejoin_first_commit_s"] = round(min((e["t"] for e in got), default=float("nan")) - kill_t, 2)
            res["rejoin_participates_s"] = round(min((e["t"] for e in got if e["part"]), default=float("nan")) - kill_t, 2)
            res["full_world_s"] = round(min((e["t"] for e in after if e["n"] == 4), default=float("nan")) - kill_t, 2)
            res["steps_with_3"] = len({e["step"] for e in after if e["n"] == 3})
    for r in (0,):
        s0 = [e["t"] for e in ok if e["rid"] == r and (not kill_t or e["t"] < kill_t)]
        d = sorted(b - a for a, b in zip(s0[5:], s0[6:]))
        res["step_ms"] = round(1e3 * d[len(d) // 2], 1) if d else None
    return res


for r in range(reps):
    res = one(r)
    open(out, "a").write(json.dumps(res) + "\n")
    print({k: v for k, v in res.items() if k not in ("traj", "n_traj")}, flush=True)
