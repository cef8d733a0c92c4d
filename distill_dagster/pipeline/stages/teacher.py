"""Stages from the user's files to scored candidates."""

from __future__ import annotations

import json
from dataclasses import replace

import polars as pl

from distill_dagster.config import Task
from distill_dagster.core import plots
from distill_dagster.core.checks import Check
from distill_dagster.curation.candidates.ensemble import unsure
from distill_dagster.curation.candidates.label_answers import with_imagined
from distill_dagster.curation.candidates.priors import prior_of, uniform_prior, voted_prior
from distill_dagster.curation.candidates.score import scored
from distill_dagster.pipeline.retry_backoff import note
from distill_dagster.pipeline.stages import imagine, judge, scores
from distill_dagster.pipeline.stages.context import (
    Env,
    Made,
    Markdown,
    Reading,
    Rows,
    Shown,
    held_out_table,
    sample_rows,
)
from distill_dagster.pipeline.stages.gate import refuse_unless_passed
from distill_dagster.prompts.few_shot import Example, context_schema, draws, left_out, pool, prompt_context
from distill_dagster.prompts.seeds import labelled_prompts, prompt_id, seed_prompts
from distill_dagster.prompts.templates import Templates
from distill_dagster.student.sentences import sentence_embedder
from distill_dagster.tables.lake import node
from distill_dagster.tables.messages import user_message
from distill_dagster.tables.schemas import COMPLETIONS, PRIOR, PROMPTS, frame_of
from distill_dagster.tables.validation import valid_table
from distill_dagster.tasks import Row
from distill_dagster.teacher.asking.ask import Asked, Asker, run_ask, together
from distill_dagster.teacher.asking.requests import Requests
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.replay import recorded
from distill_dagster.teacher.providers.terms import terms_checks, terms_of


def make_prompt_context(env: Env, partition: str | None) -> Made:
    reading = Reading(env, "prompt_context", partition)
    reading.source("human_examples")
    held_out, examples = reading.held_out(), env.folder.examples
    frame = prompt_context(examples, held_out, context_schema(env.folder.task), _leaking(env, examples))
    removed = frame.filter(pl.col("removed").is_not_null())
    found = {"removed": ", ".join(f"{i} ({why})" for i, why in removed.select("id", "removed").iter_rows())}
    checks = [valid_table("prompt_context", frame), Check("no_row_removed", not removed.height, "warning", found)]
    record = reading.write(frame, checks)
    rows = sample_rows(
        frame.filter(pl.col("removed").is_null()),
        ["id", "text", "answer" if env.folder.task.answers_are_written else "label"],
    )
    return Made(record, {"rows": frame.height, "removed": removed.height, "sample": rows}, checks)


def _leaking(env: Env, examples: list[Row]) -> frozenset[str]:
    """The ids of examples that hold a golden or dev row, or nearly are one."""
    from distill_dagster.curation.dedup.decontaminate import decontaminate  # loads NumPy and pyarrow

    rows = pl.DataFrame(
        [(row.id, row.text) for row in examples], schema={"id": pl.String, "text": pl.String}, orient="row"
    )
    return frozenset(decontaminate(rows, held_out_table(env.folder), limits=env.limits).ids)


def make_seed_prompts(env: Env, partition: str | None) -> Made:
    assert partition is not None
    reading = Reading(env, "seed_prompts", partition)
    reading.source("teacher_settings")
    reading.source("slice_files", partition)
    if env.folder.task.imagine is not None:
        refuse_unless_passed(reading)
        reading.source("imagine_settings")
    slice_, outcome = imagine.imagined_for(env, partition, env.folder.slice(partition))
    frame = seed_prompts(partition, slice_, answers=not env.folder.task.has_labels)
    checks = [valid_table("seed_prompts", frame), imagine.target_reached(slice_, frame, outcome)]
    missing = outcome.missing_rows if outcome else 0
    record = reading.write(frame, checks, missing, **imagine.recorded(outcome))
    sample = sample_rows(frame.sort(pl.col("origin") != "synthetic"), ["prompt_id", "origin", "target_label", "axes"])
    shown: dict[str, Shown] = {"rows": frame.height, "description": slice_.description, "sample": sample}
    return Made(record, shown | imagine.shown(env.folder.task, slice_, frame, outcome), checks)


def _asker(env: Env, reading: Reading, endpoint: Endpoint, task: Task, name: str | None = None) -> Asker:
    reading.source("teacher_settings")
    examples = pool(reading.table("prompt_context", context_schema(task)))
    templates = Templates(env.folder.templates(), task.kind, task.reasoning)
    embed = sentence_embedder(task.teacher, env.models)
    account = env.account(reading.asset.removesuffix("_completions").removeprefix("teacher_"))
    if task.teacher.replayed:
        endpoint = replace(endpoint, recorded=recorded(env.folder, task.teacher))
    origin = f"{env.task_name}/{node(reading.asset, reading.partition)}"
    requests = Requests(task, templates, examples, endpoint, embed)
    return Asker(requests, env.store, account, name, origin)


