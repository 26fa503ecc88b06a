"""The page in a real browser, on a real server whose trials run without Ray."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import search.job
from amc_env.weights import save_weights
from amc_env.zoo import cifar_resnet
from search.spec_models import Spec
from search.trial import plan_trials, run_trial

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
expect = playwright.expect
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt-get install chromium")

ROOT = Path(__file__).parents[3]
PATIENCE_MS = 60_000
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>alert(1)</script>"
TOKEN = "0123456789abcdef"
GUARDED = f"""
import sys
from pathlib import Path
from search.service.server import serve
from search.service.service import Settings
serve(Settings(Path(sys.argv[1]), token={TOKEN!r}), "127.0.0.1", int(sys.argv[2]))
"""
TOY: dict[str, Any] = {
    "version": 1,
    "name": "toy",
    "network": {"kind": "toy", "decisions": 4},
    "budget": {"macs": "50%"},
    "agents": [{"kind": "random"}, {"kind": "uniform"}],
    "seeds": [0, 1],
    "evaluations": 8,
}
SLOW = {**TOY, "name": "slow", "network": {**TOY["network"], "seconds_per_evaluation": 0.1}, "evaluations": 5000}

#: what the browser refused, by policy; filled before the page's own scripts run
WATCH_POLICY = "addEventListener('securitypolicyviolation', e => (window.refused ??= []).push(e.violatedDirective))"
#: of all text that is seen: those whose contrast with what lies behind it is below WCAG's AA
FAINT = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((value, index) => value * a + under[index] * (1 - a));
  const behind = (element) => {
    if (!element) return [1, 1, 1];
    return over(rgba(getComputedStyle(element).backgroundColor), behind(element.parentElement));
  };
  const opacity = (element) => (element ? getComputedStyle(element).opacity * opacity(element.parentElement) : 1);
  const light = (rgb) => rgb.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, index) => sum + v * [0.2126, 0.7152, 0.0722][index], 0);
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility({ visibilityProperty: true })) continue;
    if (element.closest('title, .hidden, .skip, option, :disabled') || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const colour = rgba(element instanceof SVGElement ? style.fill : style.color);
    colour[3] *= opacity(element);
    const under = behind(element);
    const [dark, bright] = [light(over(colour, under)), light(under)].sort((a, b) => a - b);
    const least = parseFloat(style.fontSize) >= 24 ? 3 : 4.5;
    if ((bright + 0.05) / (dark + 0.05) < least) faint.push(`${element.tagName}: ${walker.currentNode.data.trim()}`);
  }
  return faint;
}"""
UNNAMED = """() => [...document.querySelectorAll('input, select, button, progress, [role=region], [role=log]')]
  .filter((e) => !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim() || e.ariaHidden))
  .map((e) => e.outerHTML)"""


