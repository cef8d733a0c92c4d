"""The stages that train: the distilled student, and the students that it is compared with."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from distill_dagster.config.student import reads_assistant
from distill_dagster.core import plots
from distill_dagster.core.files import link_files
from distill_dagster.core.hashing import hash_folder
from distill_dagster.core.paths import get_tuning_folder
from distill_dagster.curation.dataset.data_mix import MixCounts, count_mix, mix_rows, select_mixed_rows
from distill_dagster.kinds import format_with_reasoning, get_kind
from distill_dagster.pipeline.dataset_drift import (
    TRAINED_ON,
    RowIdentity,
    format_plain_answer,
    list_row_identities,
    write_trained_on,
)
from distill_dagster.pipeline.distillation_cost import sum_model_seconds
from distill_dagster.pipeline.source_versions import find_label_of_slice
from distill_dagster.pipeline.stages.context import DisplayValue, Markdown, StageContext, StageInputs, StageResult
from distill_dagster.pipeline.stages.preference_pairs import read_preference_pairs, tabulate_phases
from distill_dagster.pipeline.stages.replay_rows import read_replayed_rows
from distill_dagster.pipeline.stages.training_summary import build_loss_curves, describe_objective, read_training_log
from distill_dagster.prompts.few_shot import FewShotExample, read_example_pool
from distill_dagster.student.checkpoints import delete_checkpoints
from distill_dagster.student.token_counts import check_rows_whole
from distill_dagster.student.train import train_adapter
from distill_dagster.student.training_check import check_loss_fell, check_rows_fit_objective
from distill_dagster.student.types import (
    TRAINING_LOG_FILE,
    PreferencePair,
    StudentPrompt,
    TaskSettings,
    TrainedStudent,
    TrainingLog,
    TrainRow,
)
from distill_dagster.tables.lake import RECORD_FILE, ArtifactRecord
from distill_dagster.tables.messages import split_answer
from distill_dagster.tables.schemas import DATASET, PROMPT_CONTEXT

TOKEN_LOG_PROBS = "token_log_probs"
"""The folder below the models of what a local teacher gave for stored completions."""


def build_train_rows(dataset: pl.DataFrame, split: str, reasoning: bool = False) -> list[TrainRow]:
    """The rows of a split as training rows. With `reasoning`, the target has the teacher's before the answer."""
    rows = []
    for row in dataset.filter(pl.col("split") == split).iter_rows(named=True):
        messages, answer = split_answer(row["messages"])
        thought = row["reasoning"]
        alone = (answer or "").removeprefix(format_with_reasoning(thought, "") if thought else "")
        rows.append(
            TrainRow(
                row["prompt_id"],
                StudentPrompt.from_messages(messages),
                format_plain_answer(row["answer"]),
                {entry["label"]: entry["prob"] for entry in row["soft_labels"] or []},
                row["weight"],
                format_with_reasoning(thought if reasoning else None, alone),
                thought,
                row["completion_ids"][0] if row["completion_ids"] else None,
            )
        )
    return rows


def _build_example_prompt(example: FewShotExample) -> StudentPrompt:
    return StudentPrompt.from_messages(example.messages) if example.messages else StudentPrompt.from_text(example.text)


def make_student_adapter(env: StageContext, partition: str | None) -> StageResult:
    """Train the distilled student. One that teaches another student was trained as assistant_adapter: copy it.

    Reads: filtered_dataset, or the labels of the student that teaches this one; for a preference phase also
        preference_pairs.
    Writes: a folder with the adapter, its training log, and the rows that it was trained on.
    Asks a teacher: no.
    Re-runs when: one of these or student_settings changes.
    """
    assert partition is not None
    inputs = StageInputs(env, "student_adapter", partition)
    if partition in env.folder.task.list_assistants():
        return _copy_assistant(env, inputs, partition)
    return _train_distilled(env, inputs)


def make_assistant_adapter(env: StageContext, partition: str | None) -> StageResult:
    """Train a student that teaches another one. It is an asset of its own, because the graph can have no cycle.

    Reads: filtered_dataset and, for a preference phase, preference_pairs.
    Writes: a folder like that of student_adapter.
    Asks a teacher: no.
    Re-runs when: one of these or student_settings changes.
    """
    return _train_distilled(env, StageInputs(env, "assistant_adapter", partition))


@dataclass(frozen=True)
class TrainingData:
    """What a distilled student learns from.

    Attributes:
        learned: the rows of the dataset behind `train`, whose copies count once.
        pairs: what a preference phase learns from.
        counts: how the rows were mixed, for the record.
        assistant: the settings and adapter of the student that teaches it, if its objective reads them.
    """

    train: list[TrainRow]
    validation: list[TrainRow]
    learned: set[RowIdentity]
    pairs: list[PreferencePair]
    counts: MixCounts
    assistant: TrainedStudent | None


