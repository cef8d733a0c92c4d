"""Releasing: only on demand, behind the gate, numbered, and whole or not at all."""

from __future__ import annotations

import importlib
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from huggingface_hub import ModelCard

from distill_dagster.release.golden_scores import read_golden_scores
from distill_dagster.release.registry import Registry, verify_release
from distill_dagster.release.runtimes.build import build_runtime
from distill_dagster.release.runtimes.types import StudentSetup
from distill_dagster.student.types import StudentPrompt
from distill_dagster.tables.schemas import PREDICTIONS
from tests.e2e.project import TASK, CommandResult, Project
from tests.support.task import LABELS
from tests.support.waiting import wait_until

OPEN_GATE: dict[str, Any] = {"retention": None, "calibration": None, "no_regression": False}


def release(project: Project, *arguments: str) -> CommandResult:
    return project.distill("release", TASK, "--json", *arguments)


@pytest.fixture
def ready(project: Project) -> Project:
    """A finished project whose students pass the gate, released without ONNX, which has tests of its own."""
    project.change_task(release={"exports": ["adapter", "merged"], "gate": OPEN_GATE})
    return project


def list_releases(project: Project) -> list[int]:
    return Registry(project.home / "releases").list_numbers(TASK)


def find_check(project: Project, name: str) -> bool:
    """Whether the check of the asset passed, as Dagster knows it."""
    key = dg.AssetCheckKey(dg.AssetKey([TASK, "release"]), name)
    with project.instance() as instance:
        [record] = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    assert record.event is not None
    assert record.event.asset_check_evaluation is not None
    return record.event.asset_check_evaluation.passed


def test_a_release_is_whole_and_nothing_else_releases(ready: Project) -> None:
    assert ready.run().json["runs"] == []
    assert list_releases(ready) == []
    made = release(ready).json
    assert (made["number"], made["student"], made["current"]) == (1, "one", True)
    registry = Registry(ready.home / "releases")
    found = registry.read(TASK)
    verify_release(found)
    assert [export.name for export in found.exports] == ["adapter", "merged"]
    assert found.manifest["made_from"]["student_adapter[one]"] == ready.record("student_adapter", "one").data_version
    assert len(read_golden_scores(found.path)) == found.manifest["items"] == 6
    card = ModelCard.load(found.path / "README.md")
    assert card.data.eval_results[0].metric_value == found.manifest["score"]["value"]
    setup = StudentSetup.read(found.path, ready.home / "models")
    runtime = build_runtime(found.path, setup, "adapter")
    runtime.open()
    assert runtime.answer([StudentPrompt.from_text("I want a refund")])[0].answer in LABELS
    runtime.close()

    again = release(ready)
    assert again.json["number"] == 1
    assert "Next: `distill serve" in ready.distill("release", TASK).out
    assert "release" not in ready.run().partitions
    assert ready.distill("refresh", TASK, "--json").json["runs"] == []
    assert list_releases(ready) == [1]


def test_a_damaged_release_is_made_again(ready: Project) -> None:
    """Its own error says to release again, so nothing that changed must not be the answer."""
    ready.change_task(release={"gate": {"no_regression": True}})
    assert release(ready).json["number"] == 1
    card = Registry(ready.home / "releases").read(TASK).path / "README.md"
    card.chmod(0o644)
    card.write_text("other")
    again = ready.distill("release", TASK)
    assert "Release 1 is damaged, so it is made again: README.md was changed." in " ".join(again.out.split())
    assert list_releases(ready) == [1, 2]


