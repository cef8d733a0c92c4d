"""Make the pages of Data Docs work without a network: their own style, no scripts, and a start page."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_FROM_NETWORK = re.compile(
    r"<script\b.*?</script>|<style\b.*?</style>|<link\b[^>]*>|<img\b[^>]*>|<footer>.*?</footer>"
    # A filter and links to collapse parts of a page, which need scripts.
    r'|<div class="card mb-3">\s*<div class="card-header p-2">\s*<strong>Actions</strong>.*?</label>(?:\s*</div>)+'
    r'|<p class="m-0">\s*<a data-toggle="collapse".*?</p>',
    re.DOTALL,
)


@dataclass(frozen=True)
class ValidatedTable:
    """One row of the start page: a table and how many of its expectations were met."""

    name: str
    rows: int
    expectations: int
    met: int

    @property
    def passed(self) -> bool:
        """Whether all expectations were met."""
        return self.met == self.expectations


def write_pages(site: Path, task: str, tables: list[ValidatedTable]) -> None:
    """Write the start page of a site, and replace in all others what they would load from the network.

    Args:
        site: The folder that Great Expectations wrote. Its own start page is a script that needs seven public hosts.
    """
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    css = environment.get_template("data_docs.css.j2").render()
    shutil.rmtree(site / "static", ignore_errors=True)  # fonts and pictures that no page shows
    for page in site.rglob("*.html"):
        text = _FROM_NETWORK.sub("", page.read_text(encoding="utf-8"))
        page.write_text(text.replace("</head>", f"<style>{css}</style></head>", 1), encoding="utf-8")
    shown = [vars(table) | {"passed": table.passed} | _find_pages(site, table.name) for table in tables]
    index = environment.get_template("data_docs.html.j2").render(
        task=task,
        css=css,
        created=f"{datetime.now(UTC):%d %B %Y, %H:%M} UTC",
        tables=shown,
        failed=sum(not table.passed for table in tables),
    )
    (site / "index.html").write_text(index, encoding="utf-8")


def _find_pages(site: Path, name: str) -> dict[str, str]:
    """Find the pages with the results and with the expectations of one table, as links from the start page."""
    page = next((site / "validations" / name).rglob("*.html"))
    return {
        "page": quote(page.relative_to(site).as_posix()),
        "suite_page": quote(f"expectations/{name}.html"),
    }
