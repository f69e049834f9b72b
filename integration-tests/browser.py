"""Opens a dashboard in Chromium and looks at it as users do: pointer, keys, both schemes, a phone; kills, a coordinator that comes back.

usage: browser.py ADDRESS JOB OTHER_JOB [FOLDER for pictures]

What a browser cannot do it has done by whoever started it: `please WHAT` is a line of its output, and the answer one of its input.
Waits are for something to be seen. Times are printed and not judged: they say how busy the machine is.
"""
import json
import os
import pathlib
import re
import shutil
import sys
import time

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

# Nothing that is waited for here keeps away for so long, not even on a busy machine.
GIVEN_UP_AFTER_MS = 300_000
LOOK_EVERY_MS = 50
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PICTURES = {"light": {"width": 1500, "height": 1300}, "dark": {"width": 1500, "height": 1300}, "phone": {"width": 390, "height": 2300}}
GRAVE = ("serious", "critical")
PLACE = re.compile(r"place (\d+) at \((\d+), (\d+)\): (\w+); (?:(\S+) on|no worker)")
STEPS = re.compile(r"over ([\d,]+) steps, ([\d,]+) to ([\d,]+)")

# When something was first seen, by the clock that whoever kills has as well.
WATCH = """() => {
  const seen = window.seen = {};
  const before = document.querySelectorAll('#incidents li:not(.none)').length;
  const look = () => {
    const first = (name, is) => { if (is && !(name in seen)) seen[name] = Date.now(); };
    const incidents = document.querySelectorAll('#incidents li:not(.none)');
    first('place', / (dead|healing)/.test(document.getElementById('torus').getAttribute('aria-label')));
    first('incident', incidents.length > before);
    first('cost', incidents.length > before && !incidents[0].querySelector('.open'));
  };
  new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true });
}"""
# Pixels of a canvas that have a colour of the style sheet, or nearly: edges are blended.
PIXELS = """([id, name]) => {
  const canvas = document.getElementById(id), context = canvas.getContext('2d');
  const css = getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
  const wanted = [1, 3, 5].map((at) => parseInt(css.slice(at, at + 2), 16));
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  let found = 0;
  for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 200 && wanted.every((v, j) => Math.abs(data[i + j] - v) < 48)) found += 1;
  return found;
}"""


def please(what):
    print(f"please {what}", flush=True)
    return sys.stdin.readline().strip()


def expect(is_so, *what):
    if not is_so:
        raise AssertionError(" ".join(str(w) for w in what))


