"""The stage that predicts: the answer of every system to every golden, dev and validation item."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import polars as pl

from distill_dagster.config import Task
from distill_dagster.core import progress
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.core.models import count_gguf_parameters, make_embedded_gguf
from distill_dagster.curation.candidates.choose import choose_candidates
from distill_dagster.evaluation.metrics import ASSISTANT, CENTROID, DISTILLED, LINEAR_PROBE, TEACHER
from distill_dagster.evaluation.predictions_check import check_predictions_complete
from distill_dagster.evaluation.speed import (
    CALLERS,
    Speed,
    measure_teacher_latency,
    measure_teacher_load,
    measure_teacher_tokens_per_s,
)
from distill_dagster.kinds import Kind, Question, get_kind, is_refusal, read_answer
from distill_dagster.pipeline.distillation_cost import measure_teacher_use
from distill_dagster.pipeline.stages.context import StageContext, StageInputs, StageResult, sample_rows
from distill_dagster.pipeline.stages.students import build_train_rows
from distill_dagster.pipeline.student_speed import WARM_UP_CALLS, time_alone, time_load, track_peak_memory
from distill_dagster.pipeline.worker_predictions import PART_PROMPTS, StudentSource, WorkerPredictor
from distill_dagster.prompts.few_shot import read_example_pool
from distill_dagster.prompts.seeds import build_held_out_prompts, build_messages, compute_prompt_id
from distill_dagster.student.loading import load_libraries
from distill_dagster.student.predict import build_centroid_predictor, build_linear_probe_predictor, load_predictor
from distill_dagster.student.sentences import SENTENCE_MODEL
from distill_dagster.student.types import Predictor, StudentPrompt, TaskSettings
from distill_dagster.tables.messages import split_answer
from distill_dagster.tables.schemas import COMPLETIONS, DATASET, PREDICTIONS, PROMPT_CONTEXT, TEACHER_PRIOR, build_frame
from distill_dagster.tables.validation import check_table
from distill_dagster.tasks import LabelledRow

SERVABLE_SYSTEMS = (DISTILLED, ASSISTANT, LINEAR_PROBE, CENTROID)
"""The systems that are timed under load."""


@dataclass(frozen=True)
class EvaluationItem:
    """One question that every system answers. `reference` is a label or, for kinds without labels, any JSON value."""

    id: str
    split: str
    slice: str | None
    prompt_id: str
    prompt: StudentPrompt
    reference: Any


def build_held_out_items(split: str, rows: list[LabelledRow]) -> list[EvaluationItem]:
    """Golden or dev rows with their human answers."""
    return [_build_held_out_item(split, row) for row in rows]


def _build_held_out_item(split: str, row: LabelledRow) -> EvaluationItem:
    messages = build_messages(row)
    prompt = StudentPrompt.from_messages(messages)
    return EvaluationItem(row.id, split, row.slice, compute_prompt_id(messages), prompt, json.loads(row.answer_json))


def build_validation_items(dataset: pl.DataFrame) -> list[EvaluationItem]:
    """The validation rows of a dataset with the teacher's answers."""
    return [
        _build_validation_item(row) for row in dataset.filter(pl.col("split") == "validation").iter_rows(named=True)
    ]


def _build_validation_item(row: dict[str, Any]) -> EvaluationItem:
    messages, _ = split_answer(row["messages"])
    prompt = StudentPrompt.from_messages(messages)
    return EvaluationItem(
        row["prompt_id"], "validation", row["slice"], row["prompt_id"], prompt, json.loads(row["answer"])
    )


def _build_items(env: StageContext, dataset: pl.DataFrame) -> list[EvaluationItem]:
    """Golden and dev with their human answers, and validation with the teacher's."""
    return [
        *build_held_out_items("golden", env.folder.golden),
        *build_held_out_items("dev", env.folder.dev),
        *build_validation_items(dataset),
    ]


def build_prediction_row(
    kind: Kind, system: str, item: EvaluationItem, answer: Any, confidence: float | None, raw: str | None
) -> dict[str, Any]:
    """One row of the predictions table, without its latency."""
    return {
        "system": system,
        "item_id": item.id,
        "split": item.split,
        "slice": item.slice,
        "reference": to_canonical_json(item.reference),
        "answer": to_canonical_json(answer) if answer is not None else None,
        "confidence": confidence,
        "correct": answer is not None and kind.are_equal(answer, item.reference),
        "latency_s": None,
        "raw_text": raw,
    }


