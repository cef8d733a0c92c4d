"""The page of a report in a browser: narrow, dark, printed, by keyboard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.evaluation.sample_report import INPUTS, build_predictions, write_files, write_sample

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("report"))


@contextmanager
def _open(folder: Path, width: int, height: int = 800, **settings: Any) -> Iterator[Page]:
    from tests.support.browser import open_browser_page

    with open_browser_page(width, height) as page:
        page.emulate_media(**settings)
        page.goto((folder / "report.html").as_uri())
        yield page


def _open_all(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")


BROKEN_WORDS = """
[...document.querySelectorAll('th')].flatMap(cell => {
  const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    for (const word of walker.currentNode.data.matchAll(/[^\\s-]+/g)) {
      const range = document.createRange();
      range.setStart(walker.currentNode, word.index);
      range.setEnd(walker.currentNode, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1) found.push(word[0]);
    }
  }
  return found;
})
"""
"""The words of table headers that stand on more than one line."""


@pytest.mark.ui
def test_the_table_of_items_is_filtered_by_keyboard(folder: Path) -> None:
    with _open(folder, 1200) as page:
        page.locator("#items").locator("xpath=..").locator("summary").first.focus()
        page.keyboard.press("Enter")
        rows = page.locator("#items table.items > tbody:visible")
        assert rows.count() == 60
        page.get_by_label("Text").focus()
        page.keyboard.type("golden17 s1")
        assert rows.count() == 1
        assert "1 of 60 items" in page.locator("#item-filter").inner_text()
        assert "golden17" in rows.first.inner_text()
        page.get_by_label("Text").fill("")
        page.locator("#item-filter").get_by_label("Slice").select_option("s0")
        page.get_by_label("Show").select_option("lost")
        shown = {rows.nth(n).get_attribute("data-outcome") for n in range(rows.count())}
        assert shown == {"lost"}
        assert page.locator("#items tbody[data-slice=s1]:visible").count() == 0


@pytest.mark.ui
@pytest.mark.parametrize("width", [320, 400, 800, 1200])
def test_a_narrow_page_scrolls_tables_and_breaks_no_word(folder: Path, width: int) -> None:
    with _open(folder, width) as page:
        _open_all(page)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(BROKEN_WORDS) == []
        hint = page.get_by_text("scroll it sideways").first
        assert hint.is_visible() == (width <= 800)
        region = page.get_by_role("region", name="Every system on the 60 golden items")
        inner, outer = region.evaluate("box => [box.scrollWidth, box.clientWidth]")
        assert (inner > outer) == (width <= 800)
        region.focus()
        page.keyboard.press("End")  # reachable without a mouse


@pytest.mark.ui
def test_a_link_of_the_contents_unfolds_its_part(folder: Path) -> None:
    with _open(folder, 1200) as page:
        links = page.get_by_role("navigation").get_by_role("link")
        assert links.count() > 8
        assert not page.locator("#labels").is_visible()
        for link in links.all():
            link.click()
            target = page.locator(link.get_attribute("href") or "")
            assert target.is_visible()
            assert (target.bounding_box() or {"y": -1})["y"] >= 0


def _read_luminance(colour: str) -> float:
    """Relative luminance of `rgb(…)` (WCAG 2.2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.ui
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_colour_schemes(folder: Path, scheme: str) -> None:
    with _open(folder, 1200, color_scheme=scheme) as page:
        read = "(item, name) => getComputedStyle(item)[name]"
        paper = _read_luminance(page.locator("main").evaluate(read, "backgroundColor"))
        assert paper < 0.05 if scheme == "dark" else paper > 0.9
        places = {"main": "main", ".verdict": ".verdict .lead", "tr.own > td": "tr.own > td.soft"}
        others = [(place, "main") for place in (".meta", ".small", "nav a", "caption", ".model", "thead th", ".kicker")]
        for text, behind in [*((text, back) for back, text in places.items()), *others]:
            ink = _read_luminance(page.locator(text).first.evaluate(read, "color"))
            back = _read_luminance(page.locator(behind).first.evaluate(read, "backgroundColor"))
            assert (max(ink, back) + 0.05) / (min(ink, back) + 0.05) >= 4.5, text


@pytest.mark.ui
def test_a_print_is_light_and_shows_what_is_folded(folder: Path) -> None:
    with _open(folder, 680, media="print", color_scheme="dark") as page:
        paper = page.locator("body").evaluate("item => getComputedStyle(item).backgroundColor")
        ink = page.locator("body").evaluate("item => getComputedStyle(item).color")
        assert _read_luminance(paper) == pytest.approx(1)
        assert _read_luminance(ink) < 0.05
        assert not page.locator("nav").is_visible()
        for table in page.locator("main table").all():
            box = table.bounding_box()
            assert box is not None
            assert box["height"] > 20
            assert box["x"] + box["width"] <= 680
        assert page.evaluate(BROKEN_WORDS) == []
        pages = len(re.findall(rb"/Type\s*/Page\b", page.pdf(prefer_css_page_size=True)))
        assert 2 <= pages <= 9


@pytest.mark.ui
def test_long_texts_stay_within_the_page(tmp_path: Path) -> None:
    from tests.support.browser import open_browser_page

    long = {"slice": "mail", "text": "Where is my parcel? " * 15, "why": "near of golden:g7, overlap 0.83"}
    unbroken = {"slice": "s" * 63, "text": "x" * 300, "why": f"exact of golden:{'g' * 200}, overlap 1.00"}
    texts = {f"golden{i}": "text" * 100 for i in range(60)}
    write_files(tmp_path, build_predictions(), replace(INPUTS, leaks=[long, unbroken], texts=texts))
    with open_browser_page(1200, 900) as page:
        page.goto((tmp_path / "report.html").as_uri())
        page.get_by_role("link", name="Dataset").click()
        assert not page.get_by_text("near of golden:g7").is_visible()
        page.get_by_text("2 rows left out").click()
        assert page.get_by_text("near of golden:g7").is_visible()
        sizes = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert sizes[0] == sizes[1]
        for table in page.locator("main table").all():
            box = table.bounding_box()
            assert box is not None
            assert box["x"] + box["width"] <= 1200 - 60, "the page's own margin"
