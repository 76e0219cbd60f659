"""Reports in a real browser: no errors, search and zoom work, nothing is wider than the screen.

Needs ``pip install playwright`` and a Chromium; run with ``pytest -m browser``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pwopt import compilation, driver, pass_timing
from pwopt.models import registry
from tests.page.test_page import MODEL, NASTY, nasty_model

pytestmark = pytest.mark.browser

DESKTOP: dict[str, Any] = {"viewport": {"width": 1360, "height": 900}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "is_mobile": True,
    "has_touch": True,
}
SETTINGS: dict[str, Any] = {
    "desktop": DESKTOP,
    "dark": {**DESKTOP, "color_scheme": "dark"},
    "phone": PHONE,
    "dark phone": {**PHONE, "color_scheme": "dark"},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    with api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        path = str(own) if own.exists() else next(filter(None, map(shutil.which, names)), None)
        if path is None:
            pytest.skip("no Chromium here: playwright install chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small report with measurements, one with 900 nodes, and one whose names are markup."""
    folder = tmp_path_factory.mktemp("pages")
    small = driver.optimize(MODEL, keep_stages=True)
    executable, small = compilation.compile_optimized(small)
    small = pass_timing.measure_passes(small, executable=executable)
    made = {
        "small": compilation.profiled(small, executable, MODEL),
        "large": driver.optimize(registry.entry("densenet").build(size=32), verify=False),
        "nasty": driver.optimize(nasty_model(), verify=False),
    }
    for name, each in made.items():
        (folder / f"{name}.html").write_text(each.html())
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page of a report in a window; fails at the end for what the console said."""
    report, setting = request.param
    context = browser.new_context(**SETTINGS[setting])
    page, said = context.new_page(), list[str]()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda r: said.append(r.url))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(pages[report].as_uri())
    page.wait_for_timeout(200)
    yield page
    context.close()
    assert not said


MEASURED = [(report, setting) for report in ("small", "large") for setting in SETTINGS]
ALL = [(report, setting) for report in ("small", "large", "nasty") for setting in SETTINGS]


def nodes(page: Any, side: str) -> int:
    return int(page.locator(f"#{side} .node").count())


def centre(page: Any, selector: str) -> tuple[float, float]:
    box = page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.mark.parametrize("opened", ALL, indirect=True, ids=" ".join)
def test_nothing_is_wider_than_the_screen(opened: Any) -> None:
    wide, screen = opened.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= screen
    shown = opened.evaluate(
        "[...document.querySelectorAll('h1, h2, p, .tiles div, .pane.shown, .waterfall li')]"
        ".map(e => e.getBoundingClientRect().right)"
    )
    assert max(shown) <= screen


@pytest.mark.parametrize("opened", MEASURED, indirect=True, ids=" ".join)
def test_search_finds_a_node_and_centres_it(opened: Any) -> None:
    opened.fill("#search", "maxpool")
    assert opened.locator("#found").inner_text().startswith("1 of ")
    off = opened.evaluate(  # both at one moment: the page may be scrolling
        """() => {
          const middle = (name) => {
            const box = document.querySelector(name).getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
          };
          const [x, y] = middle("#after .node.selected rect.box");
          const [u, v] = middle("#after .drawing");
          return [x - u, y - v];
        }"""
    )
    assert max(map(abs, off)) < 30
    assert "MaxPool" in opened.locator("#chosen h3").inner_text()
    opened.press("#search", "Enter")
    assert opened.locator("#found").inner_text().startswith("2 of ")
    opened.fill("#search", "no such layer")
    assert opened.locator("#found").inner_text() == "nothing found"


@pytest.mark.parametrize("opened", ALL, indirect=True, ids=" ".join)
def test_zoom_and_fit(opened: Any) -> None:
    def width() -> float:
        return float(opened.locator("#after .node rect.box").first.bounding_box()["width"])

    before = width()
    opened.click("#after [data-do=in]")
    assert width() > 1.2 * before
    opened.click("#after [data-do=out]")
    assert width() == pytest.approx(before, rel=0.01)
    opened.click("#after [data-do=fit]")
    pane = opened.locator("#after .drawing").bounding_box()
    last = opened.locator("#after .node").last.bounding_box()
    assert last["y"] + last["height"] <= pane["y"] + pane["height"]


@pytest.mark.parametrize("opened", [("small", "desktop"), ("large", "desktop")], indirect=True)
def test_the_wheel_moves_and_with_ctrl_zooms(opened: Any) -> None:
    box = "#before .node rect.box"
    opened.locator("#graph").scroll_into_view_if_needed()
    opened.locator("#before").scroll_into_view_if_needed()
    opened.mouse.move(*centre(opened, "#before .drawing"))
    first = opened.locator(box).first.bounding_box()
    opened.mouse.wheel(0, 40)
    opened.wait_for_timeout(100)
    moved = opened.locator(box).first.bounding_box()
    assert moved["y"] < first["y"]
    assert moved["width"] == pytest.approx(first["width"])
    opened.keyboard.down("Control")
    opened.mouse.wheel(0, -120)
    opened.keyboard.up("Control")
    opened.wait_for_timeout(100)
    assert opened.locator(box).first.bounding_box()["width"] > 1.2 * moved["width"]


@pytest.mark.parametrize("opened", [("small", "desktop"), ("small", "phone")], indirect=True)
def test_a_node_shows_what_became_of_it(opened: Any) -> None:
    opened.fill("#search", "relu32")
    assert opened.locator("#after .node.selected, #after .node.linked").count() == 1
    opened.evaluate("document.querySelector('.waterfall [data-node]').click()")
    assert opened.locator("#chosen h3").is_visible()
    links = opened.locator("#chosen .chip")
    name = links.first.inner_text()
    links.first.click()
    assert opened.locator("#chosen h3").inner_text() == name
    assert opened.locator("#before .node.selected").count() == 1


@pytest.mark.parametrize("opened", [("large", "desktop")], indirect=True)
def test_a_pass_lights_its_nodes(opened: Any) -> None:
    chip = opened.locator("#graph [data-pass]", has_text="fold-batch-norm")
    chip.click()
    lit = opened.locator("#before .node.lit").count()
    assert 100 < lit < nodes(opened, "before")
    chip.click()
    assert opened.locator(".drawing.passing").count() == 0


@pytest.mark.parametrize("opened", [("nasty", "desktop")], indirect=True)
def test_markup_in_names_is_shown_as_text(opened: Any) -> None:
    opened.fill("#search", "onerror")
    assert NASTY in opened.locator("#chosen h3").inner_text()
    assert opened.locator("img").count() == 0
