"""A stage reads what the stage table declares for it, all of it and nothing else, and its record says what it read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distill_dagster.config import BudgetSpec
from distill_dagster.core import plots
from distill_dagster.core.checks import CheckResult
from distill_dagster.pipeline import retry_backoff
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.stage_table import SOURCES, STAGES
from distill_dagster.pipeline.stages import (
    assistants,
    dataset,
    eval_report,
    gate,
    judged_pairs,
    predictions,
    preference_pairs,
    prompts,
    release,
    replay_rows,
    scores,
    students,
    teacher,
)
from distill_dagster.pipeline.stages.context import StageContext, StageInputs
from distill_dagster.student.types import Prediction, TrainingLog
from distill_dagster.tables.lake import ArtifactRecord, Lake, format_artifact_name
from distill_dagster.tables.schemas import DATASET, PROMPTS
from distill_dagster.tasks import TaskFolder
from distill_dagster.tasks.kept_datasets import write_kept_dataset
from distill_dagster.teacher.completions.usage import Usage
from tests.support.imagining import answer_as_teacher as teacher_answer
from tests.support.imagining import build_judge_answer, get_request_text, is_judge_request
from tests.support.provider import FakeProvider, ReceivedRequest
from tests.support.stages import DATA_STAGES
from tests.support.task import LABELS, build_stage_context, write_small_task

ASKING = [name for name, stage in STAGES.items() if stage.purpose is not None]


@pytest.fixture
def env(tmp_path: Path) -> Iterator[StageContext]:
    env = build_stage_context(write_small_task(tmp_path), tmp_path / "home")
    yield env
    env.store.close()


def test_an_input_that_the_table_does_not_declare_cannot_be_read(env: StageContext) -> None:
    inputs = StageInputs(env, "seed_prompts", "shop")
    with pytest.raises(AssertionError, match="seed_prompts reads golden_set, which the stage table does not declare"):
        inputs.note_source("golden_set")


def test_a_declared_input_has_to_be_read(env: StageContext) -> None:
    inputs = StageInputs(env, "seed_prompts", "shop")
    inputs.note_source("teacher_settings")
    with pytest.raises(AssertionError, match=r"declares the input slice_files\[shop\] and does not read it"):
        inputs.build_record("v", 0)


def test_inputs_follow_the_features_of_the_task(tmp_path: Path, env: StageContext) -> None:
    assert "slice_label_adapter" not in StageInputs(env, "predictions", "tiny").upstream
    assert "imagine_settings" not in StageInputs(env, "seed_prompts", "shop").upstream
    folder = write_small_task(tmp_path / "other", imagine={"per_request": 2})
    (folder.path / "slices" / "shop.yaml").rename(folder.path / "slices" / "refund.yaml")
    (folder.path / "slices" / "web.yaml").rename(folder.path / "slices" / "login.yaml")
    other = replace(env, folder=folder)
    assert "slice_label_adapter" in StageInputs(other, "predictions", "tiny").upstream
    assert "imagine_settings" in StageInputs(other, "seed_prompts", "refund").upstream


def test_an_artifact_that_the_graph_no_longer_has_is_no_input(env: StageContext) -> None:
    """All slices were named like labels once, so the lake still has that adapter."""
    stage = STAGES["slice_label_adapter"]
    record = ArtifactRecord("slice_label_adapter", "tiny", "v", stage.code_version, {})
    env.lake.write(env.task_name, PROMPTS.to_frame(), record)
    with pytest.raises(AssertionError, match="predictions reads slice_label_adapter"):
        StageInputs(env, "predictions", "tiny").read_table("slice_label_adapter", PROMPTS, "tiny")


@pytest.mark.parametrize("asset", ASKING)
@pytest.mark.parametrize("stopped", [None, "budget.usd is reached"], ids=["failed", "budget stop"])
def test_every_stage_that_asks_notes_when_it_asks_again(
    env: StageContext, asset: str, stopped: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StageInputs, "_check_complete", lambda _: None)
    env = replace(env, cap=BudgetSpec(usd=1.0))
    partition = "shop" if STAGES[asset].partition == "slice" else None
    for tries in (1, 2):
        inputs = StageInputs(env, asset, partition)
        record = inputs.write_table(pl.DataFrame(schema=PROMPTS), [], 3, Usage(stopped=stopped))
        assert record.extra["missing"]["tries"] == tries
    now = record.extra["missing"]["at"]
    assert retry_backoff.explain_wait(record, env.budget, now) is not None
    assert (retry_backoff.explain_wait(record, BudgetSpec(usd=2.0), now) is None) is (stopped is not None)
    fixed = StageInputs(env, asset, partition).write_table(pl.DataFrame(schema=PROMPTS), [], 0, Usage())
    assert "missing" not in fixed.extra


class NotingLake(Lake):
    """A lake that notes each artifact that somebody looks at."""

    seen: set[str] = set()  # noqa: RUF012 - the test replaces it before each stage

    def read_record(self, task: str, asset: str, partition: str | None = None) -> ArtifactRecord | None:
        self.seen.add(format_artifact_name(asset, partition))
        return super().read_record(task, asset, partition)

    def read(self, task: str, asset: str, partition: str | None, schema: pl.Schema) -> Any:
        self.seen.add(format_artifact_name(asset, partition))
        return super().read(task, asset, partition, schema)

    def scan_good(self, task: str, asset: str, partition: str, schema: pl.Schema, folder: Path) -> Any:
        self.seen.add(format_artifact_name(asset, partition))
        return super().scan_good(task, asset, partition, schema, folder)

    def get_folder(self, task: str, asset: str, partition: str) -> Path:
        self.seen.add(format_artifact_name(asset, partition))
        return super().get_folder(task, asset, partition)


FILES = {
    "golden": {"golden_set"},
    "dev": {"golden_set"},
    "examples": {"human_examples"},
    "human": {"human_examples"},
    "read_slice": {"slice_files"},
    "list_slice_keys": {"slice_manifest"},
    "read_templates": {"teacher_settings", "imagine_settings", "judge_settings"},
}
"""The sources that stand for the contents of a task folder; one of them has to be recorded."""


class NotingFolder(TaskFolder):
    """A task folder that notes which of its contents somebody reads."""

    def __getattribute__(self, name: str) -> Any:
        if name in FILES:
            vars(self).setdefault("seen", set()).add(name)
        return super().__getattribute__(name)


FRESHNESS = {
    "prompt_context",
    "teacher_prior",
    "teacher_gate",
    "seed_prompts",
    "teacher_completions",
    "slice_files",
    "teacher_settings",
}
ALSO_SEEN = {
    "filtered_dataset": FRESHNESS,
    "seed_prompts": {"golden_set"},
    "scored_completions": {"teacher_gate"},
    "eval_report": {"slice_manifest"},
}
"""What a stage may look at without recording it.

