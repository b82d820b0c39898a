"""The report in a real browser: offline, sortable, readable at any width and without script."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lcfbench.cli.analysis import write_report
from tests.analysis import report_runs

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or next(
    (p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None
)
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine (set CHROMIUM to one)", allow_module_level=True)

PHONE, DESKTOP = 390, 1280
READABLE = 4.5  # contrast that WCAG 2 asks of body text


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("page")
    return write_report([report_runs.write(folder / "runs")], folder / "report.html", "html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as engine:
        started = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def show(browser, file):
    """Opens the page; at the end the browser must have had nothing to say and nothing to fetch."""
    opened, noise = [], []

    def open_page(width: int = DESKTOP, **settings):
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        opened.append(context)
        page = context.new_page()
        page.on("console", lambda message: noise.append(message.text))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("request", lambda request: noise.append(request.url) if request.url != file else None)
        page.goto(file)
        return page

    yield open_page
    for context in opened:
        context.close()
    assert noise == []


def column(page, name: str) -> list[str]:
    """What the verdict table shows in a column, top to bottom, hidden rows left out."""
    return page.evaluate(
        """name => { const t = document.getElementById("verdicts");
        const i = [...t.tHead.rows[0].cells].findIndex(c => c.textContent === name);
        return [...t.tBodies[0].rows].filter(r => r.checkVisibility())
            .map(r => r.cells[i].firstChild.textContent.trim()) }""",
        name,
    )


def contrasts(page) -> dict[str, float]:
    """Contrast of text against the page, by what the text is."""
    return page.evaluate("""() => {
        const light = rgb => { const [r, g, b] = rgb.match(/[\\d.]+/g).map(Number).map(v => v / 255)
            .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
            return .2126 * r + .7152 * g + .0722 * b };
        const paper = light(getComputedStyle(document.documentElement).backgroundColor);
        const found = {};
        const all = ["body", ".legend", "a", "summary", ".said b", "td small", "tr.deranged td",
                     "td.verdict summary", ".parts", ".whose"]
        for (const what of all) {
            const one = document.querySelector(what), ink = light(getComputedStyle(one).color);
            found[what] = (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
        }
        for (const what of [".chart .tick", ".chart .label", ".chart .name"]) {
            const ink = light(getComputedStyle(document.querySelector(what)).fill);
            found[what] = (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
        }
        return found }""")


def test_sorting(show) -> None:
    page = show()
    head = page.locator("#verdicts th", has_text="matched %")
    assert column(page, "method") == ["lcf", "kvcomm", "t2t"] and head.get_attribute("aria-sort") == "none"
    best = sorted(map(float, column(page, "matched %")), reverse=True)
    head.get_by_role("button").click()
    assert (
        list(map(float, column(page, "matched %"))) == best
        and head.get_attribute("aria-sort") == "descending"
    )
    page.keyboard.press("Enter")  # the button has the focus
    assert (
        list(map(float, column(page, "matched %"))) == best[::-1]
        and head.get_attribute("aria-sort") == "ascending"
    )
    method = page.locator("#verdicts th", has_text="method")
    method.get_by_role("button").click()
    assert column(page, "method") == ["kvcomm", "lcf", "t2t"]
    assert (method.get_attribute("aria-sort"), head.get_attribute("aria-sort")) == ("ascending", "none")
    for direction in range(2):  # what is unknown stays last, whichever way
        page.locator("#verdicts th", has_text="content P").get_by_role("button").click()
        assert column(page, "content P")[-1] == "–", direction


def test_filtering(show) -> None:
    page = show()
    said = page.locator("form.filter output")
    assert said.inner_text() == "3 of 3 shown" and said.get_attribute("aria-live") == "polite"
    page.get_by_role("combobox", name="Task").select_option("splitfacts")
    assert column(page, "method") == ["lcf", "t2t"] and said.inner_text() == "2 of 3 shown"
    page.get_by_role("combobox", name="Method").select_option("t2t")
    assert column(page, "method") == ["t2t"]
    page.get_by_role("combobox", name="Method").select_option("")
    page.get_by_role("combobox", name="Task").select_option("")
    page.get_by_role("searchbox", name="Text").fill("UNDECIDED")
    assert column(page, "method") == ["kvcomm"] and said.inner_text() == "1 of 3 shown"


@pytest.mark.parametrize("width", [PHONE, 768, DESKTOP])
def test_nothing_sticks_out(show, width) -> None:
    """The page never scrolls sideways; tables scroll in their own box."""
    page = show(width)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    wide = (
        "[...document.querySelectorAll('body *')]"
        ".filter(e => !e.closest('.scroll, svg') && e.getBoundingClientRect().right > innerWidth)"
    )
    assert page.evaluate(f"{wide}.map(e => e.outerHTML.slice(0, 99))") == []


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_drawings_can_be_read(show, width) -> None:
    """Names and numbers in figures are at least 10 pixels, over no text, no mark, and within."""
    page = show(width)
    told = page.evaluate("""() => [...document.querySelectorAll("svg.chart")].map(svg => {
        const box = e => { const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom] };
        return { frame: box(svg),
                 texts: [...svg.querySelectorAll("text")].map(t => [t.textContent, ...box(t)]),
                 dots: [...svg.querySelectorAll("circle")].map(box),
                 size: svg.getBoundingClientRect().width / svg.viewBox.baseVal.width }})""")
    assert len(told) == 8

    def meet(a, b) -> bool:
        return (
            a[0] < b[2] - 1 and b[0] < a[2] - 1 and a[1] < b[3] - 3 and b[1] < a[3] - 3
        )  # line boxes are taller than letters

    for picture in told:
        assert picture["size"] * 11 >= 10
        texts = picture["texts"]
        for i, (name, *where) in enumerate(texts):
            assert where[0] >= picture["frame"][0] - 1 and where[2] <= picture["frame"][2] + 1, name
            assert not any(meet(where, other) for _, *other in texts[i + 1 :]), name
            assert not any(meet(where, dot) for dot in picture["dots"]), name


def test_light_and_dark(show) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        page = show(color_scheme=scheme)
        seen[scheme] = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        low = {what: ratio for what, ratio in contrasts(page).items() if ratio < READABLE}
        assert low == {}, scheme
    assert seen["light"] != seen["dark"]
    button = page.get_by_role("button", name="Theme")
    for theme in ("light", "dark"):  # by hand, against the system too
        button.click()
        assert button.inner_text() == f"Theme: {theme}"
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == seen[theme]


def test_prompts_open_and_stay_text(show) -> None:
    page = show(PHONE)
    prompt = page.locator("article pre").first
    assert not prompt.is_visible()
    page.locator("article summary").first.click()
    assert prompt.is_visible() and report_runs.EVIL in prompt.inner_text()
    assert page.title().startswith("lcfbench report") and page.locator("img").count() == 0


def test_without_script(show) -> None:
    """All that the script adds is comfort."""
    page = show(java_script_enabled=False)
    assert (
        page.locator("#verdicts tbody tr:visible").count() == 3
        and page.locator("#verdicts th button").count() == 0
    )
    assert (
        not page.locator("form.filter").is_visible()
        and not page.get_by_role("button", name="Theme").is_visible()
    )
    page.locator("article summary").first.click()
    assert page.locator("article pre").first.is_visible()
    assert page.locator("svg.chart").first.is_visible()


def test_print_shows_everything(show, tmp_path: Path) -> None:
    page = show()
    page.emulate_media(media="print")
    assert (
        not page.locator("nav").is_visible()
        and page.locator("article pre").first.bounding_box()["height"] > 10
    )
    assert re.match(rb"%PDF", page.pdf())