def read_training_data(inputs: StageInputs) -> TrainingData:
    """Read what a student learns from: rows of the dataset or of an assistant's labels, mixed as its settings say."""
    assert inputs.partition is not None
    task = inputs.env.folder.task
    spec = task.students[inputs.partition]
    key = spec.assistant
    mix, reasons = spec.data, task.writes_reasoning(inputs.partition)
    dataset = inputs.read_table("assistant_labels" if key else "filtered_dataset", DATASET, key)
    given = dataset.filter(pl.col("split") == "train")
    mixed = mix_rows(given, mix)
    replayed = read_replayed_rows(inputs, mix, mixed.height, spec.seed)
    train = build_train_rows(pl.concat([mixed, replayed]), "train", reasons)
    validation = build_train_rows(dataset, "validation", reasons)
    learned = list_row_identities(select_mixed_rows(given, mix))
    pairs = read_preference_pairs(inputs, train)
    assistant = None
    if key is not None and reads_assistant(spec, task.resolve_objective(inputs.partition)):
        assistant = task.students[key], inputs.find_folder("assistant_adapter", key)
    return TrainingData(train, validation, learned, pairs, count_mix(given, mixed, replayed), assistant)


def _train_distilled(env: StageContext, inputs: StageInputs) -> StageResult:
    assert inputs.partition is not None
    key = env.folder.task.students[inputs.partition].assistant
    data = read_training_data(inputs)
    extra: dict[str, Any] = {"data": data.counts.to_dict()}
    if key is not None:
        labels = env.lake.read_record(env.task_name, "assistant_labels", key)
        extra |= {"assistant": key, "assistant_s": sum_model_seconds(labels)}
    rows = data.train, data.validation
    return _train_student(env, inputs, *rows, None, data.learned, extra, data.pairs, data.assistant)


def _copy_assistant(env: StageContext, inputs: StageInputs, student: str) -> StageResult:
    """The adapter that was trained before, with its record. Files are linked, so a copy takes no space."""
    trained = inputs.find_folder("assistant_adapter", student)
    before = env.lake.read_record(env.task_name, "assistant_adapter", student)
    assert before is not None

    def fill(folder: Path) -> str:
        link_files(trained, folder, leave_out=(RECORD_FILE,))
        return hash_folder(folder, leave_out=(TRAINING_LOG_FILE, TRAINED_ON, RECORD_FILE))

    extra = {"data": before.extra["data"], "assistant_s": sum_model_seconds(before)}
    record = env.lake.write_folder(
        env.task_name,
        inputs.asset,
        student,
        lambda version: inputs.build_record(version, before.rows, **extra),
        fill,
    )
    target = env.lake.get_folder(env.task_name, inputs.asset, student)
    return _show_training(inputs, record, target, TrainingLog.from_dict(read_training_log(target) or {}))


def make_seed_only_adapter(env: StageContext, partition: str | None) -> StageResult:
    """Train the same student on the human examples alone, with their answers as they are.

    Reads: prompt_context.
    Writes: a folder like that of student_adapter.
    Asks a teacher: no.
    Re-runs when: prompt_context or student_settings changes.
    """
    assert partition is not None
    inputs = StageInputs(env, "seed_only_adapter", partition)
    examples = read_example_pool(inputs.read_table("prompt_context", PROMPT_CONTEXT))
    task = env.folder.task
    kind, reasons = get_kind(task), task.writes_reasoning(partition)
    rows = []
    for example in examples:
        written = (
            example.label if task.has_labels else example.answer and kind.format_answer(json.loads(example.answer))
        )
        if written is not None:
            answer = example.label if task.has_labels else format_plain_answer(example.answer or "")
            target = format_with_reasoning(example.reasoning if reasons else None, written)
            asked = _build_example_prompt(example)
            rows.append(TrainRow(example.id, asked, answer, target=target, reasoning=example.reasoning))
    return _train_student(env, inputs, rows, [], env.folder.task.students[partition].seed_only_epochs)


def make_slice_label_adapter(env: StageContext, partition: str | None) -> StageResult:
    """Train the same student on seeds with the label that their slice is named like, which needs no teacher.

    Reads: filtered_dataset, for its prompts.
    Writes: a folder like that of student_adapter.
    Asks a teacher: no.
    Re-runs when: filtered_dataset or student_settings changes.
    """
    inputs = StageInputs(env, "slice_label_adapter", partition)
    dataset = inputs.read_table("filtered_dataset", DATASET)
    rows = [
        TrainRow(r["prompt_id"], StudentPrompt.from_messages(split_answer(r["messages"])[0]), label)
        for r in dataset.filter(pl.col("split") == "train").iter_rows(named=True)
        if (label := find_label_of_slice(env.folder, r["slice"])) is not None
    ]
    return _train_student(env, inputs, rows, [])