class Site:
    """A server in a process of its own; its jobs by the names that the tests give them."""

    def __init__(self, data: Path, command: Sequence[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.data, self.url, self.jobs = data, f"http://127.0.0.1:{self.port}", dict[str, str]()
        self._command = [sys.executable, *command, str(data), str(self.port)]
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(self._command, env=environment, stdout=subprocess.DEVNULL)
        while self._process.poll() is None and not self._answers():
            time.sleep(0.1)
        assert self._process.poll() is None, "the server did not start"

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """End the server alone, without warning; its jobs go on."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """End the server and the drivers, which hold the locks of their jobs."""
        self.kill()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and str(self.data) in (entry / "cmdline").read_text():
                    os.kill(int(entry.name), signal.SIGKILL)

    def submit(self, spec: dict[str, Any], name: str) -> None:
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.url}/api/jobs", json.dumps(spec).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            self.jobs[name] = json.load(answer)["id"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two jobs of one problem, one of another, one that runs until it is cancelled, and a hostile folder."""
    data = tmp_path_factory.mktemp("page") / "data"
    run_here(data / "jobs" / "first", TOY)
    run_here(data / "jobs" / "second", {**TOY, "seeds": [2, 3]})
    run_here(data / "jobs" / "smaller", {**TOY, "name": "smaller", "network": {"kind": "toy", "decisions": 3}})
    made = Site(data, [str(ROOT / "scripts" / "_toy_service.py"), "serve"])
    try:
        write_hostile_job(data / "jobs" / "hostile")
        made.submit(SLOW, "slow")
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An empty server with a token."""
    made = Site(tmp_path_factory.mktemp("guarded") / "data", ["-c", GUARDED])
    yield made
    made.end()


def run_here(folder: Path, spec: dict[str, Any]) -> None:
    """Run a job as `amc run` does, in this process, its trials one after the other."""

    def search_here(job: Any, place: Path, pending: list[str], on_progress: Any) -> None:
        for trial in plan_trials(job.spec):
            run_trial(job.spec, job.problem, trial.agent, trial.seed, place / "trials" / trial.name, on_progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.job, "_search", search_here)
        search.job.run_job(Spec.model_validate(spec), folder)


def write_hostile_job(folder: Path) -> None:
    """A folder that was tampered with: its name, its log and the error of a trial are markup."""
    trial = folder / "trials" / "random-seed0"
    trial.mkdir(parents=True)
    (folder / "log.txt").write_text(HOSTILE)
    (trial / "error.txt").write_text(HOSTILE)
    (folder / "lock").touch()
    (folder / "spec.yaml").write_text(yaml.safe_dump({**TOY, "name": HOSTILE, "network": {"kind": HOSTILE}}))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(viewport={"width": 1200, "height": 900})
    made.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page on which nothing may be refused by its policy, and no script may fail."""
    faults: list[str] = []
    context.add_init_script(WATCH_POLICY)
    made = context.new_page()
    made.on("pageerror", lambda error: faults.append(str(error)))
    yield made
    assert faults == []
    assert made.evaluate("window.refused ?? []") == []


def open_list(page: Page, site: Site) -> None:
    page.goto(site.url)
    expect(page.locator(".jobs tbody tr")).to_have_count(5)


def evaluations_pass(page: Page, count: int) -> None:
    """Wait until the first trial has made so many more evaluations."""
    cell = page.locator("table.trials tbody tr").first.locator("td").nth(1)
    before = int((cell.text_content() or "").split()[0])
    page.wait_for_function(
        "least => parseInt(document.querySelector('table.trials tbody td:nth-child(3)').textContent) >= least",
        arg=before + count,
    )


def cancel_and_delete(page: Page) -> None:
    """Of the job that the page shows."""
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".standing-line .state")).to_have_class("state cancelled")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    expect(page.locator("h1")).to_have_text("Jobs")


def test_the_list_is_filtered_sorted_and_left_by_keyboard(page: Page, site: Site) -> None:
    open_list(page, site)
    rows = page.locator(".jobs tbody tr")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.get_by_role("searchbox").focus()
    page.keyboard.type("small")
    expect(rows).to_have_count(1)
    expect(rows.locator(".name a")).to_have_text("smaller")
    expect(page).to_have_url(re.compile("q=small"))  # it follows what is typed a little later
    page.get_by_role("searchbox").fill("")
    expect(rows).to_have_count(5)
    page.get_by_role("radio", name=re.compile("^all")).focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name=re.compile("^active"))).to_be_checked()
    expect(page.locator(".jobs .name a", has_text="slow")).to_have_count(1)
    page.keyboard.press("ArrowLeft")
    expect(rows).to_have_count(5)
    page.get_by_role("button", name="Job", exact=True).press("Enter")
    expect(page.get_by_role("columnheader", name="Job")).to_have_attribute("aria-sort", "ascending")
    names = rows.locator(".name a")
    expect(names).to_have_text([HOSTILE, "slow", "smaller", "toy", "toy"])
    names.nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("slow")
    expect(page.locator("h1")).to_be_focused()
    page.goto(f"{site.url}/#/jobs/%zz")
    expect(page.locator("h1")).to_have_text("There is no such page")
    page.go_back()
    page.go_back()
    expect(names).to_have_text([HOSTILE, "slow", "smaller", "toy", "toy"])


