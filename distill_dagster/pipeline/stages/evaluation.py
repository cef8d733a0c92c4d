"""Stages that compare: every system's answer to every item, and the report."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from distill_dagster.core import plots, progress
from distill_dagster.core.checks import CheckResult
from distill_dagster.core.hashing import hash_content, to_canonical_json
from distill_dagster.curation.candidates.choose import choose_candidates
from distill_dagster.evaluation.predictions_check import check_predictions_complete
from distill_dagster.kinds import Kind, Question, get_kind, is_refusal, read_answer
from distill_dagster.pipeline.stages.context import (
    DisplayValue,
    Markdown,
    SampleTable,
    StageContext,
    StageInputs,
    StageResult,
    sample_rows,
)
from distill_dagster.pipeline.stages.dataset import REJECTED_ROWS, read_rejected_rows
from distill_dagster.pipeline.stages.students import TRAINING_LOG
from distill_dagster.prompts.few_shot import get_context_schema, read_example_pool
from distill_dagster.prompts.seeds import build_labelled_prompts, build_messages, compute_prompt_id
from distill_dagster.tables.messages import format_messages, get_user_text
from distill_dagster.tables.schemas import COMPLETIONS, DATASET, PREDICTIONS, TEACHER_PRIOR, build_frame
from distill_dagster.tables.validation import check_table
from distill_dagster.tasks import LabelledRow
from distill_dagster.teacher.imagine.plan import get_imagine_teacher
from distill_dagster.teacher.judge.judge import get_judge_teacher
from distill_dagster.teacher.providers.terms import find_terms

if TYPE_CHECKING:
    from distill_dagster.student.types import Predictor

WARM_UP_CALLS = 3
MAX_LEAK_CHARS = 300
"""Characters of a prompt in the report's table of leaks."""
SHARED_BASE_NOTICE = (
    "The embedded teacher and the smollm2 student share their base, SmolLM2-135M: what is distilled is the teacher's "
    "prompt, its few-shot examples and their averaging, not a larger model (context distillation, Snell et al. 2022). "
    "A real teacher is one line of task.yaml away."
)


@dataclass(frozen=True)
class EvaluationItem:
    """One thing that every system answers; `reference` is a label or, of other kinds, any JSON value."""

    id: str
    split: str
    slice: str | None
    prompt_id: str
    text: str
    reference: Any


def build_held_out_items(split: str, rows: list[LabelledRow]) -> list[EvaluationItem]:
    """Golden or dev rows with their human answers."""
    return [
        EvaluationItem(
            row.id, split, row.slice, compute_prompt_id(turns), format_messages(turns), json.loads(row.answer_json)
        )
        for row in rows
        for turns in [build_messages(row)]
    ]


def _build_items(env: StageContext, dataset: pl.DataFrame) -> list[EvaluationItem]:
    """Golden and dev with their human labels; validation with the teacher's."""
    held_out = build_held_out_items("golden", env.folder.golden) + build_held_out_items("dev", env.folder.dev)
    validation = dataset.filter(pl.col("split") == "validation")
    return held_out + [
        EvaluationItem(
            r["prompt_id"],
            "validation",
            r["slice"],
            r["prompt_id"],
            format_messages(r["messages"][:-1]),
            json.loads(r["answer"]),
        )
        for r in validation.iter_rows(named=True)
    ]


def build_prediction_row(
    kind: Kind, system: str, item: EvaluationItem, answer: Any, confidence: float | None, raw: str | None
) -> dict[str, Any]:
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
    """The teacher's candidates on golden and dev by prompt id, and the completions that they were chosen from."""
    completions = inputs.read_table("golden_completions", COMPLETIONS)
    prior = inputs.read_table("teacher_prior", TEACHER_PRIOR)
    folder = inputs.env.folder
    prompts = pl.concat([build_labelled_prompts(folder.golden, "golden"), build_labelled_prompts(folder.dev, "dev")])
    prompts = prompts.unique("prompt_id", keep="first", maintain_order=True)
    found = choose_candidates(folder.task, prompts, completions, prior)
    return {row["prompt_id"]: row for row in found.iter_rows(named=True)}, completions


