"""Take the pictures of the docs from DISTILL_HOME (default: `data/`) after `make demo`.

Usage: python benchmarks/screenshots.py [--task support_triage] [--student smollm2] [--out docs]

Starts `distill ui` on a free port, opens it in headless Chromium ($CHROMIUM, or `chromium` on the PATH), and writes
asset-graph.png, automation.png and report.png. Nothing is materialized.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distill_dagster.core.paths import PROJECT_FOLDER, Home
from distill_dagster.pipeline.stage_table import STAGES, list_sources
from tests.support.browser import LOCATION, open_browser_page, serve_ui

if TYPE_CHECKING:
    from playwright.sync_api import Page

WIDTH, HEIGHT = 1600, 1000
NODE_X, NODE_Y = 80, 60
"""Pixels from the middle of a node to the edge of the picture of the graph."""


def ui(port: int) -> subprocess.Popen[bytes]:
    """Start `distill ui` with DISTILL_HOME."""
    return subprocess.Popen(
        [sys.executable, "-m", "distill_dagster", "ui", "--port", str(port)],
        cwd=PROJECT_FOLDER,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def settled(page: Page) -> None:
    """Wait until eight pictures in a row are equal: the graph is drawn, and the states of all assets have arrived."""
    last, equal = b"", 0
    for _ in range(120):
        page.wait_for_timeout(750)
        now = page.screenshot()
        equal = equal + 1 if now == last else 0
        if equal == 7:
            return
        last = now


def asset_graph(page: Page, address: str, task: str, file: Path) -> None:
    """Take a picture of the asset graph without the page around it."""
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT + 1000})
    page.goto(f"{address}/locations/{LOCATION}/asset-groups/{task}")
    page.get_by_text("eval_report", exact=True).first.wait_for()
    page.get_by_text("Hide navigation").click()
    page.reload()  # the graph fits the window only when the page opens
    page.get_by_text("eval_report", exact=True).first.wait_for()
    settled(page)
    # Names that do not fit are cut in the middle and not found. None of them is alone at an edge.
    found = [page.get_by_text(name, exact=True) for name in (*list_sources(), *STAGES)]
    boxes = [locator.first.bounding_box() for locator in found if locator.count()]
    middles = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes if box]
    left, right = min(x for x, _ in middles) - NODE_X, max(x for x, _ in middles) + NODE_X
    top, bottom = min(y for _, y in middles) - NODE_Y, max(y for _, y in middles) + NODE_Y
    page.screenshot(path=file, clip={"x": left, "y": top, "width": right - left, "height": bottom - top})
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})


def automation_page(page: Page, address: str, task: str, file: Path) -> None:
    """Take a picture of the task's sensors with their states and descriptions."""
    page.goto(f"{address}/automation")
    page.get_by_text(f"{task}_automation").first.wait_for()
    settled(page)
    page.screenshot(path=file, clip={"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT * 0.6})


def report(page: Page, path: Path, file: Path) -> None:
    """Take a picture of the upper part of the report, opened without a network."""
    page.set_viewport_size({"width": 1200, "height": HEIGHT})
    page.goto(path.as_uri())
    settled(page)
    page.screenshot(path=file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="support_triage")
    parser.add_argument("--student", default="smollm2")
    parser.add_argument("--out", type=Path, default=PROJECT_FOLDER / "docs")
    arguments = parser.parse_args()
    home, task, student = Home.from_env(), arguments.task, arguments.student
    html = home.get_report_folder(task, student) / "report.html"
    if not html.exists():
        raise SystemExit(f"{html} is not there. Run `make demo` first.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with serve_ui(ui) as address, open_browser_page(WIDTH, HEIGHT, "--hide-scrollbars") as page:
        asset_graph(page, address, task, arguments.out / "asset-graph.png")
        automation_page(page, address, task, arguments.out / "automation.png")
        report(page, html, arguments.out / "report.png")
    for name in ("asset-graph", "automation", "report"):
        print(f"wrote {arguments.out / name}.png")


if __name__ == "__main__":
    main()