The dataset lists why a slice gives its last good rows, which no row depends on. The imaginer is not shown golden and
dev rows; a change of these files must not ask for slices again, and decontamination removes leaks from the dataset.
Scored completions show how well soft labels are calibrated on dev, which no row depends on. The report adds up what the
answers of all slices cost; other slices give another dataset, which it records.
"""


class FakeStudent:
    """Answers the first label."""

    parameters = bytes = 1

    def predict(self, texts: list[str], batch_size: int = 32) -> list[Prediction]:
        return [Prediction("refund", {"refund": 0.5, "delivery": 0.3, "login": 0.2}, "refund") for _ in texts]


def train_nothing(*args: Any, **_: Any) -> TrainingLog:
    args[5].joinpath("adapter.bin").write_bytes(b"weights")
    log = TrainingLog(losses=[(1, 1, 1.0), (2, 1, 0.5)], epochs=1, steps=2)
    args[5].joinpath(students.TRAINING_LOG_FILE).write_text(json.dumps(log.to_dict()))
    return log


def answer_anything(seen: ReceivedRequest) -> str:
    if not is_judge_request(seen):
        return teacher_answer(seen)
    if "You compare" in get_request_text(seen):
        return json.dumps({"reason": "it fits", "best": 1})
    return json.dumps(build_judge_answer(correct=5))


MAKERS = DATA_STAGES | {
    "preference_pairs": preference_pairs.make_preference_pairs,
    "replay_rows": replay_rows.make_replay_rows,
    "seed_only_adapter": students.make_seed_only_adapter,
    "assistant_adapter": students.make_assistant_adapter,
    "assistant_labels": assistants.make_assistant_labels,
    "student_adapter": students.make_student_adapter,
    "slice_label_adapter": students.make_slice_label_adapter,
    "predictions": predictions.make_predictions,
    "judged_pairs": judged_pairs.make_judged_pairs,
    "eval_report": eval_report.make_eval_report,
    "release": release.make_release,
}
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "imagine": {"imagine": {"per_request": 2}},
    "judge": {
        "judge": {
            "model": "openai/judge",
            "rubric": [{"name": "correct", "description": "it fits"}],
            "terms": {"acknowledged": True},
        }
    },
    "win_rate": {
        "judge": {
            "model": "openai/judge",
            "rubric": [{"name": "correct", "description": "it fits"}],
            "terms": {"acknowledged": True},
        },
        "evaluation": {"judged_items": 4},
    },
    "scores": {"curation": {"filters": {"echo": True}, "min_rows": 1, "min_slices": 1}},
    "slice_labels": {},
    "assistants": {
        "students": {
            "small": {"model": "all-minilm-l6-v2", "architecture": "encoder", "teacher": "student:tiny"},
            "plain": {"model": "all-minilm-l6-v2", "architecture": "encoder"},
        },
    },
    "replay": {"students": {"tiny": {"data": {"replay": {"dataset": "march"}}}}},
    "preference": {
        "students": {
            "plain": {"model": "all-minilm-l6-v2", "architecture": "encoder"},
            "tiny": {
                "model": "smollm2-135m-instruct",
                "architecture": "causal_lm",
                "then": [{"kind": "preference"}],
            },
        },
    },
}


def _list_inputs(lake: Lake, folder: TaskFolder, asset: str, student: str) -> set[str]:
    record = lake.read_record(folder.name, asset, student)
    assert record is not None
    return set(record.inputs)


@pytest.mark.parametrize("feature", FEATURES)
def test_every_stage_records_what_it_reads_and_reads_what_it_records(
    tmp_path: Path, feature: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(students, "train_adapter", train_nothing)
    monkeypatch.setattr(predictions, "load_predictor", lambda *_: FakeStudent())
    monkeypatch.setattr(assistants, "load_predictor", lambda *_: FakeStudent())
    monkeypatch.setattr(predictions, "build_centroid_predictor", lambda *_: FakeStudent())
    monkeypatch.setattr(predictions, "build_linear_probe_predictor", lambda *_: FakeStudent())
    monkeypatch.setattr(release, "run_release_gate", lambda *_: [])
    monkeypatch.setattr(release, "fill_release", lambda *_: {"student": "x", "exports": [], "left_out": []})
    monkeypatch.setattr(release, "read_golden_scores", lambda *_: [])
    for name in ("plot_counts", "plot_lines", "plot_intervals"):
        monkeypatch.setattr(plots, name, lambda *_: b"")
    for module in (prompts, teacher, scores, gate, dataset, preference_pairs, assistants, predictions):
        monkeypatch.setattr(module, "check_table", lambda *_: CheckResult("valid_table", True))
    with FakeProvider(LABELS, answer=answer_anything) as provider:
        asking = {"api_base": provider.url, "api": "chat", "soft_labels": "votes", "max_retries": 0}
        changes = {"curation": {"min_rows": 1, "validation_share": 0}} | FEATURES[feature]
        if "judge" in changes:
            changes["judge"] |= {"api_base": provider.url}
        folder = write_small_task(tmp_path, teacher=asking, **changes)
        if feature == "slice_labels":
            for old, new in (("shop", "refund"), ("web", "login")):
                (folder.path / "slices" / f"{old}.yaml").rename(folder.path / "slices" / f"{new}.yaml")
        if feature == "replay":
            write_kept_dataset(folder.path, "march", DATASET.to_frame())
        if feature == "imagine":
            path = folder.path / "slices" / "shop.yaml"
            path.write_text(path.read_text() + "target: 5\n")
        noting = NotingFolder(folder.path, tmp_path / "accepted", folder.find_problems)
        lake = NotingLake(tmp_path / "home" / "lake", tmp_path / "home" / "reports")
        env = replace(build_stage_context(folder, tmp_path / "home"), lake=lake)
        plan = TaskState(folder, lake)
        for stage in plan.stages.values():
            for partition in plan.list_partitions(stage):
                fresh = NotingFolder(noting.path, noting.accepted, noting.find_problems)
                lake.seen = set()
                record = MAKERS[stage.name](replace(env, folder=fresh), partition).record
                inputs = {name.partition("[")[0] for name in record.inputs}
                known = {*inputs, stage.name, *ALSO_SEEN.get(stage.name, ())}
                artifacts = {name for name in lake.seen if name not in SOURCES}
                assert {name for name in artifacts if name.partition("[")[0] not in known} == set(), stage.name
                files = vars(fresh).get("seen", set())
                assert {name for name in files if not FILES[name] & known} == set(), stage.name
        assert {s.name: s.why for s in TaskState(folder, lake).list_statuses() if s.state != "fresh"} == {}
        if feature == "preference":
            read = {key: _list_inputs(lake, folder, "student_adapter", key) for key in folder.task.students}
            readers = {key for key, inputs in read.items() if "preference_pairs" in inputs}
            assert readers == {"tiny"}, "a student without the phase does not depend on pairs"
        if feature == "assistants":
            read = {key: _list_inputs(lake, folder, "student_adapter", key) for key in folder.task.students}
            assert read == {
                "tiny": {"assistant_adapter[tiny]"},
                "small": {"assistant_labels[tiny]", "student_settings[small]"},
                "plain": {"filtered_dataset", "student_settings[plain]"},
            }
            read = {key: _list_inputs(lake, folder, "predictions", key) for key in folder.task.students}
            assert {key for key, inputs in read.items() if "assistant_adapter[tiny]" in inputs} == {"small"}
        env.store.close()
