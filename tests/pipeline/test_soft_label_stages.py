"""Soft labels in the stages: calibration on dev is shown, the dataset is rescaled on demand, rows count by teacher."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill_dagster.config import Task
from distill_dagster.core import plots
from distill_dagster.core.checks import CheckResult
from distill_dagster.core.errors import DistillError
from distill_dagster.pipeline.stages import dataset, gate, prompts, scores, teacher
from distill_dagster.pipeline.stages.context import SampleTable
from distill_dagster.tasks.reading import read_task
from tests.pipeline.test_data_stages import Run
from tests.support.provider import FakeProvider, Fault
from tests.support.task import LABELS, TASK, build_stage_context, jsonl, merge_settings, pass_gate, write_small_task

DEV_ROWS = 60
CURATION = {"min_rows": 3, "validation_share": 0, "mix_examples": True}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (prompts, teacher, scores, gate, dataset):
        monkeypatch.setattr(module, "check_table", lambda *_: CheckResult("valid_table", True))
    monkeypatch.setattr(plots, "plot_counts", lambda *_: b"")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A teacher that is always as sure, KEYWORD_SHARE, and on dev right in four of ten rows."""
    with FakeProvider(LABELS) as provider:
        folder = write_small_task(tmp_path, teacher={"api_base": provider.url}, curation=CURATION)
        write_dev(folder.path, [n % 10 < 4 for n in range(DEV_ROWS)])
        env = build_stage_context(folder, tmp_path / "home")
        yield Run(env, provider, tmp_path)
        env.store.close()


def write_dev(folder: Path, right: list[bool]) -> None:
    """Dev rows that name a label; the human's label is this one where the teacher, who follows the word, is right."""
    rows = []
    for n, is_right in enumerate(right):
        named, other = LABELS[n % 3], LABELS[(n + 1) % 3]
        rows.append({"id": f"d{n}", "text": f"row {n} of dev, {named}", "label": named if is_right else other})
    (folder / "dev.jsonl").write_text(jsonl(rows))


def set_curation(run: Run, **changes: Any) -> None:
    path = run.env.folder.path / "task.yaml"
    path.write_text(yaml.safe_dump(merge_settings(yaml.safe_load(path.read_text()), {"curation": changes})))


def read_top_probs(run: Run) -> list[float]:
    soft = run.dataset().filter(run.dataset()["teacher"].is_not_null())["soft_labels"].to_list()
    return [max(entry["prob"] for entry in labels) for labels in soft]


def test_the_gate_measures_calibration_on_dev_and_scored_completions_shows_it(run: Run) -> None:
    run.update()
    result = run.make("teacher_gate")
    measured = result.record.extra["reliability"]
    assert (measured["rows"], measured["right"]) == (DEV_ROWS, pytest.approx(0.4))
    assert measured["ece"] == pytest.approx(measured["stated"] - 0.4, abs=1e-6)
    check = next(check for check in result.checks if check.name == "soft_labels_calibrated")
    assert (check.passed, check.severity) == (False, "warning")
    assert "rescale_soft_labels: temperature" in check.details["why"]
    assert result.record.extra.get("blocked") is None

    shown = run.make("scored_completions", "shop").shown
    assert shown["expected_calibration_error"] == round(measured["ece"], 4)
    table = shown["reliability"]
    assert isinstance(table, SampleTable)
    assert [(row["dev_rows"], row["share_right"]) for row in table.rows] == [(DEV_ROWS, 0.4)]


def test_a_calibrated_teacher_passes_and_one_without_probabilities_says_so(run: Run) -> None:
    write_dev(run.env.folder.path, [n % 10 < 7 for n in range(DEV_ROWS)])
    run.update()
    (check,) = [c for c in run.make("teacher_gate").checks if c.name == "soft_labels_calibrated"]
    assert check.passed
    path = run.env.folder.path / "task.yaml"
    one_vote = {"teacher": {"soft_labels": "votes", "few_shot": {"draws": 1}}}
    path.write_text(yaml.safe_dump(merge_settings(yaml.safe_load(path.read_text()), one_vote)))
    run.update()
    result = run.make("teacher_gate")
    (check,) = [c for c in result.checks if c.name == "soft_labels_calibrated"]
    assert check.passed
    assert "states no probabilities" in check.details["why"]
    assert "reliability" not in result.record.extra
    assert "reliability" not in run.make("scored_completions", "shop").shown


