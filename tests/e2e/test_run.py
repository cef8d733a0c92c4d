"""`distill run` from nothing, and again: everything is made, recorded and reported once."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import dagster as dg
import polars as pl
import pytest

from distill_dagster.pipeline.check_catalogue import STAGE_CHECKS
from distill_dagster.pipeline.source_versions import compute_source_version
from distill_dagster.pipeline.stage_table import list_sources, list_stages
from distill_dagster.tables.lake import format_artifact_name
from distill_dagster.tables.validation import EXPECTATIONS
from distill_dagster.tasks import TaskFolder
from tests.e2e.conftest import Complete
from tests.e2e.project import GROUP, HELD_OUT_REQUESTS, SEED_REQUESTS, SEEDS, STUDENT, TASK, Project, hash_files
from tests.support.provider import FakeProvider
from tests.support.task import write_small_task

STUDENTS = ["one", "two"]
KEYS: dict[str | None, list[str | None]] = {None: [None], "slice": [*sorted(SEEDS)], "student": [*STUDENTS]}
MADE = {name: KEYS[stage.partition] for name, stage in list_stages().items() if not stage.is_explicit}


def test_a_run_from_nothing_makes_everything_once(complete: Complete) -> None:
    assert complete.ended.code == 0, complete.ended.err
    assert complete.ended.partitions == MADE
    value = complete.ended.json
    assert value["failed"] == value["blocked"] == {}
    assert value["teacher_calls"] == complete.requests == SEED_REQUESTS + HELD_OUT_REQUESTS
    assert value["teacher_calls_cached"] == 0
    assert value["cost_usd"] is None, "the price of this teacher is unknown, and no guess is made"
    assert 0 < value["model_s"] < value["wall_s"]
    assert complete.project.stored_answers() == complete.requests


def test_dagster_knows_every_artifact_with_its_data_version(complete: Complete) -> None:
    project = complete.project
    with project.instance() as instance:
        assert sorted(instance.get_dynamic_partitions(f"{TASK}_slices")) == sorted(SEEDS)
        for asset, partitions in MADE.items():
            for partition in partitions:
                chosen = [partition] if partition else None
                records = dg.AssetRecordsFilter(asset_key=dg.AssetKey([TASK, asset]), asset_partitions=chosen)
                found = instance.fetch_materializations(records, limit=10).records
                assert len(found) == 1, format_artifact_name(asset, partition)
                event = found[0].asset_materialization
                assert event is not None
                record = project.record(asset, partition)
                assert (event.tags or {})["dagster/data_version"] == record.data_version
                assert event.metadata["dagster/row_count"].value == record.rows


def test_dagster_knows_every_source_with_its_data_version(complete: Complete) -> None:
    folder = TaskFolder(complete.project.folder)
    with complete.project.instance() as instance:
        for source in list_sources().values():
            for partition in KEYS[source.partition]:
                chosen = [partition] if partition else None
                records = dg.AssetRecordsFilter(asset_key=dg.AssetKey([TASK, source.name]), asset_partitions=chosen)
                found = instance.fetch_observations(records, limit=10).records
                assert len(found) == 1, format_artifact_name(source.name, partition)
                event = found[0].asset_observation
                assert event is not None
                version = compute_source_version(folder, source.name, partition)
                assert (event.tags or {})["dagster/data_version"] == version


def test_every_check_is_recorded_for_every_partition_and_passed(complete: Complete) -> None:
    recorded: Counter[tuple[str, str]] = Counter()
    with complete.project.instance() as instance:
        for run in complete.ended.json["runs"]:
            for entry in instance.all_logs(run, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
                assert entry.dagster_event is not None
                evaluation = entry.dagster_event.asset_check_evaluation_data
                asset = evaluation.asset_key.path[1]
                recorded[format_artifact_name(asset, evaluation.partition), evaluation.check_name] += 1
                # One step of training, as here, cannot show that its loss fell.
                assert evaluation.passed or evaluation.check_name == "loss_fell", (evaluation, evaluation.metadata)
    wanted = {
        (format_artifact_name(a, p), check.name): 1
        for a, partitions in MADE.items()
        for p in partitions
        for check in STAGE_CHECKS[a]
    }
    assert recorded == wanted


def test_the_report_and_its_figures_are_there(complete: Complete) -> None:
    for student in STUDENTS:
        folder = complete.project.home / "reports" / TASK / student
        assert {"report.html", "metrics.json", "predictions.parquet"} <= {path.name for path in folder.iterdir()}
        metrics = json.loads((folder / "metrics.json").read_text())
        assert (metrics["task"], metrics["student"]) == (TASK, student)
        assert {"teacher", "base", "seed_only", "distilled", "linear_probe", "centroid"} == set(metrics["systems"])
        for name, system in metrics["systems"].items():
            assert system["metric"] == "accuracy"
            assert {"cost_usd_per_1k", "parameters", "bytes"} <= set(system), name
            assert system["score"]["low"] <= system["score"]["value"] <= system["score"]["high"]
            assert system["latency_s"]["p50"] <= system["latency_s"]["p95"]
        assert metrics["systems"]["distilled"]["parameters"] > 1_000_000
        assert {"value", "low", "high"} <= set(metrics["retention"])
        assert metrics["dataset_version"] == complete.project.record("filtered_dataset").data_version
        assert metrics["verdict"]["text"] in complete.project.distill("report", TASK, "--student", student).out
        predictions = pl.read_parquet(folder / "predictions.parquet")
        counts = predictions.filter(pl.col("split") == "golden").group_by("system").len()
        assert dict(counts.iter_rows()) == dict.fromkeys(metrics["systems"], 6)


def test_each_look_at_golden_is_logged_and_shown(complete: Complete) -> None:
    """Invariant 10."""
    reports = complete.project.home / "reports" / TASK
    looks = [json.loads(line) for line in (reports / "golden_looks.jsonl").read_text().splitlines()]
    assert [look["student"] for look in looks] == STUDENTS
    assert {look["run_id"] for look in looks} <= set(complete.ended.json["runs"])
    for look in looks:
        version = complete.project.record("predictions", look["student"]).data_version
        assert look["predictions_version"] == version
    shown = json.loads((reports / "two" / "metrics.json").read_text())["golden_looks"]
    assert shown == looks[1:], "the report of a student shows the looks at golden that were for this student"


def test_a_second_run_has_nothing_to_do_and_asks_nobody(project: Project, provider: FakeProvider) -> None:
    before = hash_files(project.home / "lake") | hash_files(project.home / "reports")
    ended = project.run("--student", "one", "--student", "two")
    assert ended.code == 0
    assert "nothing to do" in project.distill("run", TASK, "--student", "one", "--student", "two").out
    assert ended.json["runs"] == []
    assert ended.partitions == {}
    assert provider.requests == []
    assert hash_files(project.home / "lake") | hash_files(project.home / "reports") == before


def test_status_report_tasks_and_check_show_the_complete_project(project: Project) -> None:
    status = project.distill("status", TASK, "--json").json
    assert status["counts"] == {"fresh": 19, "stale": 0, "missing": 0, "waiting": 0, "malformed": 0}
    assert all(one["why"] == [] for one in status["artifacts"])
    report = project.distill("report", "--student", "two")
    assert report.code == 0
    assert str(project.home / "reports" / TASK / "two" / "report.html") in report.out.replace("\n", "")
    assert TASK in project.distill("tasks").out
    assert "0 errors" in project.distill("check").out


def test_a_student_that_nobody_asked_for_is_not_missing(project: Project) -> None:
    project.change_task(students={"three": STUDENT | {"seed": 3}})
    status = project.distill("status", TASK, "--json").json
    assert status["counts"] == {"fresh": 19, "stale": 0, "missing": 0, "waiting": 0, "malformed": 0}
    assert status["untrained_students"] == ["three"]
    shown = " ".join(project.distill("status", TASK).out.split())
    assert f"Not trained, since nobody asked for it: three; `distill run {TASK} --student three` does it." in shown
    project.change_task(default_student="three")
    status = project.distill("status", TASK, "--json").json
    assert status["untrained_students"] == []
    assert status["counts"]["missing"] > 0


def test_a_malformed_neighbour_changes_nothing(project: Project, provider: FakeProvider) -> None:
    (write_small_task(project.root, "broken").path / "task.yaml").write_text("labels: [\n")
    ended = project.run()
    assert ended.code == 0, ended.err
    assert ended.partitions == {}
    assert "malformed" in project.distill("tasks").out
    assert provider.requests == []


def test_a_lost_dagster_instance_is_filled_from_the_stored_answers(project: Project, provider: FakeProvider) -> None:
    """What the lake has and the instance does not know is made again, without asking anybody."""
    answers = project.record("teacher_completions", "web").data_version
    for path in sorted((project.home / "instance").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    ended = project.run("--slice", "web")
    assert ended.code == 0, ended.err
    assert ended.partitions["teacher_completions"] == ["web"]
    assert ended.json["teacher_calls_cached"] >= SEED_REQUESTS // 2
    assert provider.requests == []
    assert project.record("teacher_completions", "web").data_version == answers


def test_data_docs_show_every_table(project: Project) -> None:
    ended = project.distill("data-docs", TASK, "--json")
    assert ended.code == 0, ended.err
    page = Path(ended.json["page"])
    assert page == project.home / "data_docs" / TASK / "index.html"
    names = ["prompt_context", "golden_completions", "teacher_gate", "filtered_dataset", "predictions[two]"]
    names += [f"{stage}[{key}]" for stage in GROUP for key in ("shop", "web")]
    shown = page.read_text()
    assert [name for name in names if name not in shown] == []
    results = list((page.parent / "validations").rglob("*.html"))
    assert len(results) == ended.json["tables"]
    assert not list(page.parent.parent.glob(".*")), "nothing half-written is left"
    pages = {path: path.read_text() for path in page.parent.rglob("*.html")}
    for path, text in pages.items():
        assert not re.findall(r"https?://|<script|<link|<img", text), f"{path} needs the network"
        for link in re.findall(r'href="([^"#]+)', text):
            assert (path.parent / unquote(link)).is_file(), f"{path} links to {link}"
    assert len(pages) == 1 + 2 * ended.json["tables"], "the start page, and two for every table"


def test_the_start_page_of_data_docs_names_what_did_not_pass(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPECTATIONS, "prompt_context", [("ExpectTableRowCountToEqual", {"value": 1})])
    page = Path(project.distill("data-docs", TASK, "--json").json["page"])
    shown = re.sub(r"<[^>]+>", " ", page.read_text())
    assert "1 did not pass" in shown
    assert re.search(r"prompt_context\s+✗ did not pass\s+\d+\s+0 of 1", shown)


def test_data_docs_of_nothing_is_an_error(fresh: Project) -> None:
    ended = fresh.distill("data-docs", TASK)
    assert ended.code == 1
    assert "no table yet" in ended.err
    assert not (fresh.home / "data_docs").exists()


def test_a_run_ends_with_the_leaderboard_of_its_students(project: Project) -> None:
    """Also a run with nothing to do. Both students have the same teacher, probe and centroid, which stand once."""
    said = project.distill("run", TASK, "--student", "one", "--student", "two").out
    assert "up to date" in said
    table = [line.split("│") for line in said.splitlines() if "│" in line]
    assert [(cells[0].strip(), cells[1].strip()) for cells in table] == [
        ("teacher", ""),
        *[(system, "one") for system in ("untrained", "human labels only", "distilled")],
        *[(system, "two") for system in ("untrained", "human labels only", "distilled")],
        ("linear probe", ""),
        ("class centroid", ""),
    ]
    assert all(cells[-1].strip().startswith("$") for cells in table[1:]), "what runs on this machine has a cost"
    for student in STUDENTS:
        assert f"{student}: " in said
    assert project.distill("leaderboard", TASK).out in said
    assert not any("│ two" in line for line in project.distill("run", TASK, "--student", "one").out.splitlines())