def read_teacher_candidates(inputs: StageInputs) -> tuple[dict[str, dict[str, Any]], pl.DataFrame]:
    """Read the teacher's candidates on golden and dev by prompt id, and the completions that they come from."""
    completions = inputs.read_table("golden_completions", COMPLETIONS)
    prior = inputs.read_table("teacher_prior", TEACHER_PRIOR)
    folder = inputs.env.folder
    prompts = build_held_out_prompts(folder.golden, folder.dev)
    candidates = choose_candidates(folder.task, prompts, completions, prior)
    return {row["prompt_id"]: row for row in candidates.iter_rows(named=True)}, completions


def _build_teacher_rows(
    env: StageContext,
    items: list[EvaluationItem],
    candidates: dict[str, dict[str, Any]],
    completions: pl.DataFrame,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The teacher's answers on golden and dev, and its facts. On validation its answer is the reference."""
    task = env.folder.task
    kind = get_kind(task)
    latency = measure_teacher_latency(completions)
    rows = []
    for item in (i for i in items if i.split != "validation"):
        candidate = candidates[item.prompt_id]
        answer = json.loads(candidate["answer"]) if candidate["answer"] else None
        row = build_prediction_row(kind, "teacher", item, answer, candidate["confidence"], None)
        rows.append(row | {"latency_s": latency.get(item.prompt_id)})
    speed = Speed(load=measure_teacher_load(completions), tokens_per_s=measure_teacher_tokens_per_s(completions))
    facts: dict[str, Any] = {"model": ", ".join(teacher.model for teacher in task.teacher_specs)}
    facts["speed"] = speed.to_json()
    if task.teacher.is_embedded and not task.teachers:
        served = make_embedded_gguf(env.models)
        facts |= {"bytes": served.stat().st_size, "parameters": count_gguf_parameters(served)}
    return rows, facts


def predict_rows(
    kind: Kind, system: str, predictor: Predictor | WorkerPredictor, items: list[EvaluationItem]
) -> list[dict[str, Any]]:
    """Predict all items with a student, in batches. An answer that it writes is parsed like a teacher's."""
    rows = []
    for item, p in zip(items, predictor.predict([i.prompt for i in items]), strict=True):
        if p.probs:
            rows.append(build_prediction_row(kind, system, item, p.label, min(1.0, max(p.probs.values())), p.raw_text))
            continue
        question = Question(item.prompt.text, is_refusal(item.reference))  # the reference says whether to refuse
        parsed = read_answer(kind, p.raw_text, question, stop=f"\n\n{kind.task.item}:")
        answer = json.loads(parsed.answer) if parsed.answer is not None else None
        rows.append(build_prediction_row(kind, system, item, answer, None, p.raw_text))
    return rows


def predict_and_time(
    kind: Kind,
    system: str,
    predictor: Predictor,
    items: list[EvaluationItem],
    latency_items: int,
    on_workers: WorkerPredictor | None = None,
) -> tuple[list[dict[str, Any]], Speed]:
    """Predict all items in batches. Then time the first golden items one by one, and golden items under load.

    Load is timed for the systems that somebody may serve. The others have the same model as one of them.

    Args:
        on_workers: predicts in batches in place of `predictor`. Speed in batches is that of one worker then.
    """
    started = time.perf_counter()
    rows = predict_rows(kind, system, on_workers or predictor, items)
    in_batches = len(items) / (on_workers.seconds if on_workers else time.perf_counter() - started)
    golden = [n for n, item in enumerate(items) if item.split == "golden"]
    prompts = [items[n].prompt for n in golden]
    alone = time_alone(predictor, prompts[:latency_items])
    for n, seconds in zip(golden, alone.seconds, strict=False):
        rows[n]["latency_s"] = seconds
    load = time_load(predictor, prompts) if system in SERVABLE_SYSTEMS else None
    return rows, Speed(in_batches, load, alone.first_token_s, alone.tokens_per_s)


def make_predictions(env: StageContext, partition: str | None) -> StageResult:
    """Ask every system for every item, and measure latency and memory.

    Reads: golden.jsonl, dev.jsonl, filtered_dataset, golden_completions, teacher_prior, prompt_context, the adapters.
    Writes: PREDICTIONS.
    Asks a teacher: no, its answers are in golden_completions.
    Re-runs when: one of these or student_settings changes, those of the assistant too; `evaluation.latency_items` alone
        starts no run.
    """
    assert partition is not None
    load_libraries()
    started = time.perf_counter()
    inputs = StageInputs(env, "predictions", partition)
    inputs.note_source("golden_set")
    inputs.note_source("student_settings", partition)
    task = env.folder.task
    spec, settings = task.students[partition], TaskSettings.from_task(task)
    kind = get_kind(task)
    dataset = inputs.read_table("filtered_dataset", DATASET)
    items = _build_items(env, dataset)
    candidates, completions = read_teacher_candidates(inputs)
    rows, teacher = _build_teacher_rows(env, items, candidates, completions)
    facts: dict[str, dict[str, Any]] = {"teacher": teacher}
    examples = read_example_pool(inputs.read_table("prompt_context", PROMPT_CONTEXT))
    use = measure_teacher_use(env, completions, examples)
    systems: list[tuple[str, str | None]] = [
        ("base", None),
        ("seed_only", "seed_only_adapter"),
        ("distilled", "student_adapter"),
    ]
    if spec.assistant is not None:
        inputs.note_source("student_settings", spec.assistant)
        systems.append((ASSISTANT, "assistant_adapter"))
    if "slice_label_adapter" in inputs.upstream:
        systems.append(("slice_label", "slice_label_adapter"))
    if task.has_labels and examples:
        systems.append((CENTROID, None))
    train, validation = (build_train_rows(dataset, split) for split in ("train", "validation"))
    if task.has_labels and train:
        systems.append((LINEAR_PROBE, None))
    for number, (system, adapter) in enumerate(systems):
        progress.report_progress(f"predicting with {system}", number, len(systems))
        model, on_workers = SENTENCE_MODEL, None
        with track_peak_memory() as peak:
            if system == CENTROID:
                texts, labels = [e.text for e in examples], [e.label for e in examples]
                predictor = build_centroid_predictor(texts, labels, task.labels, env.models)
            elif system == LINEAR_PROBE:
                predictor = build_linear_probe_predictor(train, validation, task.labels, env.models)
            else:
                name = spec.assistant if system == ASSISTANT and spec.assistant else partition
                folder = inputs.find_folder(adapter, name) if adapter else None
                own = spec.without_reasoning() if system == "slice_label" else task.students[name]
                model = own.model
                predictor = load_predictor(own, task.labels, settings, env.models, folder)
                if env.workers.is_remote and len(items) > PART_PROMPTS:
                    source = StudentSource(own, task.labels, settings, env.models, folder)
                    on_workers = WorkerPredictor(source, env.workers)
            latency_items = task.evaluation.latency_items
            answered, speed = predict_and_time(kind, system, predictor, items, latency_items, on_workers)
            rows += answered
        facts[system] = {
            "model": model,
            "parameters": predictor.parameters,
            "bytes": predictor.bytes,
            "peak_mb": peak["bytes"] / 1e6,
            "speed": speed.to_json(),
        }
        del predictor
    frame = build_frame(rows, PREDICTIONS, ("split", "system", "item_id"))
    checks = [check_table("predictions", frame), check_predictions_complete(frame)]
    model_s = time.perf_counter() - started
    record = inputs.write_table(
        frame,
        checks,
        facts=facts,
        teacher_use=use,
        model_s=model_s,
        latency_method=_describe_latency_method(
            task, any(row["latency_s"] for row in rows if row["system"] == TEACHER)
        ),
    )
    sample = sample_rows(frame, ["system", "item_id", "reference", "answer", "confidence"], 8)
    return StageResult(record, {"rows": frame.height, "systems": len(facts), "sample": sample}, checks)


def _describe_latency_method(task: Task, is_teacher_timed: bool) -> str:
    """How latency was measured, for the report."""
    few_shot, samples = task.teacher.few_shot, task.teacher.samples
    count = few_shot.draws * samples
    requests = count_noun(count, "draw" if samples == 1 else "sample")
    search = ", without the search for the nearest examples" if few_shot.nearest else ""
    if not is_teacher_timed:
        teacher = "The teacher was not timed: its answers are recorded." if task.teacher.is_replay else ""
    elif task.teacher.is_replay:
        teacher = "The teacher's latency is what its recording says."
    else:
        sums = "that of its answer" if count == 1 else f"the sum over its {requests}"
        teacher = f"The teacher's latency is {sums}, over HTTP, with a warm cache{search}."
    load = "The teacher's load is what the client had under way when it asked." if is_teacher_timed else ""
    parts = [
        f"The first {task.evaluation.latency_items} golden items one by one, students after {WARM_UP_CALLS} calls to "
        "warm up.",
        teacher,
        f"Under load {CALLERS} callers ask a student at once, each again when it has its answer, and what waits shares "
        "a batch.",
        load,
        "The linear probe and the centroids compute in float32." if task.has_labels else "",
    ]
    return " ".join(part for part in parts if part)