def _ask(env: Env, reading: Reading, prompts: pl.DataFrame, lone: int = 0) -> Asked:
    """Ask every teacher of the task; in a cascade the next one only where the one before is unsure."""
    whole, left = env.folder.task, prompts
    parts: list[Asked] = []
    for name, task in whole.each_teacher():
        if parts and not left.height:
            break
        with env.endpoint(task.teacher) as endpoint:
            parts.append(run_ask(_asker(env, reading, endpoint, task, name), left, lone=lone))
        if whole.cascade is not None:
            left = unsure(task, whole.cascade, left, parts[-1].completions)
    return together(parts)


def _by_teacher(frame: pl.DataFrame) -> Rows:
    """Rows, tokens and cost of each teacher."""
    found = frame.group_by("teacher", maintain_order=True).agg(
        pl.col("prompt_id").n_unique().alias("prompts"),
        pl.len().alias("rows"),
        (pl.col("status") == "ok").sum().alias("ok"),
        pl.col("prompt_tokens").sum(),
        pl.col("completion_tokens").sum(),
        pl.when(pl.col("cost_usd").null_count() == 0).then(pl.col("cost_usd").sum()).alias("cost_usd"),
    )
    return Rows(found.to_dicts())


def _asked(reading: Reading, asked: Asked) -> Made:
    frame = asked.completions
    cost = float(frame["cost_usd"].sum()) if frame["cost_usd"].null_count() == 0 and frame.height else None
    task = reading.env.folder.task
    checks = [
        *terms_checks(*task.teacher_specs),
        valid_table(reading.asset, frame),
        no_missing_rows(asked.missing_rows, frame),
    ]
    before = reading.env.lake.record(reading.env.task_name, reading.asset, reading.partition)
    record = reading.write(
        frame,
        checks,
        asked.missing_rows,
        **note(before, asked.missing_rows, asked.stopped is not None, reading.env.budget),
        teacher_calls=asked.calls,
        teacher_calls_cached=asked.cached,
        cost_usd=cost,
        spent_usd=asked.spent_usd,
        prompt_tokens=asked.prompt_tokens,
        completion_tokens=asked.completion_tokens,
        model_s=asked.seconds,
    )
    shown: dict[str, Shown] = {
        "rows": frame.height,
        "missing_rows": asked.missing_rows,
        "teacher_calls": asked.calls,
        "teacher_calls_cached": asked.cached,
        "prompt_tokens": int(frame["prompt_tokens"].sum() or 0),
        "completion_tokens": int(frame["completion_tokens"].sum() or 0),
        "cost_usd": "unknown" if cost is None else cost,
        "spent_usd": "unknown" if asked.spent_usd is None else asked.spent_usd,
        "median_latency_s": round(float(frame["latency_s"].median() or 0.0), 4),  # type: ignore[arg-type]
        "terms": "; ".join(dict.fromkeys(terms_of(spec).summary for spec in task.teacher_specs)),
        "sample": sample_rows(frame, ["prompt_id", "sample_index", "status", "answer", "raw_text"]),
    }
    if asked.stopped:
        shown["stopped"] = asked.stopped
    if task.teachers:
        shown["teachers"] = _by_teacher(frame)
    return Made(record, shown, checks)