class Dashboard:
    def __init__(self, page, pictures):
        self.page, self.pictures = page, pictures

    def text(self, id):
        return self.page.text_content(f"#{id}")

    def label(self, id):
        return self.page.get_attribute(f"#{id}", "aria-label") or ""

    def wait(self, condition, *args):
        """For a function to be true. Playwright's own wait evaluates text within the page, which the page's policy forbids."""
        given_up_at = time.monotonic() + GIVEN_UP_AFTER_MS / 1000
        while not self.page.evaluate(condition, list(args)):
            expect(time.monotonic() < given_up_at, "waited in vain for", condition, *args)
            self.page.wait_for_timeout(LOOK_EVERY_MS)

    def wait_for_text(self, id, text):
        self.wait("([id, text]) => document.getElementById(id).textContent.includes(text)", id, text)

    def wait_for_label(self, id, text):
        self.wait("([id, text]) => document.getElementById(id).getAttribute('aria-label')?.includes(text)", id, text)

    def pixels(self, id, colour):
        return self.page.evaluate(PIXELS, [id, colour])

    def curve(self):
        """Number of steps, the first and the last."""
        return [int(n.replace(",", "")) for n in STEPS.search(self.label("curve")).groups()]

    def grows(self):
        num, first, last = self.curve()
        expect(num == last - first + 1, f"{num} steps from {first} to {last}: some are missing or there twice")
        self.wait("""([last]) => Number(/ to ([\\d,]+):/.exec(document.getElementById('curve').getAttribute('aria-label'))[1].replaceAll(',', '')) > last""", last + 3)

    def place(self):
        found = PLACE.search(self.text("place-read"))
        expect(found, self.text("place-read"))
        rank, x, y, state, worker = found.groups()
        return {"rank": int(rank), "x": int(x), "y": int(y), "state": state, "worker": worker or ""}

    def press(self, key):
        self.page.keyboard.press(key)

    def tab_to(self, id):
        """As far as the key goes: whoever has no pointer gets there."""
        for _ in range(60):
            self.press("Tab")
            if self.page.evaluate("document.activeElement.id") == id:
                return
        raise AssertionError(f"{id} cannot be reached by the Tab key")

    def places(self):
        """All of them by arrow keys, from edge to edge and around."""
        columns, rows = (int(n) for n in re.search(r"(\d+) by (\d+)", self.label("torus")).groups())
        self.press("ArrowRight")
        found = {}
        for _ in range(rows):
            for _ in range(columns):
                here = self.place()
                found[here["rank"]] = here
                self.press("ArrowRight")
                expect(self.place()["x"] == (here["x"] + 1) % columns, "right of", here, "is", self.place())
            self.press("ArrowDown")
        expect(len(found) == columns * rows, f"{columns} by {rows}, and keys come to", sorted(found))
        return found

    def choose(self, rank):
        for place in range(100):
            if self.place()["rank"] == rank:
                return
            self.press("ArrowDown" if place % 4 == 3 else "ArrowRight")
        raise AssertionError(f"keys do not come to place {rank}")

    def accessible(self, what):
        found = Axe().run(self.page).response["violations"]
        grave = [(v["id"], v["help"], [n["html"][:200] for n in v["nodes"]]) for v in found if v["impact"] in GRAVE]
        expect(not grave, what, json.dumps(grave, indent=1))

    def picture(self, name):
        """As large as what is worth a look; below it are paths and times of this run."""
        if not self.pictures:
            return
        before = self.page.viewport_size
        self.page.set_viewport_size(PICTURES[name])
        self.page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))); }")
        self.page.screenshot(path=str(self.pictures / f"dashboard-{name}.png"))
        self.page.set_viewport_size(before)


def look(dashboard, job, other):
    page = dashboard.page
    dashboard.wait_for_text("connection", "live")
    dashboard.wait_for_label("torus", "8 places, 4 by 2: 8 computing")
    expect(dashboard.text("job-title").startswith(job), dashboard.text("job-title"))

    dashboard.tab_to("torus")
    expected = {int(rank): worker for rank, worker in json.loads(please("places")).items()}
    found = dashboard.places()
    expect({rank: place["worker"] for rank, place in found.items()} == expected, found, "and not", expected)
    expect(dashboard.pixels("torus", "computing") > 0 and dashboard.pixels("torus", "dead") == 0, "colours of the places")
    dashboard.grows()

    page.select_option("#compare", other)
    dashboard.wait_for_label("curve", f"beside {other}")
    expect(dashboard.pixels("curve", "other") > 0, "the other run is not drawn")
    page.focus("#curve")
    dashboard.press("ArrowLeft")
    expect(dashboard.text("curve-read").startswith("step "), dashboard.text("curve-read"))
    page.check("#log")
    page.fill("#smoothing", "0.9")
    dashboard.wait_for_label("curve", "smoothed")
    dashboard.accessible("light")
    page.emulate_media(color_scheme="dark")
    dashboard.wait("() => getComputedStyle(document.body).backgroundColor === 'rgb(15, 19, 25)'")
    dashboard.accessible("dark")
    page.emulate_media(color_scheme="light")
    page.uncheck("#log")
    page.fill("#smoothing", "0")


def death(dashboard):
    """A worker dies, and nobody is there to take its place until others come."""
    page = dashboard.page
    page.focus("#torus")
    dashboard.choose(5)
    page.evaluate(WATCH)
    killed = int(please("kill 5"))
    dashboard.wait("() => seen.place && seen.incident")
    dashboard.wait_for_label("torus", "1 dead")
    expect(dashboard.place()["state"] == "dead", dashboard.place())
    expect(dashboard.pixels("torus", "dead") > 0, "the dead place is not drawn as one")
    dashboard.wait_for_text("incidents", "goes on")
    expect(not page.evaluate("'cost' in seen"), "its cost is shown before it has ended")
    please("add 2")
    dashboard.wait("() => seen.cost")
    seen = page.evaluate("seen")
    expect("cost " in dashboard.text("incidents"), dashboard.text("incidents"))
    dashboard.wait_for_label("torus", "8 computing")
    words = ", ".join(f"its {name} after {seen[name] - killed} ms" for name in ("place", "incident", "cost"))
    print(f"a worker was killed: the page shows {words}")


