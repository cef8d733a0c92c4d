"""Stages from the user's files to scored candidates."""

from __future__ import annotations

import json
from dataclasses import replace

import polars as pl

from distill_dagster.config import Task
from distill_dagster.core import plots
from distill_dagster.core.checks import CheckResult
from distill_dagster.curation.candidates.ensemble import find_unsure_prompts
from distill_dagster.curation.candidates.label_answers import add_imagined_columns
from distill_dagster.curation.candidates.priors import build_uniform_prior, estimate_prior, estimate_vote_prior
from distill_dagster.curation.candidates.score import choose_candidates
from distill_dagster.pipeline.retry_backoff import build_backoff_fields
from distill_dagster.pipeline.stages import imagine, judge, scores
from distill_dagster.pipeline.stages.context import (
    DisplayValue,
    Markdown,
    SampleTable,
    StageContext,
    StageInputs,
    StageResult,
    build_held_out_table,
    sample_rows,
)
from distill_dagster.pipeline.stages.gate import require_passed_gate
from distill_dagster.prompts.few_shot import (
    FewShotExample,
    build_draws,
    build_prompt_context,
    choose_calibration_examples,
    get_context_schema,
    read_example_pool,
)
from distill_dagster.prompts.seeds import build_labelled_prompts, build_seed_prompts, compute_prompt_id
from distill_dagster.prompts.templates import Templates
from distill_dagster.student.sentences import make_sentence_embedder
from distill_dagster.tables.lake import format_artifact_name
from distill_dagster.tables.messages import make_user_message
from distill_dagster.tables.schemas import COMPLETIONS, PROMPTS, TEACHER_PRIOR, build_frame
from distill_dagster.tables.validation import check_table
from distill_dagster.tasks import LabelledRow
from distill_dagster.teacher.asking.ask import Asker, AskResult, merge_results, run_ask
from distill_dagster.teacher.asking.requests import RequestBuilder
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.replay import load_replay_teacher
from distill_dagster.teacher.providers.terms import check_terms, find_terms


def make_prompt_context(env: StageContext, partition: str | None) -> StageResult:
    reading = StageInputs(env, "prompt_context", partition)
    reading.source("human_examples")
    held_out, examples = reading.held_out(), env.folder.examples
    frame = build_prompt_context(
        examples, held_out, get_context_schema(env.folder.task), _find_leaking_examples(env, examples)
    )
    removed = frame.filter(pl.col("removed").is_not_null())
    found = {"removed": ", ".join(f"{i} ({why})" for i, why in removed.select("id", "removed").iter_rows())}
    checks = [check_table("prompt_context", frame), CheckResult("no_row_removed", not removed.height, "warning", found)]
    record = reading.write(frame, checks)
    rows = sample_rows(
        frame.filter(pl.col("removed").is_null()),
        ["id", "text", "answer" if env.folder.task.answers_are_written else "label"],
    )
    return StageResult(record, {"rows": frame.height, "removed": removed.height, "sample": rows}, checks)


def _find_leaking_examples(env: StageContext, examples: list[LabelledRow]) -> frozenset[str]:
    """The ids of examples that hold a golden or dev row, or nearly are one."""
    from distill_dagster.curation.dedup.decontaminate import find_contamination  # loads NumPy and pyarrow

    rows = pl.DataFrame(
        [(row.id, row.text) for row in examples], schema={"id": pl.String, "text": pl.String}, orient="row"
    )
    return frozenset(find_contamination(rows, build_held_out_table(env.folder), limits=env.limits).ids)


def make_seed_prompts(env: StageContext, partition: str | None) -> StageResult:
    assert partition is not None
    reading = StageInputs(env, "seed_prompts", partition)
    reading.source("teacher_settings")
    reading.source("slice_files", partition)
    if env.folder.task.imagine is not None:
        require_passed_gate(reading)
        reading.source("imagine_settings")
    slice_, outcome = imagine.imagine_for_slice(reading, partition, env.folder.slice(partition))
    frame = build_seed_prompts(partition, slice_, answers=not env.folder.task.has_labels)
    checks = [check_table("seed_prompts", frame), imagine.check_target_reached(slice_, frame, outcome)]
    missing = outcome.missing_rows if outcome else 0
    record = reading.write(frame, checks, missing, **imagine.build_imagine_record(outcome))
    sample = sample_rows(frame.sort(pl.col("origin") != "synthetic"), ["prompt_id", "origin", "target_label", "axes"])
    shown: dict[str, DisplayValue] = {"rows": frame.height, "description": slice_.description, "sample": sample}
    return StageResult(record, shown | imagine.build_imagine_metadata(env.folder.task, slice_, frame, outcome), checks)


