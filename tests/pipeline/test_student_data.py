"""The rows that a student learns from, by its block `data`: what it learns, and what its record says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distill_dagster.core.errors import InputError
from distill_dagster.pipeline.dataset_drift import TRAINED_ON, count_changed_rows
from distill_dagster.pipeline.stages.context import StageContext
from distill_dagster.pipeline.stages.students import make_student_adapter
from distill_dagster.pipeline.stages.training_summary import describe_rows
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.types import StudentPrompt, TaskSettings
from distill_dagster.tables.lake import ArtifactRecord
from distill_dagster.tables.schemas import DATASET, build_frame
from tests.support.task import TEXTS, build_stage_context, write_small_task

PLACES = ("today {}", "since monday {}", "as I wrote, {}")
ASKED = [f"hello, {text}" for text in TEXTS["refund"]]


def build_dataset() -> pl.DataFrame:
    """Texts about refunds that the teacher calls delivery and people call refund, and those of the other labels."""
    answers: list[tuple[str, str, str | None]] = [
        (place.format(text), "delivery" if label == "refund" else label, "large")
        for label, texts in TEXTS.items()
        for text in texts
        for place in PLACES
    ]
    answers += [(text, "refund", None) for text in TEXTS["refund"]]
    rows: list[dict[str, Any]] = []
    for number, (text, label, teacher) in enumerate(answers):
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": label}]
        columns: dict[str, Any] = {"prompt_id": f"p{number:02}", "answer": f'"{label}"', "messages": turns}
        columns |= {"slice": "shop" if teacher else "(human)", "weight": 1.0, "split": "train"}
        columns |= {"teacher": teacher, "completion_ids": []}
        rows.append(dict.fromkeys(DATASET) | columns)
    return build_frame(rows, DATASET, ("prompt_id",))


@pytest.fixture
def open_env(tmp_path: Path, models_folder: Path) -> Iterator[Any]:
    opened: list[StageContext] = []

    def open_with(**data: Any) -> StageContext:
        folder = write_small_task(tmp_path / f"{len(opened)}", students={"tiny": {"epochs": 3, "data": data}})
        env = replace(build_stage_context(folder, tmp_path / f"home{len(opened)}"), models=models_folder)
        env.lake.write(env.task_name, build_dataset(), ArtifactRecord("filtered_dataset", None, "v", "4", {}))
        opened.append(env)
        return env

    yield open_with
    for env in opened:
        env.store.close()


def ask_student(env: StageContext) -> list[str]:
    task = env.folder.task
    adapter = env.lake.get_folder(env.task_name, "student_adapter", "tiny")
    student = load_predictor(task.students["tiny"], task.labels, TaskSettings.from_task(task), env.models, adapter)
    return [p.label for p in student.predict([StudentPrompt.from_text(text) for text in ASKED])]


def test_the_factor_decides_whom_a_student_believes_and_its_record_says_so(open_env: Any) -> None:
    """The teacher is wrong about refunds twelve times, and four people are right."""
    alone, combined = open_env(human_factor=0), open_env(human_factor=10)
    made = make_student_adapter(alone, "tiny")
    assert "refund" not in ask_student(alone)
    assert (made.record.rows, made.shown["human_rows"], made.shown["left_out"]) == (36, 0, 4)
    made = make_student_adapter(combined, "tiny")
    assert ask_student(combined).count("refund") >= 3
    assert made.record.rows == 36 + 10 * 4
    adapter = combined.lake.get_folder(combined.task_name, "student_adapter", "tiny")
    assert describe_rows(adapter) == "Its answers: 36 of the teacher, 4 of people, with 53 % of the weight."
    counts = {"human_rows": 4, "teacher_rows": 36, "copies": 76, "human_share": round(40 / 76, 4), "left_out": 0}
    counts |= {"replayed": 0}
    assert made.record.extra["data"] == counts
    assert {name: made.shown[name] for name in counts if name != "copies"} == {
        name: value for name, value in counts.items() if name != "copies"
    }


def test_a_refresh_counts_rows_of_the_dataset_and_not_their_copies_or_weights(open_env: Any) -> None:
    env = open_env(human_factor=0, balance="slices")
    make_student_adapter(env, "tiny")
    task = env.folder.task
    adapter = env.lake.get_folder(env.task_name, "student_adapter", "tiny")
    assert pl.read_parquet(adapter / TRAINED_ON)["weight"].unique().to_list() == [1.0]
    assert count_changed_rows(env.lake, env.task_name, task, "student_adapter", "tiny") == 0
    changed = build_dataset().filter(~pl.col("prompt_id").is_in(["p00", "p39"]))  # one of the teacher, one of a person
    env.lake.write(env.task_name, changed, ArtifactRecord("filtered_dataset", None, "w", "4", {}))
    assert count_changed_rows(env.lake, env.task_name, task, "student_adapter", "tiny") == 1


def test_a_weight_for_a_slice_that_does_not_exist_is_named(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path, students={"tiny": {"data": {"slice_weights": {"shop": 2, "wbe": 3}}}})
    (problem,) = [p for p in check_task_folder(folder) if p.severity == "error"]
    assert problem.field == "students.tiny.data.slice_weights.wbe"
    assert (problem.message, problem.remedy) == ("there is no slice 'wbe'.", "Known: shop, web.")
    assert folder.path.joinpath("task.yaml").read_text().splitlines()[(problem.line or 0) - 1].strip() == "wbe: 3"


def test_an_unknown_field_of_the_mix_is_an_error(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path, students={"tiny": {"data": {"human_faktor": 2}}})
    with pytest.raises(InputError, match="human_faktor"):
        _ = folder.task
