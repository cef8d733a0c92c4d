"""Measure what teachers took per prompt, and compute what a distillation cost."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import polars as pl

from distill_dagster.config import Task
from distill_dagster.core.embedding import EmbedFunction
from distill_dagster.core.hashing import hash_content, to_canonical_json
from distill_dagster.evaluation.costs import (
    CostLine,
    DistillationCost,
    TeacherUse,
    compute_machine_cost,
    compute_teacher_cost,
    compute_teacher_tokens,
)
from distill_dagster.evaluation.metrics import DISTILLED, TEACHER, Metrics
from distill_dagster.pipeline.stages.context import StageContext
from distill_dagster.prompts.few_shot import FewShotExample
from distill_dagster.prompts.seeds import build_held_out_prompts
from distill_dagster.prompts.templates import build_answer_templates
from distill_dagster.student.sentences import make_sentence_embedder
from distill_dagster.tables.lake import ArtifactRecord, read_folder_record
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.asking.asked_prompt import read_asked_prompts
from distill_dagster.teacher.asking.requests import RequestBuilder
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.prices import TOKENIZER, count_request_tokens, count_tokens

COUNTED_PROMPTS = 100
"""How many recorded prompts have their tokens counted where the recording does not say them."""


def measure_teacher_use(
    env: StageContext, completions: pl.DataFrame, examples: list[FewShotExample]
) -> dict[str, dict[str, Any]]:
    """Measure what each teacher took per prompt of golden and dev, as fields of `TeacherUse` by the teacher's name.

    A recording that does not say its tokens has them counted: those of the request that this task would send, with its
    instructions, labels and few-shot examples, and those of the recorded reasoning, answer and probabilities.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, task in env.folder.task.list_teachers():
        rows = completions.filter(pl.col("teacher") == name)
        if not rows.height:
            continue
        use = _sum_use(rows)
        if task.teacher.is_replay and use.prompt_tokens is None:
            embed = make_sentence_embedder(task.teacher, env.models)
            use = _count_recorded_tokens(env.folder, task, rows, examples, embed, use)
        found[name] = asdict(use)
    return found


def _sum_use(rows: pl.DataFrame) -> TeacherUse:
    """What one teacher took per prompt. Tokens are known if every row has them.

    A prompt with a request that got no answer, such as a timeout, says nothing about what an answer takes.
    """
    asked = rows["prompt_id"].n_unique()
    rows = rows.filter(pl.col("prompt_tokens").is_not_null().all().over("prompt_id"))
    prompts = rows["prompt_id"].n_unique()
    if not prompts:
        return TeacherUse(asked)
    known = rows.select((pl.col("prompt_tokens") > 0).all() & (pl.col("completion_tokens") > 0).all()).item()
    timed = rows.group_by("prompt_id").agg(
        pl.when(((pl.col("in_flight") >= 1) & pl.col("latency_s").is_not_null()).all())
        .then(_machine_seconds_expr().sum())
        .alias("seconds")
    )
    return TeacherUse(
        asked,
        float(rows["prompt_tokens"].sum()) / prompts if known else None,
        float(rows["completion_tokens"].sum()) / prompts if known else None,
        usd=float(rows["cost_usd"].sum()) / prompts if rows["cost_usd"].null_count() == 0 else None,
        seconds=timed["seconds"].mean(),  # type: ignore[arg-type]
    )


def _count_recorded_tokens(
    folder: TaskFolder,
    task: Task,
    rows: pl.DataFrame,
    examples: list[FewShotExample],
    embed: EmbedFunction | None,
    use: TeacherUse,
) -> TeacherUse:
    """Count the tokens per prompt of a recording, over the first `COUNTED_PROMPTS` prompts that it knows."""
    asked = read_asked_prompts(build_held_out_prompts(folder.golden, folder.dev), refusals=False)
    known = set(rows["prompt_id"])
    counted = [id_ for id_ in asked if id_ in known][:COUNTED_PROMPTS]
    templates = build_answer_templates(folder, task)
    endpoint = Endpoint(task.teacher.model, hash_content(task.teacher.dump_identity()))
    # A schema is counted as part of the instructions: whether the provider takes it apart is not known.
    spec = task.teacher.model_copy(update={"response_format": "prompt"})
    builder = RequestBuilder(task.model_copy(update={"teacher": spec}), templates, examples, endpoint, embed)
    builder.choice.prepare([asked[id_].text for id_ in counted])
    sent = received = 0
    for row in rows.filter(pl.col("prompt_id").is_in(counted)).iter_rows(named=True):
        sent += count_request_tokens(builder.build(asked[row["prompt_id"]], row["sample_index"]))
        stated = {entry["label"]: entry["prob"] for entry in row["soft_labels"] or []}
        parts = (row["reasoning"], row["raw_text"], to_canonical_json(stated) if len(stated) > 1 else None)
        received += count_tokens("\n".join(part for part in parts if part))
    if not counted:
        return use
    return replace(
        use, prompt_tokens=sent / len(counted), completion_tokens=received / len(counted), counted_with=TOKENIZER
    )


