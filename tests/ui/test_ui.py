"""`distill ui` in a real browser: the graph of a task, and what an asset's page says of a materialization.

make test-ui    # needs Chromium: CHROMIUM=/path/to/it, or one on the PATH
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from distill_dagster.graph import SOURCES, STAGES
from tests.e2e.project import TASK, Project, new_project
from tests.support.provider import FakeProvider
from tests.support.task import LABELS

pytestmark = pytest.mark.ui
LOCATION = "distill_dagster.definitions"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
READY_S, SLOW_MS = 120, 60_000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Everything up to the dataset, whose blocking check holds training back."""
    with FakeProvider(LABELS) as provider:
        project = new_project(tmp_path_factory.mktemp("ui"), provider.url, curation={"min_rows": 1000})
        ended = project.run("--student", "one")
        assert list(ended.json["failed"]) == ["filtered_dataset"], ended.err
    return project


@pytest.fixture(scope="module")
def address(project: Project) -> Iterator[str]:
    """The address of `distill ui`, which is stopped as Ctrl-C stops it."""
    port = free_port()
    process = project.start("ui", "--port", str(port))
    try:
        deadline = time.monotonic() + READY_S
        while not answers(f"http://127.0.0.1:{port}/server_info"):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "the UI did not come up"
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        assert not answers(f"http://127.0.0.1:{port}/server_info"), "Ctrl-C left the webserver behind"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    """A browser's page, opened after the run above: Playwright's event loop would be in its way."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not chromium:
        pytest.fail("no Chromium: set CHROMIUM, or put one on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 2400, "height": 1400})
        page.set_default_timeout(SLOW_MS)
        expect.set_options(timeout=SLOW_MS)
        yield page
        browser.close()


def test_the_graph_shows_every_asset_of_the_task(page: Page, address: str) -> None:
    page.goto(f"{address}/locations/{LOCATION}/asset-groups/{TASK}")
    for name in sorted({*STAGES, *SOURCES} - {"slice_label_adapter"}):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()


def test_an_assets_page_shows_its_materialization(page: Page, address: str, project: Project) -> None:
    page.goto(f"{address}/assets/{TASK}/golden_completions?view=overview")
    for text in ("prompt_tokens", "median_latency_s", "missing_rows", "teacher_calls"):
        expect(page.get_by_text(text, exact=True).first).to_be_visible()
    rows = project.record("golden_completions").rows
    expect(page.get_by_text("Row count", exact=True)).to_be_visible()
    expect(page.get_by_text(str(rows), exact=True).first).to_be_visible()


def test_an_assets_page_shows_passed_and_failed_checks(page: Page, address: str) -> None:
    page.goto(f"{address}/assets/{TASK}/filtered_dataset?view=checks")
    for name in ("valid_table", "nothing_lost", "no_contamination", "enough_rows", "label_coverage"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    expect(page.get_by_text("Succeeded", exact=True)).to_have_count(4)
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
    expect(page.get_by_text("train_rows", exact=True).first).to_be_visible()


def test_a_slice_is_a_partition_with_its_own_materialization(page: Page, address: str) -> None:
    page.goto(f"{address}/assets/{TASK}/teacher_completions?view=partitions&partition=web")
    expect(page.get_by_text("web", exact=True).first).to_be_visible()
    expect(page.get_by_text("prompt_tokens", exact=True).first).to_be_visible()


def test_the_page_fetches_nothing_from_other_machines(page: Page, address: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}/assets")
    expect(page.get_by_text(TASK).first).to_be_visible()
    local = (address, "data:", "blob:", address.replace("http", "ws", 1))
    assert [url for url in asked if not url.startswith(local)] == []


def test_materialize_is_offered_for_the_whole_group(page: Page, address: str) -> None:
    page.goto(f"{address}/locations/{LOCATION}/asset-groups/{TASK}")
    expect(page.get_by_role("button", name=re.compile("Materialize")).first).to_be_enabled()
