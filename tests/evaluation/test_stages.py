"""The stages that predict and report, with a student that needs no model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distill_dagster.config import Task
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.stage_table import REJECTED_ROWS
from distill_dagster.pipeline.stages import eval_report, predictions, prompts, scores, teacher
from distill_dagster.pipeline.stages.context import StageContext, StageInputs
from distill_dagster.pipeline.stages.dataset import make_filtered_dataset
from distill_dagster.student.types import TRAINING_LOG_FILE, Prediction
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.schemas import PREDICTIONS, REJECTED
from tests.support.provider import FakeProvider
from tests.support.task import LABELS, TASK, build_stage_context, pass_gate, reload_folder, write_small_task

STUDENT = "tiny"


@dataclass
class FirstLabel:
    """A predictor that answers everything with the first label."""

    parameters: int = 10
    bytes: int = 20

    def predict(self, texts: list[str], batch_size: int = 32) -> list[Prediction]:
        return [Prediction(LABELS[0], {label: float(label == LABELS[0]) for label in LABELS}, LABELS[0])] * len(texts)


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StageContext]:
    """A task in which every slice is named like a label, made up to its dataset and adapters."""
    monkeypatch.setattr(predictions, "load_predictor", lambda *_: FirstLabel())
    monkeypatch.setattr(predictions, "build_centroid_predictor", lambda *_: FirstLabel())
    with FakeProvider(LABELS) as provider:
        folder = write_small_task(
            tmp_path,
            teacher={"api_base": provider.url},
            curation={"min_rows": 2, "validation_share": 0},
        )
        for path, label in zip(sorted((folder.path / "slices").iterdir()), LABELS, strict=False):
            path.rename(path.with_name(f"{label}.yaml"))
        context = build_stage_context(reload_folder(folder), tmp_path / "home")
        for make in (
            prompts.make_prompt_context,
            teacher.make_teacher_prior,
            teacher.make_golden_completions,
        ):
            make(context, None)
        pass_gate(context)
        for key in context.folder.list_slice_keys():
            for make in (prompts.make_seed_prompts, teacher.make_teacher_completions, scores.make_scored_completions):
                make(context, key)
        make_filtered_dataset(context, None)
        for asset in ("seed_only_adapter", "student_adapter", "slice_label_adapter"):
            make_adapter(context, asset)
        yield context
        context.store.close()


def make_adapter(env: StageContext, asset: str) -> None:
    """Write the folder and record of an adapter without training one."""
    inputs = StageInputs(env, asset, STUDENT)
    for name, version in TaskState(env.folder, env.lake).find_inputs(inputs.stage, STUDENT).items():
        assert version is not None
        inputs.versions[name] = version

    def fill(folder: Path) -> str:
        log: dict[str, Any] = {"losses": [[1, 0.5, 2.0], [2, 1.0, 1.0]], "validation": [], "steps": 2, "epochs": 1}
        (folder / TRAINING_LOG_FILE).write_text(json.dumps(log))
        return asset

    target = env.lake.get_folder(env.task_name, asset, STUDENT)
    env.lake.write_folder(target, lambda version: inputs.build_record(version, 1), fill)


def read_why(env: StageContext, asset: str) -> tuple[str, ...]:
    return TaskState(env.folder, env.lake).get_status(asset, STUDENT).why


def test_a_report_is_fresh_until_something_that_it_shows_changes(env: StageContext) -> None:
    predictions.make_predictions(env, STUDENT)
    result = eval_report.make_eval_report(env, STUDENT)
    assert [read_why(env, asset) for asset in ("predictions", "eval_report")] == [(), ()]
    figures = json.loads((env.lake.get_folder(env.task_name, "eval_report", STUDENT) / "metrics.json").read_text())
    assert figures["dataset_version"] == result.record.inputs["filtered_dataset"]
    assert "golden items one by one" in figures["latency_method"]
    assert list(figures["dataset"]["kept"]) == ["train"]
    assert [check.passed for check in result.checks] == [True]

    # Other rejected rows next to the same dataset: the report counts and shows them.
    rejected, record = env.lake.read(env.task_name, "filtered_dataset", REJECTED_ROWS, REJECTED)
    row = dict.fromkeys(REJECTED) | {"prompt_id": "p", "slice": "s", "drop_reason": "contaminated", "messages": []}
    more = pl.concat([rejected, pl.DataFrame([row], schema=REJECTED)])
    env.lake.write(env.task_name, more, replace(record, data_version=compute_data_version(more)))
    assert read_why(env, "predictions") == ()
    assert read_why(env, "eval_report") == ("filtered_dataset[rejected_rows] changed",)
    eval_report.make_eval_report(env, STUDENT)
    assert read_why(env, "eval_report") == ()


def test_an_adapter_that_the_graph_no_longer_has_is_no_input(env: StageContext) -> None:
    """A slice is added whose name is no label: then there is no slice_label student, whatever the lake still has."""
    predictions.make_predictions(env, STUDENT)

    def list_systems() -> set[str]:
        table, _ = env.lake.read(env.task_name, "predictions", STUDENT, PREDICTIONS)
        return set(table["system"])

    assert "slice_label" in list_systems()
    (env.folder.path / "slices" / "other.yaml").write_text("description: other\nseeds: [where is it]\n")
    changed = replace(env, folder=reload_folder(env.folder))
    assert "slice_label_adapter[tiny] is gone" in read_why(changed, "predictions")
    predictions.make_predictions(changed, STUDENT)
    assert "slice_label" not in list_systems()
    assert read_why(changed, "predictions") == ()


@pytest.mark.parametrize(
    ("teacher", "student", "is_shared"),
    [
        ("embedded/smollm2-135m-instruct", "smollm2-135m-instruct", True),
        ("embedded/smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("embedded/smollm2-135m-instruct", "models/smollm2-135m-instruct/", True),
        ("openai/Qwen3-0.6B", "Qwen/Qwen3-0.6B", True),
        ("embedded/smollm2-135m-instruct", "all-minilm-l6-v2", False),
        ("embedded/smollm2-135m-instruct", "microsoft/Phi-4-mini-instruct", False),
        ("openai/gpt-4o-mini", "smollm2-135m-instruct", False),
        ("replay/smollm2-135m-instruct", "smollm2-135m-instruct", False),
    ],
)
def test_a_shared_base_is_noted_only_where_it_is_one(teacher: str, student: str, is_shared: bool) -> None:
    """A replay is named by its user: the name says nothing about weights."""
    models = {"one": {"model": student, "architecture": "encoder"}, "other": {"model": "x", "architecture": "encoder"}}
    change = {"teacher": {"model": teacher}, "students": models}
    task = Task.model_validate(TASK | change)
    notice = eval_report.describe_shared_base(task, "one")
    assert (notice is not None) == is_shared
    if notice is not None:
        assert f"The teacher {teacher} and the student one are the same model" in notice
    assert eval_report.describe_shared_base(task, "other") is None


def test_the_notice_names_the_teacher_of_several_that_is_the_student() -> None:
    teachers = {"big": {"model": "openai/gpt-4o"}, "own": {"model": "embedded/smollm2-135m-instruct"}}
    students = {"one": {"model": "smollm2-135m-instruct", "architecture": "causal_lm"}}
    settings = {name: value for name, value in TASK.items() if name != "teacher"}
    notice = eval_report.describe_shared_base(
        Task.model_validate(settings | {"teachers": teachers, "students": students}), "one"
    )
    assert notice is not None
    assert "The teacher embedded/smollm2-135m-instruct and" in notice
