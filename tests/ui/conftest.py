"""One project, one `distill ui` and one browser for all tests, and what a person does there, by clicking."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
import yaml
from playwright.sync_api import Locator, Page, expect

from distill_dagster.pipeline.stage_table import get_slices_partitions_name
from tests.e2e.project import GROUP, TASK, Project, create_project
from tests.support.browser import LOCATION, SLOW_MS, open_browser_page, serve_ui
from tests.support.provider import FakeProvider
from tests.support.task import LABELS
from tests.support.waiting import HANG_S

RUN_MS = 1000 * HANG_S
"""How long a run may take: its process starts anew, and loads the libraries."""
SMALL_SLICES = ("app", "phone")
MADE = dg.DagsterEventType.ASSET_MATERIALIZATION


@dataclass(frozen=True)
class Screen:
    """The browser on the UI, and what lies behind it."""

    page: Page
    address: str
    project: Project
    provider: FakeProvider
    instance: dg.DagsterInstance

    def open(self, path: str) -> Page:
        self.page.goto(f"{self.address}/{path}")
        return self.page

    def open_group(self, tab: str = "") -> Page:
        return self.open(f"locations/{LOCATION}/asset-groups/{TASK}{tab}")

    def launch(self, *slices: str) -> str:
        """In the dialog that `Materialize` opens: pick slices and launch; the short id that the UI then shows."""
        dialog = self.page.get_by_role("dialog").first
        dialog.get_by_text("Select a partition").click()
        for key in slices:
            entry = self.page.get_by_role("menu").first.locator("span").filter(has_text=re.compile(f"^{key}$"))
            entry.first.click()
        dialog.get_by_text("Partition selection").click()  # closes the list, which lies over the button
        dialog.get_by_role("button", name=re.compile("^Launch")).click()
        said = self.page.get_by_text(re.compile(r"^(Launched run|Created backfill) \w+$")).first
        return said.inner_text().split()[-1]

    def run(self, start: str) -> dg.DagsterRun:
        """The run whose id begins so."""
        return next(run for run in self.instance.get_runs() if run.run_id.startswith(start))

    def runs(self, **tags: str) -> list[dg.DagsterRun]:
        chosen = dg.RunsFilter(tags={f"dagster/{key}": value for key, value in tags.items()})
        return [*self.instance.get_runs(chosen)]

    def see_success(self, run_id: str) -> None:
        """Wait on the page of a run until it says that the run ended well."""
        self.open(f"runs/{run_id}")
        expect(self.page.get_by_text("Success", exact=True).first).to_be_visible(timeout=RUN_MS)

    def wait(self, what: Callable[[], bool], seconds: float = HANG_S) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, "it did not happen"
            self.page.wait_for_timeout(500)  # not sleep: the page lives on

    def events(self) -> dict[tuple[str, str | None], int]:
        """The number of the latest materialization of each slice, and of the dataset."""
        storage = self.instance.event_log_storage
        out: dict[tuple[str, str | None], int] = {}
        for asset in (*GROUP, "filtered_dataset"):
            found = storage.get_latest_storage_id_by_partition(dg.AssetKey([TASK, asset]), MADE)
            out |= {(asset, key): number for key, number in found.items()}
        latest = self.instance.get_latest_materialization_event(dg.AssetKey([TASK, "filtered_dataset"]))
        return out | ({("filtered_dataset", None): round(latest.timestamp * 1000)} if latest else {})

    def made_since(self, before: dict[tuple[str, str | None], int]) -> set[tuple[str, str | None]]:
        return {place for place, number in self.events().items() if number != before.get(place)}

    def versions_are_those_of_the_lake(self) -> bool:
        """Dagster's latest data version of every slice is the one that its record in the lake holds."""
        tag = "dagster/data_version"
        for asset in GROUP:
            key = dg.AssetKey([TASK, asset])
            found = self.instance.event_log_storage.get_latest_tags_by_partition(key, MADE, [tag])
            slices = self.instance.get_dynamic_partitions(get_slices_partitions_name(TASK))
            if {k: v[tag] for k, v in found.items()} != {k: self.project.record(asset, k).data_version for k in slices}:
                return False
        return True

    def automation_row(self, name: str) -> Locator:
        """The row of a sensor or schedule on the Automation page."""
        return self.page.locator(f'a[href$="/{name}"]').locator("xpath=..")

    def turn_on(self, name: str) -> None:
        """By its switch, which comes and goes while the page loads; the box before the name looks alike."""
        switch = self.automation_row(name).locator("label[class*=formatSwitch]")
        expect(switch.locator("input")).to_be_enabled()
        switch.click()
        expect(switch.locator("input")).to_be_checked()


@pytest.fixture(scope="session")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider(LABELS) as provider:
        yield provider


@pytest.fixture(scope="session")
def project(provider: FakeProvider, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Everything up to the dataset, whose blocking check holds training back."""
    project = create_project(
        tmp_path_factory.mktemp("ui"), provider.url, curation={"min_rows": 1000}, students={"two": None}
    )
    for key in SMALL_SLICES:
        value = {"description": f"By {key}.", "seeds": [f"{label} by {key}" for label in LABELS]}
        (project.folder / "slices" / f"{key}.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
    ended = project.run("--student", "one")
    assert list(ended.json["failed"]) == ["filtered_dataset"], ended.err
    return project


@pytest.fixture(scope="session")
def address(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log: Path = tmp_path_factory.mktemp("log") / "ui.log"
    with serve_ui(lambda port: project.start("ui", "--port", str(port), log=log)) as address:
        yield address


@pytest.fixture(scope="session")
def screen(address: str, project: Project, provider: FakeProvider) -> Iterator[Screen]:
    """Opened after the project's own run."""
    expect.set_options(timeout=SLOW_MS)
    with project.instance() as instance, open_browser_page(2400, 1400) as page:
        yield Screen(page, address, project, provider, instance)