def _build_asker(
    env: StageContext, reading: StageInputs, endpoint: Endpoint, task: Task, name: str | None = None
) -> Asker:
    reading.source("teacher_settings")
    examples = read_example_pool(reading.table("prompt_context", get_context_schema(task)))
    templates = Templates(env.folder.templates(), task.kind, task.reasoning)
    embed = make_sentence_embedder(task.teacher, env.models)
    if task.teacher.replayed:
        endpoint = replace(endpoint, recorded=load_replay_teacher(env.folder, task.teacher))
    origin = f"{env.task_name}/{format_artifact_name(reading.asset, reading.partition)}"
    requests = RequestBuilder(task, templates, examples, endpoint, embed)
    return Asker(requests, env.store, reading.account, name, origin)


def _ask_teachers(env: StageContext, reading: StageInputs, prompts: pl.DataFrame, lone: int = 0) -> AskResult:
    """Ask every teacher of the task; in a cascade the next one only where the one before is unsure."""
    whole, left = env.folder.task, prompts
    parts: list[AskResult] = []
    for name, task in whole.each_teacher():
        if parts and not left.height:
            break
        with env.endpoint(task.teacher) as endpoint:
            parts.append(run_ask(_build_asker(env, reading, endpoint, task, name), left, lone=lone))
        if whole.cascade is not None:
            left = find_unsure_prompts(task, whole.cascade, left, parts[-1].completions)
    return merge_results(parts)


def _count_by_teacher(frame: pl.DataFrame) -> SampleTable:
    """Rows, tokens and cost of each teacher."""
    found = frame.group_by("teacher", maintain_order=True).agg(
        pl.col("prompt_id").n_unique().alias("prompts"),
        pl.len().alias("rows"),
        (pl.col("status") == "ok").sum().alias("ok"),
        pl.col("prompt_tokens").sum(),
        pl.col("completion_tokens").sum(),
        pl.when(pl.col("cost_usd").null_count() == 0).then(pl.col("cost_usd").sum()).alias("cost_usd"),
    )
    return SampleTable(found.to_dicts())


def _write_completions(reading: StageInputs, asked: AskResult) -> StageResult:
    frame = asked.completions
    cost = float(frame["cost_usd"].sum()) if frame["cost_usd"].null_count() == 0 and frame.height else None
    task = reading.env.folder.task
    checks = [
        *check_terms(*task.teacher_specs),
        check_table(reading.asset, frame),
        check_missing_rows(asked.missing_rows, frame),
    ]
    before = reading.env.lake.record(reading.env.task_name, reading.asset, reading.partition)
    record = reading.write(
        frame,
        checks,
        asked.missing_rows,
        **build_backoff_fields(before, asked.missing_rows, asked.stopped is not None, reading.env.budget),
        teacher_calls=asked.calls,
        teacher_calls_cached=asked.cached,
        cost_usd=cost,
        spent_usd=asked.spent_usd,
        prompt_tokens=asked.prompt_tokens,
        completion_tokens=asked.completion_tokens,
        model_s=asked.seconds,
    )
    shown: dict[str, DisplayValue] = {
        "rows": frame.height,
        "missing_rows": asked.missing_rows,
        "teacher_calls": asked.calls,
        "teacher_calls_cached": asked.cached,
        "prompt_tokens": int(frame["prompt_tokens"].sum() or 0),
        "completion_tokens": int(frame["completion_tokens"].sum() or 0),
        "cost_usd": "unknown" if cost is None else cost,
        "spent_usd": "unknown" if asked.spent_usd is None else asked.spent_usd,
        "median_latency_s": round(float(frame["latency_s"].median() or 0.0), 4),  # type: ignore[arg-type]
        "terms": "; ".join(dict.fromkeys(find_terms(spec).summary for spec in task.teacher_specs)),
        "sample": sample_rows(frame, ["prompt_id", "sample_index", "status", "answer", "raw_text"]),
    }
    if asked.stopped:
        shown["stopped"] = asked.stopped
    if task.teachers:
        shown["teachers"] = _count_by_teacher(frame)
    return StageResult(record, shown, checks)