def test_the_form_shows_the_spec_and_its_faults_where_they_are(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/#/new")
    spec, fault = page.locator("pre.spec"), page.locator("#g-budget-fault")
    expect(spec).to_contain_text("budget: {macs: 50%}")
    page.get_by_label("MACs").fill("")
    expect(fault).to_contain_text("expected at least one limit")
    page.get_by_label("Size").fill("40%")
    expect(spec).to_contain_text("budget: {size: 40%}")
    expect(fault).to_be_empty()
    evaluations = page.get_by_label("Evaluations of each trial")
    evaluations.fill("none")
    page.get_by_role("button", name="Start the search").click()
    expect(evaluations).to_be_focused()
    expect(evaluations).to_have_attribute("aria-invalid", "true")
    evaluations.fill("3")
    page.get_by_label("Seeds").fill("0 0")
    expect(page.locator("#f-seeds-fault")).to_contain_text("expected each seed once")
    page.get_by_label("Seeds").fill("0")
    page.get_by_role("checkbox", name="ddpg", exact=True).uncheck()
    page.get_by_label("Name of the job").fill("from-the-form")
    expect(page.locator("aside")).to_contain_text("Valid: 4 trials, at most 12 evaluations.")
    page.get_by_role("button", name="Start the search").press("Enter")
    expect(page.locator("h1")).to_have_text("from-the-form")
    expect(page.locator(".job-head .facts")).to_contain_text("budget size ≤ 40.0")
    cancel_and_delete(page)
    expect(page.get_by_role("link", name="from-the-form")).to_have_count(0)


def test_the_form_takes_over_the_evaluations_of_a_job(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/#/new")
    earlier = page.get_by_label("Take over the evaluations of")
    expect(earlier.locator("option", has_text="toy, first")).to_have_count(1)
    earlier.select_option("first")
    page.get_by_role("button", name="Edit as text").click()
    page.get_by_label("The spec as text").fill(yaml.safe_dump({**TOY, "name": "more"}))
    with page.expect_request(lambda asked: asked.method == "POST" and "/api/jobs" in asked.url) as asked:
        page.get_by_role("button", name="Start the search").click()
    assert asked.value.url == f"{site.url}/api/jobs?known=first"
    expect(page.locator("h1")).to_have_text("more")
    cancel_and_delete(page)


def test_the_form_takes_a_pattern_of_weights(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/#/new")
    page.get_by_label("Network", exact=True).select_option("digits")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Granularity").fill("2:x")
    expect(page.locator("#f-pruning-granularity-fault")).to_contain_text("got '2:x'")
    page.get_by_label("Granularity").fill("2:4")
    expect(page.locator("pre.spec")).to_contain_text('pruning: {granularity: "2:4"}')
    expect(page.locator("#f-pruning-granularity-fault")).to_be_empty()
    expect(page.locator("aside .facts")).to_contain_text("Valid")


def test_the_spec_is_edited_as_text_and_back(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/#/new")
    text, verdict = page.get_by_label("The spec as text"), page.locator("aside .facts")
    expect(verdict).to_contain_text("Valid:")
    page.get_by_role("button", name="Edit as text").click()
    expect(text).to_be_focused()
    assert "budget: {macs: 50%}" in text.input_value()
    text.fill(yaml.safe_dump({**TOY, "evaluatoins": 3}))
    expect(page.get_by_role("alert")).to_contain_text("evaluatoins")
    text.fill(yaml.safe_dump({**TOY, "name": "typed"}))
    expect(verdict).to_have_text("Valid: 3 trials, at most 24 evaluations.")
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Back to the form").click()
    expect(text).to_be_visible()
    page.get_by_role("button", name="Start the search").click()
    expect(page.locator("h1")).to_have_text("typed")
    cancel_and_delete(page)


def test_weights_are_uploaded_and_chosen(page: Page, site: Site, tmp_path: Path) -> None:
    page.goto(f"{site.url}/#/new")
    page.get_by_text("Weights of your own").click()
    send, fault = page.get_by_role("button", name="Upload"), page.locator("details .error-line")
    send.click()
    expect(fault.first).to_have_text("Choose a file first.")
    (tmp_path / "bad.pt").write_bytes(b"no tensors")
    page.get_by_label("File").set_input_files(tmp_path / "bad.pt")
    send.click()
    expect(fault.first).to_contain_text("expected a safetensors file, or a state_dict")
    save_weights(cifar_resnet(8), tmp_path / "my net.pt")
    page.get_by_label("File").set_input_files(tmp_path / "my net.pt")
    page.get_by_label("Depth").fill("8")
    send.click()
    expect(page.get_by_label("Network", exact=True)).to_have_value("my-net.pt")
    expect(page.locator("pre.spec")).to_contain_text("kind: cifar_resnet, depth: 8, classes: 10, weights: my-net.pt")


def test_a_running_job_is_drawn_through_a_restart_of_the_server_and_cancelled(page: Page, site: Site) -> None:
    events: list[int] = []
    page.on("request", lambda request: events.append(int(request.headers.get("last-event-id", 0))))
    page.goto(f"{site.url}/#/jobs/{site.jobs['slow']}")
    state = page.locator(".standing-line .state")
    expect(state).to_have_class("state running")
    expect(page.locator(".log")).to_contain_text("random-seed0: running")
    curve = page.locator(".part-progress .plot.wide path.curve.thin.c0").first
    expect(curve).to_be_visible()
    drawn = curve.get_attribute("d") or ""
    evaluations_pass(page, 20)
    expect(curve).not_to_have_attribute("d", drawn)
    place = page.evaluate("document.querySelector('.trials-and-log').offsetTop")
    site.kill()
    expect(page.locator("#away")).to_contain_text("The server does not answer")
    expect(page.locator(".log")).to_contain_text("random-seed0: running")
    events.clear()
    site.start()
    expect(page.locator("#away")).to_be_empty()
    evaluations_pass(page, 20)
    assert max(events) > 0  # the stream goes on after the last event seen
    assert page.evaluate("document.querySelector('.trials-and-log').offsetTop") == place
    page.get_by_role("button", name="Cancel").focus()
    page.keyboard.press("Enter")
    expect(state).to_have_class("state cancelled")
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    expect(page.locator("#said")).to_have_text("slow: cancelled")


def test_jobs_are_compared_in_one_drawing_or_side_by_side(page: Page, site: Site) -> None:
    open_list(page, site)
    compare = page.get_by_role("button", name=re.compile("^Compare"))
    for name in ("first", "second"):
        expect(compare).to_be_disabled()
        page.get_by_role("checkbox", name=f"Compare toy, {name}").check()
    compare.click()
    expect(page.locator("h1")).to_have_text("2 jobs compared")
    expect(page.locator(".legend").first).to_contain_text("random (toy (2))")
    expect(page.locator(".columns")).to_be_hidden()
    page.goto(f"{site.url}/#/compare?ids=first&ids=smaller")
    expect(page.locator(".caveats")).to_contain_text("network")
    expect(page.locator(".columns > div h2.job-name")).to_have_text(["toy", "smaller"])


def test_what_others_named_is_text(page: Page, site: Site) -> None:
    open_list(page, site)
    expect(page.get_by_role("link", name=HOSTILE)).to_be_visible()
    page.get_by_role("link", name=HOSTILE).click()
    expect(page.locator("h1")).to_have_text(HOSTILE)
    expect(page.locator(".log")).to_contain_text(HOSTILE)
    page.get_by_text("Error", exact=True).click()
    expect(page.locator("table.trials pre.error")).to_have_text(HOSTILE)
    assert page.locator("main img").count() == 0
    assert page.title() == f"{HOSTILE} · amc"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_every_width_and_can_be_read(page: Page, site: Site, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    views = {
        "/": ".jobs a",
        "/new": ".spec",
        "/jobs/first": ".part-layers td",
        "/compare?ids=first&ids=second": ".legend",
    }
    for view, shown in views.items():
        page.goto(f"{site.url}/#{view}")
        page.locator(f"main {shown}").first.wait_for()
        for width in (360, 1200, 3840):
            page.set_viewport_size({"width": width, "height": 900})
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, (view, width)
            assert page.evaluate(FAINT) == []
        assert page.evaluate(UNNAMED) == []
    assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 26)") == (scheme == "dark")


def test_the_token_is_asked_for_once_and_an_empty_server_says_how_to_begin(page: Page, guarded: Site) -> None:
    page.goto(guarded.url)
    dialog = page.get_by_role("dialog")
    for given, said in (("wrong-wrong-wrong", ""), (TOKEN, "The server did not accept this token.")):
        expect(dialog).to_be_visible()
        expect(page.locator("#token-error")).to_have_text(said)
        page.get_by_label("Token", exact=True).fill(given)
        page.keyboard.press("Enter")
    expect(page.locator("main")).to_contain_text("amc submit examples/digits-latency.yaml --wait")
    page.reload()
    expect(page.locator("main")).to_contain_text("No jobs yet")
    expect(dialog).not_to_be_visible()
