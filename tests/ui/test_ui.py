"""`distill ui` in a real browser: what its pages show, and what a person starts there by clicking.

make test-ui    # needs Chromium: CHROMIUM=/path/to/it, or one on the PATH

The tests share one UI and run in order: later ones build on what earlier ones made.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
from playwright.sync_api import expect

from assets.stage_asset import get_campaign
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.pipeline.check_catalogue import STAGE_CHECKS
from distill_dagster.pipeline.stage_table import get_students_partitions_name, list_sources, list_stages
from tests.e2e.project import GROUP, TASK
from tests.support.browser import LOCATION
from tests.ui.conftest import RUN_MS, Screen

pytestmark = pytest.mark.ui


def test_the_graph_shows_every_asset_of_the_task(screen: Screen) -> None:
    # Dagster draws only what lies in the window, and the whole graph is wide.
    before = screen.page.viewport_size
    screen.page.set_viewport_size({"width": 3200, "height": 2800})
    page = screen.open_group()
    for _ in range(3):
        page.get_by_role("button", name="zoom_out").click()
    for name in sorted({*list_stages(), *list_sources()}):
        # A node that is drawn small shortens a long name in its middle.
        shown = re.compile(f"^({name}|{name[:3]}\\w*…\\w*{name[-3:]})$")
        expect(page.get_by_text(shown).first).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("Materialize")).first).to_be_enabled()
    if before is not None:
        page.set_viewport_size(before)


def test_the_timeline_and_the_jobs_show_the_runs_of_the_command_line(screen: Screen) -> None:
    page = screen.open("overview/activity/timeline")
    for job in ("shared", "slices"):
        expect(page.get_by_role("link", name=f"{TASK}_{job}")).to_be_visible()
    expect(page.get_by_text("No runs", exact=False)).to_have_count(0)
    page = screen.open(f"locations/{LOCATION}/jobs/{TASK}_slices/runs")
    runs = page.locator('a[href^="/runs/"]').filter(has_text=re.compile("^[0-9a-f]{8}$"))
    expect(runs).to_have_count(len(screen.project.slices()))


def test_only_students_that_somebody_asked_for_are_partitions(screen: Screen) -> None:
    """Otherwise all assets of the students would look incomplete for ever."""
    name = get_students_partitions_name(TASK)
    assert screen.instance.get_dynamic_partitions(name) == ["one"]
    page = screen.open(f"assets/{TASK}/student_adapter?view=partitions")
    expect(page.get_by_text("one", exact=True).first).to_be_visible()
    expect(page.get_by_text("two", exact=True)).to_have_count(0)


def test_an_assets_page_shows_its_materialization(screen: Screen) -> None:
    page = screen.open(f"assets/{TASK}/golden_completions?view=overview")
    for text in ("prompt_tokens", "median_latency_s", "missing_rows", "teacher_calls"):
        expect(page.get_by_text(text, exact=True).first).to_be_visible()
    rows = screen.project.record("golden_completions").rows
    expect(page.get_by_text("Row count", exact=True)).to_be_visible()
    expect(page.get_by_text(str(rows), exact=True).first).to_be_visible()


def test_an_assets_page_shows_passed_and_failed_checks(screen: Screen) -> None:
    page = screen.open(f"assets/{TASK}/filtered_dataset?view=checks")
    checks = STAGE_CHECKS["filtered_dataset"]
    for check in checks:
        expect(page.get_by_text(check.name, exact=True).first).to_be_visible()
    expect(page.get_by_text("Succeeded", exact=True)).to_have_count(len(checks) - 1)
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
    page.get_by_text("enough_rows", exact=True).first.click()
    expect(page.get_by_text("train_rows", exact=True).first).to_be_visible()


def test_a_slice_is_a_partition_with_its_own_materialization(screen: Screen) -> None:
    page = screen.open(f"assets/{TASK}/teacher_completions?view=partitions&partition=web")
    expect(page.get_by_text("web", exact=True).first).to_be_visible()
    expect(page.get_by_text("prompt_tokens", exact=True).first).to_be_visible()


def test_the_page_fetches_nothing_from_other_machines(screen: Screen) -> None:
    asked: list[str] = []
    screen.page.on("request", lambda request: asked.append(request.url))
    page = screen.open("assets")
    expect(page.get_by_text(TASK).first).to_be_visible()
    local = (screen.address, "data:", "blob:", screen.address.replace("http", "ws", 1))
    assert [url for url in asked if not url.startswith(local)] == []


def test_one_slice_is_launched_from_the_page_of_its_job(screen: Screen) -> None:
    screen.project.change_slice("web", lambda value: value["seeds"].append("one more refund for the web"))
    before, asked = screen.events(), len(screen.provider.requests)
    page = screen.open(f"locations/{LOCATION}/jobs/{TASK}_slices")
    page.get_by_role("button", name="Materialize all").click()
    run = screen.run(screen.launch("web"))
    screen.see_success(run.run_id)
    assert run.tags["dagster/partition"] == "web"
    assert screen.made_since(before) == {(asset, "web") for asset in GROUP}
    assert screen.versions_are_those_of_the_lake()
    assert screen.provider.texts[asked:] == ["one more refund for the web"] * 2


def test_a_backfill_of_slices_that_are_not_all_neighbours(screen: Screen) -> None:
    """One run for every row of neighbours, and within it one for each slice."""
    slices = ("app", "shop", "web")  # between the first two lies `phone`
    for key in slices:
        screen.project.add_seeds(key, f"no delivery by {key}")
    before, asked = screen.events(), len(screen.provider.requests)
    page = screen.open_group("/list")
    for asset in sorted(GROUP):
        link = page.locator(f'a[href="/assets/{TASK}/{asset}"]').first
        link.locator("xpath=ancestor::div[.//input][1]").locator("label").first.click()
    page.get_by_role("button", name="Materialize selected").click()
    backfill = screen.launch(*slices)
    screen.open(f"runs/b/{backfill}")
    expect(page.get_by_text("Succeeded", exact=True)).to_have_count(2, timeout=RUN_MS)  # a column, and the status
    assert screen.made_since(before) == {(asset, key) for asset in GROUP for key in slices}
    assert screen.versions_are_those_of_the_lake()
    assert sorted(screen.provider.texts[asked:]) == sorted(f"no delivery by {key}" for key in slices * 2)
    runs = screen.runs(backfill=backfill)
    campaigns = {run.run_id: run.tags["distill/campaign"] for run in runs}
    inner = [run for run in runs if campaigns[run.run_id] != run.run_id]
    within = {run.tags["dagster/partition"]: campaigns[run.run_id] for run in inner}
    assert within.keys() == set(slices)
    assert within["shop"] == within["web"] != within["app"]
    assert {run.run_id for run in runs} - {run.run_id for run in inner} == set(within.values())


def test_a_backfill_from_the_command_line_is_run_by_the_daemon_of_the_ui(screen: Screen) -> None:
    """As the README says it, in a shell with the environment of `distill env`."""
    screen.project.change_slice("app", lambda value: value["seeds"].append("no login by app"))
    before, asked = screen.events(), len(screen.provider.requests)
    environment = os.environ | screen.project.environment() | {"PYTHONPATH": str(PROJECT_FOLDER)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    distill = shlex.join([sys.executable, "-m", "distill_dagster", "env"])
    command = f'eval "$({distill})"; dagster job backfill -j {TASK}_slices --partitions app,phone --noprompt'
    done = subprocess.run(
        ["bash", "-c", command], cwd=PROJECT_FOLDER, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"backfill job `(\w+)`", done.stdout)
    assert found is not None, done.stdout
    ended = dg.RunsFilter(tags={"dagster/backfill": found[1]}, statuses=[dg.DagsterRunStatus.SUCCESS])
    screen.wait(lambda: screen.instance.get_runs_count(ended) == 2)
    assert screen.made_since(before) == {(asset, key) for asset in GROUP for key in ("app", "phone")}
    assert screen.versions_are_those_of_the_lake()
    assert screen.provider.texts[asked:] == ["no login by app"] * 2
    see_finished_backfill(screen, found[1])


def test_a_backfill_from_the_page_of_a_job_has_a_page(screen: Screen) -> None:
    page = screen.open(f"locations/{LOCATION}/jobs/{TASK}_slices")
    page.get_by_role("button", name="Materialize all").click()
    backfill = screen.launch("app", "phone")
    ended = dg.RunsFilter(tags={"dagster/backfill": backfill}, statuses=[dg.DagsterRunStatus.SUCCESS])
    screen.wait(lambda: screen.instance.get_runs_count(ended) == 1)
    see_finished_backfill(screen, backfill)
    [outer] = screen.instance.get_runs(ended)
    runs = screen.instance.get_runs(dg.RunsFilter(tags={"distill/campaign": outer.run_id}))
    assert {run.tags["dagster/partition"] for run in runs if run.run_id != outer.run_id} == {"app", "phone"}
    assert {get_campaign(run) for run in runs} == {backfill}, "one budget for the whole backfill"


def see_finished_backfill(screen: Screen, backfill: str) -> None:
    """Open the page of a backfill of two slices: it shows them, and no request of it fails."""
    failures: list[str] = []
    screen.page.on("response", lambda response: failures.append(response.url) if response.status >= 400 else None)
    screen.open(f"runs/b/{backfill}")
    expect(screen.page.get_by_text("100% completed", exact=True)).to_be_visible()
    assert failures == []


def test_a_tick_of_the_schedule_refreshes_the_task(screen: Screen) -> None:
    screen.project.change_task(curation={"min_rows": 4})
    page = screen.open(f"locations/{LOCATION}/schedules/{TASK}_refresh_schedule")
    expect(page.get_by_text("Makes what automation left over", exact=False)).to_be_visible()
    page.get_by_role("button", name="Preview tick result").click()
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("button", name="Launch all").click()
    screen.wait(lambda: bool(screen.runs(schedule_name=f"{TASK}_refresh_schedule")))
    screen.see_success(screen.runs(schedule_name=f"{TASK}_refresh_schedule")[0].run_id)
    screen.open(f"assets/{TASK}/refreshes")
    for text in ("teacher_calls", "prompt_tokens", "wall_s"):
        expect(page.get_by_text(text, exact=True).first).to_be_visible()
    made = re.compile(r"filtered_dataset.*student_adapter\[one\].*eval_report\[one\]")
    expect(page.get_by_text(made).first).to_be_visible()


def test_the_report_opens_by_a_link(screen: Screen) -> None:
    page = screen.open(f"assets/{TASK}/eval_report?view=partitions&partition=one")
    with page.context.expect_page() as opened:
        page.locator('a[href="/reports/shop_mail/one/report.html"]').first.click()
    expect(opened.value.get_by_role("heading", level=1)).to_contain_text(TASK)
    opened.value.close()


def test_sensors_turned_on_by_hand_make_what_an_edit_calls_for(screen: Screen) -> None:
    descriptions = {"files": "Watches the task's files", "automation": "Runs what a change of content requires"}
    page = screen.open("automation")
    expect(page.get_by_text(f"{TASK}_refresh_schedule", exact=True)).to_be_visible()
    for name, text in descriptions.items():
        screen.automation_row(f"sensors/{TASK}_{name}").get_by_label("info").hover()
        expect(page.get_by_text(text).first).to_be_visible()
        page.reload()  # one tooltip would cover the next
    for name in descriptions:
        screen.turn_on(f"sensors/{TASK}_{name}")
    screen.wait(lambda: {f"{TASK}_{name}" for name in descriptions} <= ticked(screen))

    screen.project.change_slice("phone", lambda value: value["seeds"].append("no login by phone today"))
    long_ago = time.time() - 60  # as if the files were quiet for so long
    for path in [screen.project.folder, *screen.project.folder.rglob("*")]:
        os.utime(path, (long_ago, long_ago))
    before, asked = screen.events(), len(screen.provider.requests)
    wanted = {(asset, "phone") for asset in GROUP} | {("filtered_dataset", None)}
    screen.wait(lambda: screen.made_since(before) >= wanted, seconds=240)
    assert screen.made_since(before) == wanted
    assert screen.versions_are_those_of_the_lake()
    assert screen.provider.texts[asked:] == ["no login by phone today"] * 2


def ticked(screen: Screen) -> set[str]:
    """The sensors that were evaluated at least once."""
    states = screen.instance.all_instigator_state()
    return {s.name for s in states if screen.instance.get_ticks(s.instigator_origin_id, s.selector_id, limit=1)}