def kill_by_button(dashboard):
    page = dashboard.page
    page.focus("#torus")
    dashboard.choose(2)
    victim = dashboard.place()["worker"]
    page.click("#kill")
    expect(victim in dashboard.text("ask-title"), dashboard.text("ask-title"))
    dashboard.accessible("a question")
    page.click("#ask button[value=no]")
    expect(please(f"lives {victim}") == "true", "it was killed though the user left it")
    page.click("#kill")
    page.click("#ask button[value=yes]")
    expect(please(f"end {victim}") == "signal 9", "another end than SIGKILL's")
    dashboard.wait("() => document.querySelectorAll('#incidents li:not(.none)').length === 2 && !document.querySelector('#incidents .open')")
    dashboard.wait_for_label("torus", "8 computing")
    expect(dashboard.place()["rank"] == 2 and dashboard.place()["worker"] != victim, dashboard.place())
    dashboard.grows()


def coordinator_comes_back(dashboard):
    """Steps go on meanwhile; the page goes on where it was."""
    page = dashboard.page
    please("restart")
    dashboard.wait_for_text("connection", "live")
    dashboard.wait_for_label("torus", "8 computing")
    dashboard.grows()
    dashboard.grows()
    expect(page.evaluate("document.querySelectorAll('#incidents li:not(.none)').length") == 2, dashboard.text("incidents"))


def phone(dashboard):
    page = dashboard.page
    page.set_viewport_size(PHONE)
    dashboard.wait("() => innerWidth === 390")
    width = page.evaluate("document.documentElement.scrollWidth")
    expect(width <= PHONE["width"], f"{width} pixels are wider than a phone")
    dashboard.wait_for_label("torus", "8 computing")
    page.emulate_media(color_scheme="dark")
    dashboard.accessible("a phone")


def main(address, job, other, pictures=None):
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    expect(executable, "chromium is missing: run scripts/setup.sh (make test does)")
    # No name leads anywhere: what is loaded is on this machine.
    flags = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    if os.getuid() == 0:
        # Chromium's own sandbox does not run as root.
        flags.append("--no-sandbox")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=flags)
        page = browser.new_page(viewport=DESKTOP, color_scheme="light")
        page.set_default_timeout(GIVEN_UP_AFTER_MS)
        errors, urls, is_away = [], [], False

        def said(message):
            # While the coordinator is away, what the browser says of refused requests is so.
            if message.type == "error" and not (is_away and message.text.startswith("Failed to load resource")):
                errors.append(message.text)

        page.on("console", said)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: urls.append(request.url))
        page.goto(address)
        dashboard = Dashboard(page, pathlib.Path(pictures) if pictures else None)
        try:
            look(dashboard, job, other)
            death(dashboard)
            dashboard.picture("light")
            page.emulate_media(color_scheme="dark")
            dashboard.picture("dark")
            page.emulate_media(color_scheme="light")
            kill_by_button(dashboard)
            is_away = True
            coordinator_comes_back(dashboard)
            phone(dashboard)
            dashboard.picture("phone")
        except BaseException:
            for id in ("connection", "job-title", "place-read", "incidents"):
                print(f"{id}: {dashboard.text(id)[:2000]}")
            print("labels:", dashboard.label("torus"), "|", dashboard.label("curve"), "| console:", errors)
            raise
        expect(not errors, "the console has errors:", errors)
        own = address.split("/#")[0] + "/"
        elsewhere = [url for url in urls if not url.startswith((own, "data:"))]
        expect(urls and not elsewhere, "requests leave the page's own address:", elsewhere)
        browser.close()
    print("all that was looked for was seen")


main(*sys.argv[1:])