def _build_teacher_rows(
    env: StageContext, inputs: StageInputs, items: list[EvaluationItem]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The teacher's answers on golden and dev; on validation its answer is the reference."""
    answers, completions = read_teacher_candidates(inputs)
    task = env.folder.task
    kind = get_kind(task)
    by_prompt = completions.group_by("prompt_id").agg(
        pl.when((pl.col("in_flight") == 1).all()).then(pl.col("latency_s").sum()).alias("latency_s"),
        pl.when(pl.col("cost_usd").null_count() == 0).then(pl.col("cost_usd").sum()).alias("cost_usd"),
        (pl.col("prompt_tokens") + pl.col("completion_tokens")).sum().alias("tokens"),
    )
    latency = dict(by_prompt.select("prompt_id", "latency_s").iter_rows())
    rows = []
    for item in (i for i in items if i.split != "validation"):
        found = answers[item.prompt_id]
        answer = json.loads(found["answer"]) if found["answer"] else None
        made = build_prediction_row(kind, "teacher", item, answer, found["confidence"], None)
        rows.append(made | {"latency_s": latency.get(item.prompt_id)})
    known = by_prompt["cost_usd"].null_count() == 0 and by_prompt.height > 0
    facts: dict[str, Any] = {
        "model": ", ".join(one.model for one in task.teacher_specs),
        "cost_usd_per_1k": float(by_prompt["cost_usd"].mean()) * 1000 if known else None,  # type: ignore[arg-type]
        "tokens_per_request": float(by_prompt["tokens"].mean() or 0),  # type: ignore[arg-type]
    }
    if task.teacher.embedded and not task.teachers:
        from distill_dagster.core.models import count_gguf_parameters, make_embedded_gguf

        served = make_embedded_gguf(env.models)
        facts |= {"bytes": served.stat().st_size, "parameters": count_gguf_parameters(served)}
    return rows, facts


def predict_rows(kind: Kind, system: str, predictor: Predictor, items: list[EvaluationItem]) -> list[dict[str, Any]]:
    """A student's answers, in batches."""
    rows = []
    for item, p in zip(items, predictor.predict([i.text for i in items]), strict=True):
        if p.probs:
            rows.append(build_prediction_row(kind, system, item, p.label, min(1.0, max(p.probs.values())), p.raw_text))
            continue
        # Read as the teacher's answers are, so that neither is favoured. A wanted refusal is told from the reference.
        wanted = Question(item.text, is_refusal(item.reference))
        read = read_answer(kind, p.raw_text, wanted, stop=f"\n\n{kind.task.item}:")
        answer = json.loads(read.answer) if read.answer is not None else None
        rows.append(build_prediction_row(kind, system, item, answer, None, p.raw_text))
    return rows


def _predict_and_time(
    kind: Kind, system: str, predictor: Predictor, items: list[EvaluationItem], latency_items: int
) -> list[dict[str, Any]]:
    """Answers in batches; latency one by one, after a warm-up, on the first golden items."""
    rows = predict_rows(kind, system, predictor, items)
    golden = [n for n, item in enumerate(items) if item.split == "golden"]
    for n in (golden * WARM_UP_CALLS)[:WARM_UP_CALLS]:
        predictor.predict([items[n].text])
    for n in golden[:latency_items]:
        started = time.perf_counter()
        predictor.predict([items[n].text])
        rows[n]["latency_s"] = time.perf_counter() - started
    return rows


@contextmanager
def _track_peak_memory() -> Iterator[dict[str, int]]:
    """The most that this process held within the block above what it held before, sampled 20 times a second.

    Memory that an earlier system left to the allocator is used again unseen, so a later system may show too little.
    """
    import psutil

    process, done = psutil.Process(), threading.Event()
    before, found = process.memory_info().rss, {"bytes": 0}

    def sample() -> None:
        while not done.wait(0.05):
            found["bytes"] = max(found["bytes"], process.memory_info().rss - before)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def make_predictions(env: StageContext, partition: str | None) -> StageResult:
    from distill_dagster.student.predict import build_centroid_predictor, load_predictor
    from distill_dagster.student.types import TaskSettings

    assert partition is not None
    started = time.perf_counter()
    inputs = StageInputs(env, "predictions", partition)
    inputs.note_source("golden_set")
    inputs.note_source("student_settings", partition)
    task = env.folder.task
    spec, settings = task.students[partition], TaskSettings.of(task)
    kind = get_kind(task)
    items = _build_items(env, inputs.read_table("filtered_dataset", DATASET))
    rows, teacher = _build_teacher_rows(env, inputs, items)
    facts: dict[str, dict[str, Any]] = {"teacher": teacher}
    examples = read_example_pool(inputs.read_table("prompt_context", get_context_schema(task)))
    systems: list[tuple[str, str | None]] = [
        ("base", None),
        ("seed_only", "seed_only_adapter"),
        ("distilled", "student_adapter"),
    ]
    if "slice_label_adapter" in inputs.upstream:
        systems.append(("slice_label", "slice_label_adapter"))
    if task.has_labels and examples:
        systems.append(("centroid", None))
    for number, (system, adapter) in enumerate(systems):
        progress.report_progress(f"predicting with {system}", number, len(systems))
        with _track_peak_memory() as peak:
            if system == "centroid":
                texts, labels = [e.text for e in examples], [e.label for e in examples]
                predictor = build_centroid_predictor(texts, labels, task.labels, env.models)
            else:
                folder = inputs.find_folder(adapter, partition) if adapter else None
                own = spec.model_copy(update={"reasoning": False}) if system == "slice_label" else spec
                predictor = load_predictor(own, task.labels, settings, env.models, folder)
            rows += _predict_and_time(kind, system, predictor, items, task.evaluation.latency_items)
        facts[system] = {
            "model": spec.model if system != "centroid" else "all-minilm-l6-v2",
            "parameters": predictor.parameters,
            "bytes": predictor.bytes,
            "peak_mb": peak["bytes"] / 1e6,
        }
        del predictor
    frame = build_frame(rows, PREDICTIONS, ("split", "system", "item_id"))
    checks = [check_table("predictions", frame), check_predictions_complete(frame)]
    record = inputs.write_table(frame, checks, facts=facts, model_s=time.perf_counter() - started)
    sample = sample_rows(frame, ["system", "item_id", "reference", "answer", "confidence"], 8)
    return StageResult(record, {"rows": frame.height, "systems": len(facts), "sample": sample}, checks)


def make_eval_report(env: StageContext, partition: str | None) -> StageResult:
    """The report folder is made aside and swapped in; this look at golden is logged before anybody can read it."""
    from distill_dagster.evaluation.formatting import (
        build_summary_rows,
        format_metric_name,
        format_metric_name_in_sentence,
    )
    from distill_dagster.evaluation.golden_looks import append_golden_look, read_golden_looks
    from distill_dagster.evaluation.metrics import build_metrics_frame, compute_metrics
    from distill_dagster.evaluation.recommendation import recommend
    from distill_dagster.evaluation.report import ReportInputs, write_report

    assert partition is not None
    inputs = StageInputs(env, "eval_report", partition)
    inputs.note_source("evaluation_settings")
    predictions = inputs.read_table("predictions", PREDICTIONS, partition)
    task = env.folder.task
    predicted = env.lake.read_record(env.task_name, "predictions", partition)
    dataset = env.lake.read_record(env.task_name, "filtered_dataset")
    assert predicted is not None
    metrics = compute_metrics(predictions, predicted.extra["facts"], task.label_names, task.evaluation, get_kind(task))
    verdict = recommend(metrics)
    settings = hash_content({name: value for name, value in predicted.inputs.items() if "settings" in name})
    looks = env.reports / env.task_name / "golden_looks.jsonl"
    created = inputs.build_record("", predictions.height).created_at
    dataset_version = dataset.data_version if dataset else ""
    append_golden_look(
        looks,
        {
            "at": created,
            "student": partition,
            "run_id": env.run_id,
            "settings_hash": settings,
            "dataset_version": dataset_version,
            "predictions_version": predicted.data_version,
        },
    )
    terms = _collect_terms(env)
    draws, samples = task.teacher.few_shot.draws, task.teacher.samples
    asked = f"{draws} draws" if samples == 1 else f"{draws * samples} samples"
    report_inputs = ReportInputs(
        task=env.task_name,
        student=partition,
        dataset_version=dataset_version,
        settings_hash=settings,
        created_at=created,
        texts={row.id: row.text for row in [*env.folder.golden, *env.folder.dev]},
        dataset=_count_dataset_rows(env, inputs),
        leaks=_read_leaks(env),
        training=_read_training_curves(env, partition),
        golden_looks=[look for look in read_golden_looks(looks) if look.get("student") == partition],
        latency_method=(
            f"The first {task.evaluation.latency_items} golden items one by one, students after {WARM_UP_CALLS} to warm up; "  # noqa: E501
            f"the teacher's is the sum over its {asked}, over HTTP, with a warm cache"
            + (", without the search for the nearest examples." if task.teacher.few_shot.nearest else ".")
        ),
        versions={name: metadata.version(name) for name in ("torch", "transformers", "peft", "litellm", "dagster")},
        notice=SHARED_BASE_NOTICE if any(one.embedded for one in task.teacher_specs) else None,
        terms=terms,
        extra={"summary": build_summary_rows(metrics)},
    )
    target = env.lake.get_folder(env.task_name, "eval_report", partition)

    def fill(folder: Path) -> str:
        write_report(folder, predictions, metrics, verdict, report_inputs)
        return hash_content([predicted.data_version, inputs.versions["evaluation_settings"]])

    record = env.lake.write_folder(target, lambda version: inputs.build_record(version, predictions.height), fill)
    intervals = [
        (name, s.score.value, s.score.low, s.score.high)
        for name, s in metrics.golden.systems.items()
        if s.score.value is not None and s.score.low is not None and s.score.high is not None
    ]
    png = plots.plot_intervals(
        intervals, f"{format_metric_name(metrics.metric)} on golden", format_metric_name_in_sentence(metrics.metric)
    )
    shown: dict[str, DisplayValue] = {
        "verdict": verdict.text,
        "report": target / "report.html",
        metrics.metric: Markdown(plots.to_markdown_image(png)),
        "terms": "; ".join(dict.fromkeys(one["summary"] for one in terms)),
        "summary": SampleTable([dict(row) for row in build_summary_rows(metrics)]),
        **{f"{metrics.metric}_{name}": float(value) for name, value, _, _ in intervals},
    }
    from distill_dagster.evaluation.metrics_table import check_metrics_table

    problem = check_metrics_table(build_metrics_frame(metrics))
    found = {
        "problem": problem or "",
        "notice": SHARED_BASE_NOTICE if any(one.embedded for one in task.teacher_specs) else "",
    }
    return StageResult(record, shown, [CheckResult("metrics_table", problem is None, details=found)])


def _count_dataset_rows(env: StageContext, inputs: StageInputs) -> dict[str, dict[str, int]]:
    record = env.lake.read_record(env.task_name, "filtered_dataset")
    if record is None:
        return {}
    frame, _ = env.lake.read(env.task_name, "filtered_dataset", None, DATASET)
    kept = dict(frame.group_by("split").len().sort("split").iter_rows())
    return {"kept": kept, "dropped": {k: n for k, n in record.extra.get("reasons", {}).items() if n}}


def _read_leaks(env: StageContext) -> list[dict[str, str]]:
    """What the dataset left out for golden's and dev's sake."""
    if env.lake.read_record(env.task_name, "filtered_dataset", REJECTED_ROWS) is None:
        return []
    rows = read_rejected_rows(env).filter(pl.col("drop_reason") == "contaminated")
    return [
        {"text": get_user_text(messages)[:MAX_LEAK_CHARS], "slice": slice_, "why": why}
        for messages, slice_, why in rows.select("messages", "slice", "drop_detail").iter_rows()
    ]


def _collect_terms(env: StageContext) -> list[dict[str, Any]]:
    """The terms of every teacher, and of a judge and of an imaginer of its own where they took part in the dataset."""
    task, terms = env.folder.task, [find_terms(one).as_json() for one in env.folder.task.teacher_specs]
    if task.imagine is not None and task.imagine.teacher is not None:
        found = env.lake.read(env.task_name, "filtered_dataset", None, DATASET)[0]
        if (found["origin"] == "synthetic").any():
            terms.append(find_terms(get_imagine_teacher(task)).as_json("imaginer"))
    if task.judge is not None:
        scored_ = (env.lake.read_record(env.task_name, "scored_completions", key) for key in env.folder.list_slice_keys())
        counts = ("teacher_calls", "teacher_calls_cached")
        if any(record.extra.get(name) for record in scored_ if record is not None for name in counts):
            terms.append(find_terms(get_judge_teacher(task)).as_json("judge"))
    return terms


def _read_training_curves(env: StageContext, student: str) -> dict[str, list[tuple[float, float]]] | None:
    path = env.lake.get_folder(env.task_name, "student_adapter", student) / TRAINING_LOG
    if not path.exists():
        return None
    log = json.loads(path.read_text())
    curves = {"training loss": [(float(step), float(loss)) for step, _, loss in log["losses"]]}
    if log["validation"]:
        per_epoch = log["steps"] / max(log["epochs"], 1)
        curves["validation loss"] = [((i + 1) * per_epoch, v["loss"]) for i, v in enumerate(log["validation"])]
    return curves