def build_teacher_facts(task: Task, uses: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The teacher's cost and tokens as fields of `SystemFacts`, from what `measure_teacher_use` measured."""
    teachers = {name: part.teacher for name, part in task.list_teachers()}
    known = {name: TeacherUse(**use) for name, use in uses.items()}
    cost = compute_teacher_cost(known, teachers, task.evaluation.machine_usd_per_hour)
    return {
        "cost_usd_per_1k": None if cost is None else 1000 * cost,
        "tokens_per_request": compute_teacher_tokens(known),
    }


def compute_distillation_cost(
    env: StageContext, student: str, metrics: Metrics, uses: dict[str, dict[str, Any]]
) -> DistillationCost:
    """Compute what the answers behind a student and its training cost.

    For a paid teacher the answers cost all that the ledger has for the task: also failed requests, judging and
    imagining. Those of an embedded teacher cost the time that they took. Those of a recording cost as much per prompt
    as on golden and dev.
    """
    task = env.folder.task
    usd_per_hour = task.evaluation.machine_usd_per_hour
    asked = _read_slice_use(env)
    bill = [
        CostLine(line.teacher, line.purpose, line.requests, line.tokens, line.usd, is_billed=True)
        for line in ([] if task.is_free else env.store.list_billed_requests(env.task_name))
    ]
    answers = 0
    for name, part in task.list_teachers():
        held_out = TeacherUse(**uses[name]) if name in uses else TeacherUse(0)
        in_slices = asked.get(name, TeacherUse(0))
        answers += held_out.prompts + in_slices.prompts
        if not part.teacher.is_free:
            continue
        if not part.teacher.is_embedded:  # a recording says little of single slices
            in_slices = replace(held_out, prompts=in_slices.prompts)
        for purpose, use in (("golden", held_out), ("slices", in_slices)):
            if use.prompts:
                usd, tokens = use.compute_cost(part.teacher, usd_per_hour), compute_teacher_tokens({name: use})
                total = None if tokens is None else round(tokens * use.prompts)
                line = CostLine(part.teacher.model, purpose, use.prompts, total, _multiply(usd, use.prompts), False)
                bill.append(line)
    costs = [line.usd for line in bill]
    record = read_folder_record(env.lake.get_folder(env.task_name, "student_adapter", student))
    training_s = sum_model_seconds(record)
    training_usd = compute_machine_cost(training_s, usd_per_hour)
    bill.append(CostLine(student, "training", 0, None, training_usd, is_billed=False))
    return DistillationCost(
        answers,
        None if None in costs else sum(cost or 0.0 for cost in costs),
        training_s,
        training_usd,
        metrics.facts[TEACHER].cost_usd_per_1k if TEACHER in metrics.facts else None,
        metrics.facts[DISTILLED].cost_usd_per_1k,
        usd_per_hour,
        task.evaluation.requests_per_day,
        tuple(bill),
    )


def sum_model_seconds(record: ArtifactRecord | None) -> float | None:
    """The seconds of training and answering behind an artifact: its own, and those of the assistant that taught it."""
    if record is None or not {"model_s", "assistant_s"} & record.extra.keys():
        return None
    return (record.extra.get("model_s") or 0.0) + (record.extra.get("assistant_s") or 0.0)


def _multiply(cost: float | None, number: int) -> float | None:
    return None if cost is None else cost * number


def _machine_seconds_expr() -> pl.Expr:
    """The share of a request in the time of the machine that answered several at once."""
    return pl.col("latency_s") / pl.col("in_flight").fill_null(1).clip(lower_bound=1)


def _read_slice_use(env: StageContext) -> dict[str, TeacherUse]:
    """How many prompts of all slices each teacher was asked about, and its seconds per prompt."""
    keys = env.folder.list_slice_keys()
    env.lake.prefetch(env.task_name, "teacher_completions", keys)
    paths = [path for key in keys if (path := env.lake.get_path(env.task_name, "teacher_completions", key)).exists()]
    if not paths:
        return {}
    rows = (
        pl.scan_parquet(paths)
        .group_by("teacher")
        .agg(
            pl.struct("slice", "prompt_id").n_unique().alias("prompts"),
            pl.when(pl.col("latency_s").null_count() == 0).then(_machine_seconds_expr().sum()).alias("seconds"),
        )
    )
    return {
        teacher: TeacherUse(prompts, seconds=None if seconds is None else seconds / prompts)
        for teacher, prompts, seconds in rows.sort("teacher").collect().iter_rows()
    }


def describe_cost_method(task: Task, uses: dict[str, dict[str, Any]]) -> str:
    """Where the costs of a report come from, in sentences."""
    usd_per_hour = task.evaluation.machine_usd_per_hour
    parts = []
    if usd_per_hour is not None:
        parts.append(
            f"Whatever runs on this machine costs its time while it answers, at ${usd_per_hour:.2f} per hour "
            "(`evaluation.machine_usd_per_hour`), with many items in a batch."
        )
    for name, use in uses.items():
        spec = task.teachers.get(name, task.teacher)
        if not spec.is_replay or spec.price is None or use["prompt_tokens"] is None:
            continue
        sent, received, counted = use["prompt_tokens"], use["completion_tokens"], use["counted_with"]
        how = (
            f"counted with {counted} over what this task would send, and what is recorded" if counted else "as recorded"
        )
        price = f"${spec.price.input_usd:.2f} for a million tokens of requests, ${spec.price.output_usd:.2f} of answers"
        parts.append(
            f"Nothing was billed for {spec.model}: it costs its declared price, {price}. On average a request has "
            f"{sent:,.0f} tokens and an answer {received:,.0f}, {how}."
        )
    return " ".join(parts)