def make_teacher_prior(env: StageContext, partition: str | None) -> StageResult:
    """The teacher's mean answer per draw to examples left out of it; uniform where the task asks for none."""
    reading = StageInputs(env, "teacher_prior", partition)
    spec, labels = env.folder.task.teacher, env.folder.task.label_names
    examples = read_example_pool(reading.table("prompt_context", get_context_schema(env.folder.task)))
    calls = cached = 0
    seconds, spent = 0.0, None
    if spec.calibration == "none":
        reading.source("teacher_settings")
        prior = build_uniform_prior(labels, spec.few_shot.draws)
    else:
        wanted: dict[str, set[int]] = {}
        texts: dict[str, str] = {}
        # Where the nearest examples are taken, none is in every prompt: each is left out of its own.
        shared = [list[FewShotExample]()] * spec.few_shot.draws if spec.few_shot.nearest else None
        for sample, draw in enumerate(shared or build_draws(examples, labels, spec.few_shot)):
            for example in choose_calibration_examples(examples, draw, labels, spec.calibration_items):
                id_ = compute_prompt_id(make_user_message(example.text))
                wanted.setdefault(id_, set()).update(range(sample, spec.requests_per_prompt, spec.few_shot.draws))
                texts[id_] = example.text
        prompts = build_frame(
            [_build_example_prompt(id_, text) for id_, text in texts.items()], PROMPTS, ("prompt_id",)
        )
        with env.endpoint(spec) as endpoint:
            asker = _build_asker(env, reading, endpoint, env.folder.task)
            asked = run_ask(asker, prompts, samples=lambda id_: sorted(wanted[id_]))
        calls, cached, seconds, spent = asked.calls, asked.cached, asked.seconds, asked.spent_usd
        if spec.votes_corrected:
            prior = estimate_vote_prior(asked.completions, labels, spec.few_shot.draws)
        else:
            prior = estimate_prior(asked.completions, labels)
    checks = [check_table("teacher_prior", prior)]
    record = reading.write(
        prior, checks, teacher_calls=calls, teacher_calls_cached=cached, spent_usd=spent, model_s=seconds
    )
    by_label = prior.group_by("label").agg(pl.col("prob").mean().round(4)).sort("prob", descending=True)
    shown: dict[str, DisplayValue] = {"rows": prior.height, "teacher_calls": calls, "teacher_calls_cached": cached}
    if prior.height:
        title = "The teacher's mean answer to balanced examples"
        png = plots.plot_counts(dict(by_label.iter_rows()), title, "probability")
        shown["prior"] = Markdown(plots.to_markdown_image(png))
    return StageResult(record, shown, checks)


def _build_example_prompt(id_: str, text: str) -> dict[str, object]:
    empty: dict[str, object] = dict.fromkeys(PROMPTS)
    return empty | {"prompt_id": id_, "slice": "examples", "origin": "human", "messages": make_user_message(text)}


def make_golden_completions(env: StageContext, partition: str | None) -> StageResult:
    """Golden first, its first rows one by one, so that their latency is that of a lone request; then dev."""
    reading = StageInputs(env, "golden_completions", partition)
    reading.source("golden_set")
    dev, golden = build_labelled_prompts(env.folder.dev, "dev"), build_labelled_prompts(env.folder.golden, "golden")
    prompts = pl.concat([golden, dev]).unique("prompt_id", keep="first", maintain_order=True)
    return _write_completions(
        reading, _ask_teachers(env, reading, prompts, lone=env.folder.task.evaluation.latency_items)
    )


def make_teacher_completions(env: StageContext, partition: str | None) -> StageResult:
    reading = StageInputs(env, "teacher_completions", partition)
    require_passed_gate(reading)
    prompts = reading.table("seed_prompts", PROMPTS, partition)
    return _write_completions(reading, _ask_teachers(env, reading, prompts))


def make_scored_completions(env: StageContext, partition: str | None) -> StageResult:
    reading = StageInputs(env, "scored_completions", partition)
    prompts = reading.table("seed_prompts", PROMPTS, partition)
    completions = reading.table("teacher_completions", COMPLETIONS, partition)
    prior = reading.table("teacher_prior", TEACHER_PRIOR)
    task = env.folder.task
    frame = add_imagined_columns(choose_candidates(task, prompts, completions, prior), prompts)
    verdicts = judge.judge_slice(env, reading, frame, completions)
    frame = scores.add_task_scores(env, reading, verdicts.candidates if verdicts else frame, completions)
    checks = [check_table("scored_completions", frame), judge.check_all_judged(verdicts)]
    more = judge.build_judge_record(verdicts) | scores.build_scores_record(task)
    record = reading.write(frame, checks, verdicts.failed if verdicts else 0, **more)
    shown: dict[str, DisplayValue] = {
        "rows": frame.height,
        "without_answer": frame["answer"].null_count(),
        "mean_agreement": round(float(frame["agreement"].mean() or 0.0), 4),  # type: ignore[arg-type]
        "sample": sample_rows(frame, ["answer", "agreement", "confidence", "judge_score"]),
    }
    if task.has_labels:
        counts = frame.filter(pl.col("answer").is_not_null()).group_by("answer").len().sort("answer")
        png = plots.plot_counts({json.loads(a): n for a, n in counts.iter_rows()}, "Candidates by label", "rows")
        shown["labels"] = Markdown(plots.to_markdown_image(png))
    meant = frame.filter(pl.col("target_label").is_not_null() & pl.col("answer").is_not_null())
    if meant.height:
        same = [json.loads(answer) == label for answer, label in meant.select("answer", "target_label").iter_rows()]
        shown["answered_as_meant"] = f"{sum(same)} of {meant.height}"
    return StageResult(
        record, shown | judge.build_judge_metadata(task, verdicts) | scores.build_scores_metadata(task), checks
    )


def check_missing_rows(missing: int, frame: pl.DataFrame) -> CheckResult:
    errors = frame.filter(pl.col("error").is_not_null())["error"].value_counts(sort=True).head(5)
    found = {"missing_rows": missing, "errors": "; ".join(f"{n} × {e}" for e, n in errors.iter_rows())}
    return CheckResult("no_missing_rows", missing == 0, "warning", found)