def test_an_adapter_that_was_trained_after_its_report_is_not_released(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from the UI, where the asset can be materialized at any time."""
    command = importlib.import_module("distill_dagster.cli.release")
    monkeypatch.setattr(command, "_require_report", lambda *_: None)
    frame, record = ready.lake.read(TASK, "predictions", "one", PREDICTIONS)
    older = replace(record, inputs=record.inputs | {"student_adapter[one]": "an older one"})
    ready.lake.write(TASK, frame, older)
    refused = ready.distill("release", TASK)
    assert refused.code == 1
    assert "predictions[one] was made from another student_adapter[one]" in " ".join(refused.err.split())
    assert list_releases(ready) == []


def test_one_can_list_compare_and_go_back(ready: Project) -> None:
    assert ready.distill("status", TASK, "--json").json["release"] is None
    release(ready)
    assert "Released: 1 (one), as its report says." in ready.distill("status", TASK).out
    assert release(ready, "--student", "two").json["number"] == 2
    listed = ready.distill("releases", TASK, "--json").json
    assert [(one["number"], one["student"], one["current"]) for one in listed["releases"]] == [
        (1, "one", False),
        (2, "two", True),
    ]
    assert ready.distill("releases", TASK, "--use", "1", "--json").json["current"] == 1
    compared = ready.distill("releases", TASK, "--compare", "1", "2", "--json").json["differences"]
    changed = {row["name"]: (row["first"], row["second"]) for row in compared}
    assert changed["student"] == ("one", "two")
    assert changed["student.seed"] == ("0", "1")
    assert "better" in changed["on 6 golden items of both"][1]
    wrong = ready.distill("releases", TASK, "--use", "9")
    assert wrong.code == 1
    assert "no release 9. Use one of 1, 2" in wrong.err
    ready.change_task(release={"gate": {"readable": 0.5}})
    told = ready.distill("status", TASK, "--json").json["release"]
    assert told == {"number": 1, "student": "one", "is_current": False, "why": ["release_settings changed"]}
    assert "older than what is there: release_settings changed" in ready.distill("status", TASK).out


def test_an_export_that_answers_otherwise_is_a_failed_check(ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill_dagster.release.merged.MAX_DIFFERENCE", -1.0)
    refused = ready.distill("release", TASK)
    assert refused.code == 1
    assert "The merged model does not answer as the adapter" in " ".join(refused.err.split())
    assert find_check(ready, "exports_answer_as_adapter") is False
    assert find_check(ready, "answers_readable") is True
    assert list_releases(ready) == []


def test_a_student_below_the_gate_is_not_released(ready: Project) -> None:
    ready.change_task(release={"gate": {"retention": 1.9}})
    refused = ready.distill("release", TASK)
    assert refused.code == 1
    assert "keeps_teacher_score" in refused.err
    assert "would pass:" in refused.err
    assert list_releases(ready) == []
    assert find_check(ready, "keeps_teacher_score") is False


def test_only_what_was_evaluated_as_it_is_can_be_released(ready: Project) -> None:
    assert "--push, which is missing" in " ".join(ready.distill("release", TASK, "--public").err.split())
    assert "Name a repository as org/name" in ready.distill("release", TASK, "--push", "mail").err
    ready.change_task(evaluation={"seed": 7})
    stale = ready.distill("release", TASK, "--student", "two")
    assert stale.code == 1
    assert "eval_report[two] is stale (evaluation_settings changed)" in stale.err
    assert f"distill run {TASK} --student two" in " ".join(stale.err.split())


def test_a_killed_release_leaves_nothing_and_can_be_repeated(ready: Project) -> None:
    process = ready.start("release", TASK, log=ready.root / "log")
    unfinished = ready.home / "releases" / TASK / ".writing"
    wait_until(lambda: any(unfinished.glob("*/adapter")) or process.poll() is not None, "the release to begin")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert unfinished.exists(), (ready.root / "log").read_text()
    assert list_releases(ready) == []
    assert ready.distill("releases", TASK).code == 1
    assert release(ready).json["number"] == 1
    assert not unfinished.exists()


def test_the_dataset_is_exported_with_a_card(ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    target = ready.root / "out"
    told = ready.distill("export", TASK, "--dataset", "alpaca", "--out", str(target), "--json").json
    assert {path.name for path in target.iterdir()} == {"train.jsonl", "validation.jsonl", "README.md"}
    assert told["rows"] == sum(len(path.read_text().splitlines()) for path in target.glob("*.jsonl"))
    here = ready.root / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert ready.distill("export", TASK, "--out", ".").code == 0
    assert {path.name for path in Path().iterdir()} == {"train.jsonl", "validation.jsonl", "README.md"}
    assert "is not an empty folder" in ready.distill("export", TASK, "--out", str(target)).err
    assert "Use one of openai, trl" in ready.distill("export", TASK, "--dataset", "csv").err
