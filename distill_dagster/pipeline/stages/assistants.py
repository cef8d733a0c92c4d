"""The stage in which a trained student answers the prompts of the dataset, so that a smaller student learns from it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import polars as pl

from distill_dagster.core import progress
from distill_dagster.core.checks import CheckResult
from distill_dagster.core.errors import DistillError
from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.curation.task_view import TaskView
from distill_dagster.curation.text_columns import append_answers, build_targets
from distill_dagster.kinds import ParsedAnswer, Question, get_kind, is_refusal, read_answer
from distill_dagster.pipeline.distillation_cost import sum_model_seconds
from distill_dagster.pipeline.stages.context import DisplayValue, StageContext, StageInputs, StageResult, sample_rows
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.types import Prediction, Predictor, StudentPrompt, TaskSettings
from distill_dagster.tables.schemas import DATASET, conform_to_schema
from distill_dagster.tables.validation import check_table

PROMPTS_AT_ONCE = 256
"""Prompts between two reports of progress."""
PROBABILITY_DIGITS = 6


def make_assistant_labels(env: StageContext, partition: str | None) -> StageResult:
    """Let a trained student answer the prompts of the dataset, as the teacher of a smaller student.

    The method is teacher assistant knowledge distillation (Mirzadeh et al. 2020, arXiv:1902.03393).

    Reads: assistant_adapter, filtered_dataset.
    Writes: DATASET with the answers, reasoning and probabilities of the student. Answers of people stay as they are. A
        prompt whose answer cannot be read, or was cut at `answer_tokens`, is left out.
    Asks a teacher: no.
    Re-runs when: one of these or student_settings changes.
    """
    assert partition is not None
    started = time.perf_counter()
    inputs = StageInputs(env, "assistant_labels", partition)
    inputs.note_source("student_settings", partition)
    dataset = inputs.read_table("filtered_dataset", DATASET)
    adapter = inputs.find_folder("assistant_adapter", partition)
    task = env.folder.task
    settings = TaskSettings.from_task(task)
    predictor = load_predictor(task.students[partition], task.labels, settings, env.models, adapter)
    frame = answer_as_assistant(env, dataset, predictor, partition)
    people = dataset["teacher"].null_count()
    asked, answered = dataset.height - people, frame.height - people
    agreement = _measure_agreement(env, dataset, frame)
    checks = [
        check_table("assistant_labels", frame),
        CheckResult("all_answered", asked == answered, "warning", {"asked": asked, "unreadable": asked - answered}),
    ]
    record = inputs.write_table(
        frame,
        checks,
        model_s=time.perf_counter() - started,
        assistant_s=sum_model_seconds(env.lake.read_record(env.task_name, "assistant_adapter", partition)),
        agreement=agreement,
    )
    shown: dict[str, DisplayValue] = {
        "rows": frame.height,
        "human_rows": people,
        "unreadable": asked - answered,
        **{f"agreement_{split}": round(share, 4) for split, share in agreement.items()},
        "sample": sample_rows(frame, ["answer", "split", "teacher"]),
    }
    return StageResult(record, shown, checks)


def answer_as_assistant(env: StageContext, dataset: pl.DataFrame, predictor: Predictor, name: str) -> pl.DataFrame:
    """The dataset (schema DATASET) with the answers of a student instead of the teacher's.

    Raises:
        DistillError: the student was asked, and none of its answers can be read.
    """
    task = env.folder.task
    kind = get_kind(task)
    rows = []
    taught = dataset.filter(pl.col("teacher").is_not_null())
    prompts = [StudentPrompt.from_messages(messages[:-1]) for messages in taught["messages"].to_list()]
    for row, prompt, p in zip(
        taught.iter_rows(named=True), prompts, _predict_with_progress(predictor, prompts, name), strict=True
    ):
        if p.probs:
            read = ParsedAnswer("ok", to_canonical_json(p.label))
        else:  # the teacher's answer says whether to refuse, as the reference does in an evaluation
            question = Question(prompt.text, is_refusal(json.loads(row["answer"])))
            read = read_answer(kind, p.raw_text, question, stop=f"\n\n{task.item}:")
        if read.answer is None or p.is_cut:  # an answer read from broken text would teach the student to break off
            continue
        soft = [{"label": label, "prob": round(prob, PROBABILITY_DIGITS)} for label, prob in p.probs.items()]
        answered = {"answer": read.answer, "reasoning": read.reasoning, "soft_labels": soft or None}
        answered |= {"teacher": f"student:{name}", "completion_ids": [], "messages": row["messages"][:-1]}
        rows.append(row | answered)
    people = dataset.filter(pl.col("teacher").is_null())
    if taught.is_empty():
        return people
    if not rows:
        raise DistillError(
            f"No answer of the student {name!r} can be read, so nothing is there to learn from it. Train it longer, or "
            "look at its report first."
        )
    frame = pl.DataFrame(rows, schema=DATASET)
    matcher = TaskView.from_task(task).matcher
    frame = frame.with_columns(messages=append_answers(frame["messages"], build_targets(frame, matcher)))
    return conform_to_schema(pl.concat([people, frame]), DATASET, ("prompt_id", "slice"))


def _predict_with_progress(predictor: Predictor, prompts: list[StudentPrompt], name: str) -> Iterator[Prediction]:
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        progress.report_progress(f"asking student {name}", start, len(prompts))
        yield from predictor.predict(prompts[start : start + PROMPTS_AT_ONCE])


def _measure_agreement(env: StageContext, dataset: pl.DataFrame, frame: pl.DataFrame) -> dict[str, float]:
    """By split, the share of the teacher's rows that the student answers in the same way."""
    kind = get_kind(env.folder.task)
    taught = dataset.filter(pl.col("teacher").is_not_null()).select("prompt_id", "slice", "split", "answer")
    joined = taught.join(frame.select("prompt_id", "slice", own="answer"), on=["prompt_id", "slice"], how="left")
    shares: dict[str, list[bool]] = {}
    for split, answer, own in joined.select("split", "answer", "own").iter_rows():
        is_same = own is not None and kind.are_equal(json.loads(own), json.loads(answer))
        shares.setdefault(split, []).append(is_same)
    return {split: sum(same) / len(same) for split, same in sorted(shares.items())}