def _train_student(
    env: StageContext,
    inputs: StageInputs,
    rows: list[TrainRow],
    validation: list[TrainRow],
    epochs: int | None = None,
    learned: set[RowIdentity] | None = None,
    extra: Mapping[str, Any] | None = None,
    pairs: list[PreferencePair] | None = None,
    assistant: TrainedStudent | None = None,
) -> StageResult:
    """Train a student on these rows. `learned` are the rows of the dataset behind them, by default the rows.

    Without `pairs` it has no phases: what it is compared with learns from no teacher but through its rows.
    """
    student = inputs.partition
    assert student is not None
    inputs.note_source("student_settings", student)
    task = env.folder.task
    spec = task.students[student]
    if inputs.asset == "slice_label_adapter":
        spec = spec.without_reasoning()  # slice names come without
    if pairs is None:
        spec = spec.keep_rows_only(task.writes_reasoning(student))
    started = time.perf_counter()
    work = env.get_training_folder(inputs.asset, student)
    log: TrainingLog | None = None

    def fill(folder: Path) -> str:
        nonlocal log
        what = inputs.asset.removesuffix("_adapter")
        settings = TaskSettings.from_task(task)
        log = train_adapter(
            spec,
            task.labels,
            settings,
            rows,
            validation,
            folder,
            env.models,
            epochs,
            what,
            pairs or [],
            work,
            assistant=assistant,
            captured=env.models / TOKEN_LOG_PROBS,
            launch=env.launch_ranks,
        )
        write_trained_on(folder, learned or {(row.prompt_id, row.answer_label, row.weight) for row in rows})
        return hash_folder(folder, leave_out=(TRAINING_LOG_FILE, TRAINED_ON, RECORD_FILE))

    def build_record(version: str) -> ArtifactRecord:
        assert log is not None
        model_s = log.seconds_before + time.perf_counter() - started
        return inputs.build_record(version, len(rows), model_s=model_s, **(extra or {}))

    record = env.lake.write_folder(env.task_name, inputs.asset, student, build_record, fill)
    if work is not None:
        delete_checkpoints(work)
    assert log is not None
    return _show_training(inputs, record, env.lake.get_folder(env.task_name, inputs.asset, student), log)


def _show_tuning(inputs: StageInputs) -> dict[str, DisplayValue]:
    """The plot of the trials by which the student was tuned, and the page about them; nothing if it was not."""
    page = get_tuning_folder(inputs.env.reports, inputs.env.task_name) / f"{inputs.partition}.html"
    if inputs.asset == "seed_only_adapter" or not page.with_suffix(".png").exists():
        return {}
    plot = plots.to_markdown_image(page.with_suffix(".png").read_bytes())
    return {"tuning": Markdown(plot), "tuning_page": page}


def _show_training(inputs: StageInputs, record: ArtifactRecord, target: Path, log: TrainingLog) -> StageResult:
    """What a person sees of a training."""
    curve = plots.plot_lines(build_loss_curves(target), f"Loss of {inputs.asset}, {inputs.partition}", "step", "loss")
    mix = {name: value for name, value in record.extra.get("data", {}).items() if name != "copies"}
    shown: dict[str, DisplayValue] = {
        "rows": record.rows,
        **mix,
        **({"taught_by": f"student {record.extra['assistant']}"} if "assistant" in record.extra else {}),
        "epochs": log.epochs,
        **({"best_epoch": log.best_epoch} if log.best_epoch is not None else {}),
        **({"kept": log.kept} if log.kept else {}),
        **({"resumed_at": ", ".join(map(str, log.resumed_at))} if log.resumed_at else {}),
        "seconds": round(log.seconds, 1),
        "tokens_per_s": round(log.tokens_per_s, 1),
        "peak_mb": round(log.peak_mb, 1),
        **({"objective": describe_objective(log.objective)} if log.objective else {}),
        **({"prompt": log.prompt, "target_tokens": log.target_tokens} if log.prompt else {}),
        "prompts_cut": log.prompts_cut,
        "targets_cut": log.targets_cut,
        "rows_without_target": log.rows_without_target,
        **({"rows_with_soft_labels": log.rows_with_soft_labels} if log.rows_with_soft_labels is not None else {}),
        **({"rows_without_reasoning": log.rows_without_reasoning} if log.rows_without_reasoning else {}),
        **({"long_reasoning": log.long_reasoning} if log.long_reasoning else {}),
        **({"rows_captured": log.rows_captured} if log.rows_captured else {}),
        "padding_share": log.padding_share,
        "micro_batch": log.micro_batch,
        "dtype": log.dtype,
        "reused_layers": log.reused_layers,
        "method": log.method,
        "trainable_parameters": log.trainable_parameters,
        "total_parameters": log.total_parameters,
        **({"phases": tabulate_phases(log.phases)} if log.phases else {}),
        "adapter": target,
        "loss": Markdown(plots.to_markdown_image(curve)),
        **_show_tuning(inputs),
    }
    checks = [
        check_loss_fell([loss for _, _, loss in log.losses]),
        check_rows_whole(log.rows, log.prompts_cut, log.targets_cut, log.rows_without_target),
    ]
    if inputs.asset in ("assistant_adapter", "student_adapter"):  # the others learn what people wrote
        found = log.rows_with_soft_labels, log.rows_without_reasoning
        checks.append(check_rows_fit_objective(log.objective, log.rows, *found))
    return StageResult(record, shown, checks)
