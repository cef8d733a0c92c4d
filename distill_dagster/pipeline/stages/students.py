"""Stages that train: the distilled student and what it is compared with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from distill_dagster.core import plots
from distill_dagster.core.hashing import hash_folder
from distill_dagster.kinds import format_with_reasoning, get_kind
from distill_dagster.pipeline.dataset_drift import TRAINED_ON, format_plain_answer, write_trained_on
from distill_dagster.pipeline.source_versions import find_label_of_slice
from distill_dagster.pipeline.stages.context import DisplayValue, Markdown, StageContext, StageInputs, StageResult
from distill_dagster.prompts.few_shot import get_context_schema, read_example_pool
from distill_dagster.student.training_check import check_loss_fell
from distill_dagster.tables.lake import RECORD_FILE
from distill_dagster.tables.messages import format_messages, format_transcript, get_user_text
from distill_dagster.tables.schemas import DATASET

if TYPE_CHECKING:
    from distill_dagster.student.types import TrainingLog, TrainRow

TRAINING_LOG = "training_log.json"


def build_train_rows(dataset: pl.DataFrame, split: str, reasoning: bool = False) -> list[TrainRow]:
    """The rows to learn from; with `reasoning` a label is written behind how the teacher came to it."""
    from distill_dagster.student.types import TrainRow

    kept = dataset.filter(pl.col("split") == split)
    return [
        TrainRow(
            r["prompt_id"],
            format_messages(r["messages"][:-1]),
            format_plain_answer(r["answer"]),
            {x["label"]: x["prob"] for x in r["soft_labels"] or []},
            r["weight"],
            format_with_reasoning(r["reasoning"] if reasoning else None, r["messages"][-1]["content"]),
        )
        for r in kept.iter_rows(named=True)
    ]


def make_student_adapter(env: StageContext, partition: str | None) -> StageResult:
    inputs = StageInputs(env, "student_adapter", partition)
    dataset = inputs.read_table("filtered_dataset", DATASET)
    assert partition is not None
    reasons = env.folder.task.students[partition].reasoning
    train, validation = (build_train_rows(dataset, split, reasons) for split in ("train", "validation"))
    return _train_student(env, inputs, train, validation)


def make_seed_only_adapter(env: StageContext, partition: str | None) -> StageResult:
    """The human examples alone, with their labels as they are: never from filtered_dataset."""
    from distill_dagster.student.types import TrainRow

    assert partition is not None
    inputs = StageInputs(env, "seed_only_adapter", partition)
    examples = read_example_pool(inputs.read_table("prompt_context", get_context_schema(env.folder.task)))
    task = env.folder.task
    if task.has_labels:
        reasons = task.students[partition].reasoning
        rows = [
            TrainRow(e.id, e.text, e.label, target=format_with_reasoning(e.reasoning, e.label) if reasons else None)
            for e in examples
        ]
    else:
        kind = get_kind(task)
        rows = [
            TrainRow(
                e.id,
                format_transcript(e.messages) or e.text,
                format_plain_answer(e.answer),
                target=kind.format_target(e.answer, e.reasoning),
            )
            for e in examples
            if e.answer is not None
        ]
    return _train_student(env, inputs, rows, [], env.folder.task.students[partition].seed_only_epochs)


def make_slice_label_adapter(env: StageContext, partition: str | None) -> StageResult:
    """The seeds with the label that their slice is named like: what a task without a teacher would have.

    Nobody gave reasons for these, so that such a student always chooses its label.
    """
    from distill_dagster.student.types import TrainRow

    inputs = StageInputs(env, "slice_label_adapter", partition)
    dataset = inputs.read_table("filtered_dataset", DATASET)
    rows = [
        TrainRow(r["prompt_id"], get_user_text(r["messages"]), label)
        for r in dataset.filter(pl.col("split") == "train").iter_rows(named=True)
        if (label := find_label_of_slice(env.folder, r["slice"])) is not None
    ]
    return _train_student(env, inputs, rows, [])


def _train_student(
    env: StageContext, inputs: StageInputs, rows: list[TrainRow], validation: list[TrainRow], epochs: int | None = None
) -> StageResult:
    from distill_dagster.student.train import train_adapter
    from distill_dagster.student.types import TaskSettings

    student = inputs.partition
    assert student is not None
    inputs.note_source("student_settings", student)
    task = env.folder.task
    spec = task.students[student]
    if inputs.asset == "slice_label_adapter":
        spec = spec.model_copy(update={"reasoning": False})
    started = time.perf_counter()
    target = env.lake.folder(env.task_name, inputs.asset, student)
    log: TrainingLog | None = None

    def fill(folder: Path) -> str:
        nonlocal log
        what = inputs.asset.removesuffix("_adapter")
        settings = TaskSettings.of(task)
        log = train_adapter(spec, task.labels, settings, rows, validation, folder, env.models, epochs, what)
        write_trained_on(folder, rows)
        return hash_folder(folder, leave_out=(TRAINING_LOG, TRAINED_ON, RECORD_FILE))

    record = env.lake.write_folder(
        target, lambda version: inputs.build_record(version, len(rows), model_s=time.perf_counter() - started), fill
    )
    assert log is not None
    losses = {"training": [(float(step), loss) for step, _, loss in log.losses]}
    if log.validation:
        per_epoch = log.steps / max(log.epochs, 1)
        losses["validation"] = [((i + 1) * per_epoch, v["loss"]) for i, v in enumerate(log.validation)]
    curve = plots.plot_lines(losses, f"Loss of {inputs.asset}, {student}", "step", "loss")
    shown: dict[str, DisplayValue] = {
        "rows": len(rows),
        "epochs": log.epochs,
        "seconds": round(log.seconds, 1),
        "tokens_per_s": round(log.tokens_per_s, 1),
        "peak_mb": round(log.peak_mb, 1),
        "trainable_parameters": log.trainable_parameters,
        "total_parameters": log.total_parameters,
        "adapter": target,
        "loss": Markdown(plots.to_markdown_image(curve)),
    }
    return StageResult(record, shown, [check_loss_fell([loss for _, _, loss in log.losses])])