def test_the_dataset_is_rescaled_on_dev_and_only_on_demand(run: Run) -> None:
    run.update()
    stated, asked = read_top_probs(run), len(run.provider.requests)
    assert "temperatures" not in run.make("filtered_dataset").shown

    set_curation(run, rescale_soft_labels="temperature")
    assert run.stale()["filtered_dataset"]
    assert run.update() == ["filtered_dataset"], "slices are not asked or scored again"
    assert len(run.provider.requests) == asked
    result = run.make("filtered_dataset")
    (fit,) = result.record.extra["temperatures"].values()
    assert fit["rows"] == DEV_ROWS
    assert fit["temperature"] > 1
    assert fit["ece_after"] < 0.05 < fit["ece_before"]
    table = result.shown["temperatures"]
    assert isinstance(table, SampleTable)
    assert [row["temperature"] for row in table.rows] == [fit["temperature"]]
    rescaled = read_top_probs(run)
    assert all(new < old for new, old in zip(rescaled, stated, strict=True))
    assert rescaled == pytest.approx([0.4] * len(rescaled), abs=0.05)
    (check,) = [c for c in run.make("teacher_gate").checks if c.name == "soft_labels_calibrated"]
    assert check.passed, "the dataset corrects it"

    set_curation(run, rescale_soft_labels="none")
    assert run.update() == ["filtered_dataset"]
    assert read_top_probs(run) == stated


def test_golden_labels_do_not_change_the_temperature(run: Run) -> None:
    set_curation(run, rescale_soft_labels="temperature")
    run.update()
    before = run.make("filtered_dataset").record
    path = run.env.folder.path / "golden.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(jsonl([row | {"label": LABELS[0]} for row in rows]))
    assert "filtered_dataset" in run.update()
    after = run.make("filtered_dataset").record
    assert after.extra["temperatures"] == before.extra["temperatures"]
    assert after.data_version == before.data_version
    # Dev labels do.
    write_dev(run.env.folder.path, [True] * DEV_ROWS)
    run.update()
    assert run.make("filtered_dataset").record.extra["temperatures"] != before.extra["temperatures"]


def test_without_an_answer_to_dev_rescaling_says_what_is_missing(run: Run) -> None:
    path = run.env.folder.path / "task.yaml"
    settings = {"teacher": {"max_retries": 0, "min_success": 0, "smoke_rows": 0}}
    path.write_text(yaml.safe_dump(merge_settings(yaml.safe_load(path.read_text()), settings)))
    set_curation(run, rescale_soft_labels="temperature")
    run.provider.fail = lambda seen, _: Fault(500) if "of dev" in seen.text else None
    for asset in ("prompt_context", "teacher_prior", "golden_completions"):
        run.make(asset)
    pass_gate(run.env)
    for asset in ("seed_prompts", "teacher_completions", "scored_completions"):
        run.make(asset, "shop")
    with pytest.raises(DistillError, match=r"no dev row has soft labels .* golden_completions"):
        run.make("filtered_dataset")


def test_only_label_tasks_can_be_rescaled(tmp_path: Path) -> None:
    path = tmp_path / "math"
    path.mkdir()
    task = merge_settings(TASK, {"kind": "math", "labels": None, "curation": {"rescale_soft_labels": "temperature"}})
    task["teacher"] = {"model": "openai/fake", "terms": {"acknowledged": True}}
    (path / "task.yaml").write_text(yaml.safe_dump(task))
    problems = read_task(path).problems
    assert [p.field for p in problems if "rescaled" in p.message] == ["curation.rescale_soft_labels"]
    assert Task.model_validate(TASK).curation.rescale_soft_labels == "none"


def test_rows_are_counted_by_teacher(run: Run) -> None:
    path = run.env.folder.path
    settings = yaml.safe_load((path / "task.yaml").read_text())
    spec = settings.pop("teacher")
    (path / "recorded").mkdir()
    known = [{"text": "I want a refund", "label": "refund", "probs": {"refund": 0.9, "login": 0.1}}]
    (path / "recorded" / "big.jsonl").write_text(jsonl(known))
    settings["teachers"] = {"recorded": {"model": "replay/big"}, "small": spec}
    settings["cascade"] = {"min_agreement": 0, "min_confidence": 0}
    (path / "task.yaml").write_text(yaml.safe_dump(settings))
    run.update()
    shop = run.make("scored_completions", "shop").shown["teachers"]
    assert isinstance(shop, SampleTable)
    assert [(row["teacher"], row["rows"], row["answered"]) for row in shop.rows] == [
        ("small", 2, 2),
        ("recorded", 1, 1),
    ]
    table = run.make("filtered_dataset").shown["teachers"]
    assert isinstance(table, SampleTable)
    counts = {row["teacher"]: (row["train"], row["rejected"]) for row in table.rows}
    assert counts == {"people": (9, 0), "small": (5, 0), "recorded": (1, 0)}


def test_a_base_that_cannot_be_loaded_is_that_of_a_named_student(run: Run) -> None:
    path = run.env.folder.path / "task.yaml"
    settings = yaml.safe_load(path.read_text())
    settings |= {"students": {"tiny": {"model": "nowhere", "architecture": "encoder"}}, "gate": {}}
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(DistillError, match=r"students\.tiny, with whose base the teacher is compared: .*nowhere"):
        run.update()