def make_teacher_prior(env: Env, partition: str | None) -> Made:
    """The teacher's mean answer per draw to examples left out of it; uniform where the task asks for none."""
    reading = Reading(env, "teacher_prior", partition)
    spec, labels = env.folder.task.teacher, env.folder.task.label_names
    examples = pool(reading.table("prompt_context", context_schema(env.folder.task)))
    calls = cached = 0
    seconds, spent = 0.0, None
    if spec.calibration == "none":
        reading.source("teacher_settings")
        prior = uniform_prior(labels, spec.few_shot.draws)
    else:
        wanted: dict[str, set[int]] = {}
        texts: dict[str, str] = {}
        # Where the nearest examples are taken, none is in every prompt: each is left out of its own.
        shared = [list[Example]()] * spec.few_shot.draws if spec.few_shot.nearest else None
        for sample, draw in enumerate(shared or draws(examples, labels, spec.few_shot)):
            for example in left_out(examples, draw, labels, spec.calibration_items):
                id_ = prompt_id(user_message(example.text))
                wanted.setdefault(id_, set()).update(range(sample, spec.requests_per_prompt, spec.few_shot.draws))
                texts[id_] = example.text
        prompts = frame_of([_example_prompt(id_, text) for id_, text in texts.items()], PROMPTS, ("prompt_id",))
        with env.endpoint(spec) as endpoint:
            asker = _asker(env, reading, endpoint, env.folder.task)
            asked = run_ask(asker, prompts, samples=lambda id_: sorted(wanted[id_]))
        calls, cached, seconds, spent = asked.calls, asked.cached, asked.seconds, asked.spent_usd
        if spec.votes_corrected:
            prior = voted_prior(asked.completions, labels, spec.few_shot.draws)
        else:
            prior = prior_of(asked.completions, labels)
    checks = [valid_table("teacher_prior", prior)]
    record = reading.write(
        prior, checks, teacher_calls=calls, teacher_calls_cached=cached, spent_usd=spent, model_s=seconds
    )
    by_label = prior.group_by("label").agg(pl.col("prob").mean().round(4)).sort("prob", descending=True)
    shown: dict[str, Shown] = {"rows": prior.height, "teacher_calls": calls, "teacher_calls_cached": cached}
    if prior.height:
        title = "The teacher's mean answer to balanced examples"
        png = plots.bar_counts(dict(by_label.iter_rows()), title, "probability")
        shown["prior"] = Markdown(plots.markdown_image(png))
    return Made(record, shown, checks)


def _example_prompt(id_: str, text: str) -> dict[str, object]:
    empty: dict[str, object] = dict.fromkeys(PROMPTS)
    return empty | {"prompt_id": id_, "slice": "examples", "origin": "human", "messages": user_message(text)}


def make_golden_completions(env: Env, partition: str | None) -> Made:
    """Golden first, its first rows one by one, so that their latency is that of a lone request; then dev."""
    reading = Reading(env, "golden_completions", partition)
    reading.source("golden_set")
    dev, golden = labelled_prompts(env.folder.dev, "dev"), labelled_prompts(env.folder.golden, "golden")
    prompts = pl.concat([golden, dev]).unique("prompt_id", keep="first", maintain_order=True)
    return _asked(reading, _ask(env, reading, prompts, lone=env.folder.task.evaluation.latency_items))


def make_teacher_completions(env: Env, partition: str | None) -> Made:
    reading = Reading(env, "teacher_completions", partition)
    refuse_unless_passed(reading)
    prompts = reading.table("seed_prompts", PROMPTS, partition)
    return _asked(reading, _ask(env, reading, prompts))


def make_scored_completions(env: Env, partition: str | None) -> Made:
    reading = Reading(env, "scored_completions", partition)
    prompts = reading.table("seed_prompts", PROMPTS, partition)
    completions = reading.table("teacher_completions", COMPLETIONS, partition)
    prior = reading.table("teacher_prior", PRIOR)
    task = env.folder.task
    frame = with_imagined(scored(task, prompts, completions, prior), prompts)
    verdicts = judge.judged(env, reading, frame, completions)
    frame = scores.added(env, reading, verdicts.candidates if verdicts else frame, completions)
    checks = [valid_table("scored_completions", frame), judge.all_judged(verdicts)]
    more = judge.recorded(verdicts) | scores.recorded(task)
    record = reading.write(frame, checks, verdicts.failed if verdicts else 0, **more)
    shown: dict[str, Shown] = {
        "rows": frame.height,
        "without_answer": frame["answer"].null_count(),
        "mean_agreement": round(float(frame["agreement"].mean() or 0.0), 4),  # type: ignore[arg-type]
        "sample": sample_rows(frame, ["answer", "agreement", "confidence", "judge_score"]),
    }
    if task.has_labels:
        counts = frame.filter(pl.col("answer").is_not_null()).group_by("answer").len().sort("answer")
        png = plots.bar_counts({json.loads(a): n for a, n in counts.iter_rows()}, "Candidates by label", "rows")
        shown["labels"] = Markdown(plots.markdown_image(png))
    meant = frame.filter(pl.col("target_label").is_not_null() & pl.col("answer").is_not_null())
    if meant.height:
        same = [json.loads(answer) == label for answer, label in meant.select("answer", "target_label").iter_rows()]
        shown["answered_as_meant"] = f"{sum(same)} of {meant.height}"
    return Made(record, shown | judge.shown(task, verdicts) | scores.shown(task), checks)


def no_missing_rows(missing: int, frame: pl.DataFrame) -> Check:
    errors = frame.filter(pl.col("error").is_not_null())["error"].value_counts(sort=True).head(5)
    found = {"missing_rows": missing, "errors": "; ".join(f"{n} × {e}" for e, n in errors.iter_rows())}
    return Check("no_missing_rows", missing == 0, "warning", found)
