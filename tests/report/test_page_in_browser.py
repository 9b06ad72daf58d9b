"""The page as a person meets it, in Chromium: needs the package playwright and a browser named chromium."""

import csv
import io
import re
import shutil
import xml.etree.ElementTree as ET

import pytest

from rmtjax import CLAIMS
from rmtjax.montecarlo import verify
from rmtjax.report.page import write_page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    names = ("bbp-wigner", "erratum-rectangular-outlier", "corrected-rectangular-outlier")
    verdict = verify([CLAIMS[name] for name in names], trials=400, progress=False)
    folder = tmp_path_factory.mktemp("report")
    return verdict, write_page(verdict, folder / "report.html", CLAIMS.values())


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def visit(browser, made):
    """Open the page; what the console says or the page asks of a network fails the test."""
    said, contexts = [], []

    def call(width=1280, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: said.append(m.text))
        page.on("pageerror", lambda e: said.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else said.append(r.url))
        page.goto(made[1].as_uri())
        return page

    yield call
    for context in contexts:
        context.close()
    assert not said


def test_every_figure_shows(visit, made):
    page = visit()
    box = "all => all.map(e => [e.id, e.getBoundingClientRect().width, e.getBoundingClientRect().height])"
    boxes = page.eval_on_selector_all("svg", box)
    assert len(boxes) == made[1].read_text("utf-8").count("<svg ") >= 9
    for name, width, height in boxes:
        assert width > 250, name
        assert height > 40, name
    equations = page.eval_on_selector_all("math", "all => all.map(e => e.getBoundingClientRect().height)")
    assert len(equations) == 5
    assert all(height > 10 for height in equations)
    # Text of a chart lies in the chart.
    outside = page.evaluate(
        """() => [...document.querySelectorAll("svg text")].filter(t => {
            const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();
            return a.left < b.left - 3 || a.right > b.right + 3 || a.top < b.top - 3 || a.bottom > b.bottom + 3;
        }).map(t => t.textContent)"""
    )
    assert outside == []


def test_links_lead_somewhere(visit):
    page = visit()
    for link in page.locator("main a[href^='#'], nav a").all():
        target = link.get_attribute("href")
        link.click()
        assert page.evaluate("location.hash") == target
        assert page.locator(target).is_visible()


def test_downloads(visit, made):
    verdict, _ = made
    page = visit(accept_downloads=True)

    fetched = 0

    def fetch(locator):
        nonlocal fetched
        if fetched % 8 == 0:  # Chromium refuses the eleventh download of a page
            page.reload()
        fetched += 1
        with page.expect_download() as waiting:
            locator.click()
        return waiting.value.suggested_filename, waiting.value.path().read_text("utf-8")

    names = set()
    for button in page.locator("button.svg").all():
        name, text = fetch(button)
        names.add(name)
        root = ET.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.get("width")
        assert "#ffffff" in text
        assert "var(" not in text
    assert len(names) == page.locator("svg").count()
    links = {}
    for link in page.locator("a[download]").all():
        name, text = fetch(link)
        links[name] = list(csv.DictReader(io.StringIO(text)))
    drawn = verdict.results["bbp-wigner", "compressed"]
    rows = links["bbp-wigner.csv"]
    assert len(rows) == drawn["mean"].size
    for row in rows:
        cell = drawn.sel(output=row["output"], N=float(row["N"]), theta=float(row["theta"]))
        assert float(row["mean"]) == cell["mean"].item()
        assert float(row["z"]) == cell["z"].item()
    assert set(links) >= {"tests.csv", "bbp-wigner-dense.csv", "erratum-rectangular-outlier.csv"}


def test_keys_alone(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "theme"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Enter")
    assert page.locator("#theme").get_attribute("aria-pressed") == "true"
    reached = []
    for _ in range(200):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.outerHTML.slice(0, 200)"))
        if reached[-1].startswith(("<body", '<a class="skip"')):
            break
    reached.pop()
    assert sum("<summary" in one for one in reached) == page.locator("summary").count()
    assert sum('href="#' in one for one in reached) == page.locator("a[href^='#']:not(.skip)").count()
    assert sum("button svg" in one for one in reached) == page.locator("button.svg").count()
    summary = page.locator("summary").first
    summary.focus()
    page.keyboard.press("Space")
    assert page.locator("details").first.get_attribute("open") is not None


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_does_not_scroll_sideways(visit, width):
    page = visit(width, 740)
    for one in page.locator("summary").all():
        one.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 360:
        sizes = page.eval_on_selector_all(".chart svg text", "all => all.map(t => t.getBoundingClientRect().height)")
        assert min(sizes) > 9
        wide = page.locator(".scroll").first
        assert wide.get_attribute("tabindex") == "0"
        wide.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(1000)
        assert page.evaluate("document.activeElement.scrollLeft") > 0


def test_light_and_dark(visit):
    light, dark = visit(color_scheme="light"), visit(color_scheme="dark")
    assert light.locator("#theme").get_attribute("aria-pressed") == "false"
    assert dark.locator("#theme").get_attribute("aria-pressed") == "true"
    back = "getComputedStyle(document.body).backgroundColor"
    line = "getComputedStyle(document.querySelector('svg .l.s0')).stroke"
    text = "getComputedStyle(document.querySelector('svg text.ink')).fill"
    for ask in (back, line, text):
        assert light.evaluate(ask) != dark.evaluate(ask)
    assert light.screenshot() != dark.screenshot()
    light.click("#theme")
    for ask in (back, line, text):
        assert light.evaluate(ask) == dark.evaluate(ask)
    light.reload()
    assert light.locator("#theme").get_attribute("aria-pressed") == "true"


def test_on_paper(visit):
    page = visit(color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#theme").is_visible()
    page.emulate_media(media=None, color_scheme="dark")
    printed = page.pdf(format="A4", print_background=True)
    assert printed.startswith(b"%PDF")
    pages = [int(n) for n in re.findall(rb"/Count (\d+)", printed)]
    assert max(pages) >= 3
    assert page.locator("details[open]").count() == 0


def test_without_a_script(visit):
    page = visit(java_script_enabled=False)
    assert page.locator("svg").first.is_visible()
    assert page.locator("a[download]").first.is_visible()
    assert not page.locator("#theme").is_visible()
    page.locator("summary").first.click()
    assert page.locator("details table").first.is_visible()
