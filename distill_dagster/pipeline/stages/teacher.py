"""The stages that ask the teacher for answers: teacher_prior, golden_completions and teacher_completions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import polars as pl

from distill_dagster.config import Task
from distill_dagster.core import plots
from distill_dagster.core.checks import CheckResult
from distill_dagster.curation.candidates.cascade import find_unsure_prompts
from distill_dagster.curation.candidates.priors import build_uniform_prior, estimate_prior, estimate_vote_prior
from distill_dagster.pipeline.stages.context import (
    DisplayValue,
    Markdown,
    SampleTable,
    StageContext,
    StageInputs,
    StageResult,
    sample_rows,
)
from distill_dagster.pipeline.stages.gate import require_passed_gate
from distill_dagster.prompts.few_shot import (
    FewShotExample,
    build_draws,
    choose_calibration_examples,
    read_example_pool,
)
from distill_dagster.prompts.seeds import build_held_out_prompts, compute_prompt_id
from distill_dagster.prompts.templates import build_answer_templates
from distill_dagster.student.sentences import make_sentence_embedder
from distill_dagster.tables.lake import format_artifact_name
from distill_dagster.tables.messages import make_user_messages
from distill_dagster.tables.schemas import COMPLETIONS, PROMPT_CONTEXT, PROMPTS, build_frame
from distill_dagster.tables.validation import check_table
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.asking.ask import Asker, AskResult, merge_results, run_ask
from distill_dagster.teacher.asking.recorded_prompts import select_known_prompts
from distill_dagster.teacher.asking.requests import RequestBuilder
from distill_dagster.teacher.completions.usage import Usage
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.replay import load_replay_teacher
from distill_dagster.teacher.providers.terms import check_terms, find_terms


def make_teacher_prior(env: StageContext, partition: str | None) -> StageResult:
    """Estimate the teacher's bias: its mean answer to examples that are left out of each draw.

    Reads: prompt_context.
    Writes: TEACHER_PRIOR; uniform where `teacher.calibration` is none.
    Asks a teacher: yes, unless `teacher.calibration` is none.
    Re-runs when: prompt_context or teacher_settings changes, or answers are missing.
    """
    inputs = StageInputs(env, "teacher_prior", partition)
    inputs.note_source("teacher_settings")
    task = env.folder.task
    spec, labels = task.teacher, task.label_names
    examples = read_example_pool(inputs.read_table("prompt_context", PROMPT_CONTEXT))
    result = AskResult(pl.DataFrame(schema=COMPLETIONS), Usage())
    if spec.calibration == "none":
        prior = build_uniform_prior(labels, spec.few_shot.draws)
    else:
        prompts, samples = _choose_calibration_prompts(task, examples)
        with env.endpoint(spec) as endpoint:
            asker = _build_asker(inputs, endpoint, task, examples)
            result = run_ask(asker, prompts, samples=lambda id_: samples[id_])
        if spec.soft_labels != "logprobs":
            prior = estimate_vote_prior(result.completions, labels, spec.few_shot.draws)
        else:
            prior = estimate_prior(result.completions, labels)
    checks = [check_table("teacher_prior", prior), check_missing_rows(result)]
    record = inputs.write_table(prior, checks, result.missing_rows, result.usage)
    shown: dict[str, DisplayValue] = {"rows": prior.height, "missing_rows": result.missing_rows}
    shown |= result.usage.build_metadata()
    if prior.height:
        by_label = prior.group_by("label").agg(pl.col("prob").mean().round(4)).sort("prob", descending=True)
        title = "The teacher's mean answer to balanced examples"
        png = plots.plot_counts(dict(by_label.iter_rows()), title, "probability")
        shown["prior"] = Markdown(plots.to_markdown_image(png))
    return StageResult(record, shown, checks)


def _choose_calibration_prompts(
    task: Task, examples: list[FewShotExample]
) -> tuple[pl.DataFrame, dict[str, list[int]]]:
    """Examples as a prompts table, and by prompt id the samples whose draw does not contain the example."""
    spec, labels = task.teacher, task.label_names
    samples: dict[str, set[int]] = {}
    texts: dict[str, str] = {}
    # With `few_shot.nearest` no example is in every prompt: each is left out of its own prompt only.
    shared = [list[FewShotExample]()] * spec.few_shot.draws if spec.few_shot.nearest else None
    for number, draw in enumerate(shared or build_draws(examples, labels, spec.few_shot)):
        for example in choose_calibration_examples(examples, draw, labels, spec.calibration_items):
            id_ = compute_prompt_id(make_user_messages(example.text))
            samples.setdefault(id_, set()).update(range(number, spec.requests_per_prompt, spec.few_shot.draws))
            texts[id_] = example.text
    rows = [_build_example_prompt(id_, text) for id_, text in texts.items()]
    return build_frame(rows, PROMPTS, ("prompt_id",)), {id_: sorted(numbers) for id_, numbers in samples.items()}


def _build_example_prompt(id_: str, text: str) -> dict[str, object]:
    empty: dict[str, object] = dict.fromkeys(PROMPTS)
    return empty | {"prompt_id": id_, "slice": "examples", "origin": "human", "messages": make_user_messages(text)}


def make_golden_completions(env: StageContext, partition: str | None) -> StageResult:
    """Ask for golden, its first rows one by one to measure the latency of a single request, and then for dev.

    Reads: golden.jsonl, dev.jsonl and prompt_context.
    Writes: COMPLETIONS.
    Asks a teacher: yes.
    Re-runs when: golden_set, prompt_context or teacher_settings changes, or answers are missing.
    """
    inputs = StageInputs(env, "golden_completions", partition)
    inputs.note_source("golden_set")
    prompts = build_held_out_prompts(env.folder.golden, env.folder.dev)
    return _write_completions(inputs, _ask_teachers(inputs, prompts, env.folder.task.evaluation.latency_items))


def make_teacher_completions(env: StageContext, partition: str | None) -> StageResult:
    """Ask every teacher for every sample of the prompts of one slice.

    Reads: seed_prompts, prompt_context and teacher_gate.
    Writes: COMPLETIONS.
    Asks a teacher: yes, once the gate is passed.
    Re-runs when: one of these or teacher_settings changes, or answers are missing.
    """
    inputs = StageInputs(env, "teacher_completions", partition)
    require_passed_gate(inputs)
    prompts = inputs.read_table("seed_prompts", PROMPTS, partition)
    return _write_completions(inputs, _ask_teachers(inputs, prompts))


def _ask_teachers(inputs: StageInputs, prompts: pl.DataFrame, sequential: int = 0) -> AskResult:
    """Ask the teachers of the task for a stage."""
    inputs.note_source("teacher_settings")

    def ask(name: str, task: Task, asked: pl.DataFrame) -> AskResult:
        examples = read_example_pool(inputs.read_table("prompt_context", PROMPT_CONTEXT))
        with inputs.env.endpoint(task.teacher) as endpoint:
            return run_ask(_build_asker(inputs, endpoint, task, examples, name), asked, sequential=sequential)

    return ask_in_turn(inputs.env.folder, prompts, ask)


def ask_in_turn(
    folder: TaskFolder, prompts: pl.DataFrame, ask: Callable[[str, Task, pl.DataFrame], AskResult]
) -> AskResult:
    """Ask every teacher of a task; in a cascade the next one only where the one before is unsure.

    Args:
        ask: asks one teacher: its name, the task as if it were its only one, and the prompts.
    """
    remaining, results = prompts, list[AskResult]()
    for name, task in folder.task.list_teachers():
        asked = select_known_prompts(folder, name, remaining)
        if not asked.height and (results or remaining.height):
            continue  # a teacher without prompts is not started
        results.append(ask(name, task, asked))
        if folder.task.cascade is not None:
            remaining = find_unsure_prompts(task, folder.task.cascade, remaining, results[-1].completions)
    return merge_results(results)


def _build_asker(
    inputs: StageInputs, endpoint: Endpoint, task: Task, examples: list[FewShotExample], name: str | None = None
) -> Asker:
    env = inputs.env
    templates = build_answer_templates(env.folder, task)
    embed = make_sentence_embedder(task.teacher, env.models)
    if task.teacher.is_replay:
        endpoint = replace(endpoint, recorded=load_replay_teacher(env.folder, task.teacher))
    origin = f"{env.task_name}/{format_artifact_name(inputs.asset, inputs.partition)}"
    requests = RequestBuilder(task, templates, examples, endpoint, embed)
    return Asker(requests, env.store, inputs.account, name, origin)


def _write_completions(inputs: StageInputs, result: AskResult) -> StageResult:
    frame = result.completions
    cost = float(frame["cost_usd"].sum()) if frame["cost_usd"].null_count() == 0 and frame.height else None
    task = inputs.env.folder.task
    checks = [
        *check_terms(*task.teacher_specs),
        check_table(inputs.asset, frame),
        check_missing_rows(result),
    ]
    record = inputs.write_table(frame, checks, result.missing_rows, result.usage, cost_usd=cost)
    shown: dict[str, DisplayValue] = {"rows": frame.height, "missing_rows": result.missing_rows}
    shown |= result.usage.build_metadata()
    shown |= {
        "prompt_tokens": int(frame["prompt_tokens"].sum() or 0),
        "completion_tokens": int(frame["completion_tokens"].sum() or 0),
        "cost_usd": "unknown" if cost is None else cost,
        "median_latency_s": round(float(frame["latency_s"].median() or 0.0), 4),  # type: ignore[arg-type]
        "terms": "; ".join(dict.fromkeys(find_terms(spec).summary for spec in task.teacher_specs)),
        "sample": sample_rows(frame, ["prompt_id", "sample_index", "status", "answer", "raw_text"]),
    }
    if task.teachers:
        shown["teachers"] = _count_by_teacher(frame)
    return StageResult(record, shown, checks)


def _count_by_teacher(frame: pl.DataFrame) -> SampleTable:
    """Rows, tokens and cost of each teacher."""
    counts = frame.group_by("teacher", maintain_order=True).agg(
        pl.col("prompt_id").n_unique().alias("prompts"),
        pl.len().alias("rows"),
        (pl.col("status") == "ok").sum().alias("ok"),
        pl.col("prompt_tokens").sum(),
        pl.col("completion_tokens").sum(),
        pl.when(pl.col("cost_usd").null_count() == 0).then(pl.col("cost_usd").sum()).alias("cost_usd"),
    )
    return SampleTable(counts.to_dicts())


def check_missing_rows(result: AskResult) -> CheckResult:
    """A warning where a prompt has no answer yet, with the most common errors."""
    failed = result.completions.filter(pl.col("error").is_not_null())
    errors = failed["error"].value_counts(sort=True).head(5)
    details = {"missing_rows": result.missing_rows, "errors": "; ".join(f"{n} × {e}" for e, n in errors.iter_rows())}
    return CheckResult("no_missing_rows", result.missing_rows == 0, "warning", details)
