"""What the dashboard's page costs whoever looks at a job of thousands of places, and how soon it shows a death.

`toroid bench fleet --hold` runs a coordinator with workers whose trainers are played, which make a step a second; the page is opened in the
system's Chromium. Printed as JSON: processor time of the page's own process over that time (1 is a whole core), of all of Chromium, and where
within the page it went (CDP `Performance.getMetrics`); then milliseconds from the request to kill a worker to the page that shows it.

    python bench/dashboard.py --toroid target/release/toroid --places 2048 --seconds 30        (`make bench-dashboard`)
"""
import argparse, json, os, pathlib, shutil, signal, statistics, subprocess, sys, tempfile, time

from playwright.sync_api import sync_playwright

GIVEN_UP_AFTER_MS = 120_000
METRICS = ("TaskDuration", "ScriptDuration", "LayoutDuration", "RecalcStyleDuration")
SPARES = 64

# Kills the worker of a place and resolves with the milliseconds until the newest incident is another one, as the page shows it.
KILL = """async (rank) => {
  const token = sessionStorage.getItem('toroid-token'), headers = { authorization: `Bearer ${token}` };
  const id = new URLSearchParams(location.search).get('job');
  const job = await (await fetch(`/api/jobs/${id}`, { headers })).json();
  const worker = job.places[rank].worker_id;
  const newest = () => document.querySelector('#incidents li')?.textContent ?? '';
  const before = newest(), start = performance.now();
  const answer = await fetch(`/api/workers/${worker}/kill`, { method: 'POST', headers });
  if (!answer.ok) throw new Error(await answer.text());
  while (newest() === before) await new Promise((done) => requestAnimationFrame(done));
  return performance.now() - start;
}"""


def cpu_s(pid):
    """Processor time of a process so far, in the kernel too."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def processes(browser):
    return browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]


def measure(address, num_places, seconds, kills):
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if not executable:
        sys.exit("chromium is missing: run scripts/setup.sh")
    flags = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(GIVEN_UP_AFTER_MS)
        page.goto(address)

        def wait(condition, *args):
            given_up_at = time.monotonic() + GIVEN_UP_AFTER_MS / 1000
            while not page.evaluate(condition, list(args)):
                if time.monotonic() > given_up_at:
                    sys.exit(f"waited in vain for {condition}: {page.get_attribute('#torus', 'aria-label')}")
                page.wait_for_timeout(100)

        is_whole = "([n]) => document.getElementById('torus').getAttribute('aria-label')?.includes(`: ${n} computing`)"
        wait(is_whole, num_places)
        cdp = page.context.new_cdp_session(page)
        cdp.send("Performance.enable")
        metrics = lambda: {m["name"]: m["value"] for m in cdp.send("Performance.getMetrics")["metrics"] if m["name"] in METRICS}
        page.wait_for_timeout(5000)
        renderers = [p["id"] for p in processes(browser) if p["type"] == "renderer"]
        before, times, start = metrics(), {p["id"]: cpu_s(p["id"]) for p in processes(browser)}, time.monotonic()
        page.wait_for_timeout(1000 * seconds)
        elapsed, after = time.monotonic() - start, metrics()
        used = {pid: cpu_s(pid) - t for pid, t in times.items()}
        shown = [page.evaluate(KILL, 17 + 31 * n) for n in range(kills) if not wait(is_whole, num_places)]
        found = {
            "places": num_places,
            "chromium": browser.version,
            "seconds": round(elapsed, 1),
            "page_cores": round(sum(used[pid] for pid in renderers) / elapsed, 4),
            "chromium_cores": round(sum(used.values()) / elapsed, 4),
            "page_shares": {name: round((after[name] - before[name]) / elapsed, 4) for name in METRICS},
            "kill_to_page_ms": {"median": round(statistics.median(shown)), "worst": round(max(shown)), "num": len(shown)} if shown else None,
        }
        browser.close()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--toroid", required=True)
    parser.add_argument("--places", type=int, default=2048)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--kills", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [args.toroid, "bench", "fleet", "--hold", "--workers", str(args.places + SPARES), "--spares", str(SPARES), "--dir", folder]
        fleet = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            address, job = fleet.stdout.readline().split()
            page, key = address.split("#")
            print(json.dumps(measure(f"{page}?job={job}#{key}", args.places, args.seconds, args.kills), indent=1))
        finally:
            fleet.send_signal(signal.SIGINT)
            fleet.wait()


main()
