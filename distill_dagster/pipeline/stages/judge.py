"""The judge's part of the stage scored_completions: ask it, check its results, and describe them."""

from __future__ import annotations

from collections import Counter

import polars as pl

from distill_dagster.config import Task
from distill_dagster.core.checks import CheckResult
from distill_dagster.pipeline.stages.context import DisplayValue, StageInputs
from distill_dagster.prompts.templates import JUDGE_TEMPLATES, select_templates
from distill_dagster.teacher.judge.ask import JudgeResult, judge_candidates
from distill_dagster.teacher.judge.requests import Judge, get_judge_teacher
from distill_dagster.teacher.providers.terms import find_terms


def judge_slice(inputs: StageInputs, candidates: pl.DataFrame, completions: pl.DataFrame) -> JudgeResult | None:
    """Ask the judge about the candidates of a slice; None for a task without a judge."""
    env, task = inputs.env, inputs.env.folder.task
    if task.judge is None:
        return None
    inputs.note_source("judge_settings")
    own_templates = select_templates(env.folder.read_templates(), JUDGE_TEMPLATES)
    with env.endpoint(get_judge_teacher(task)) as endpoint:
        judge = Judge(task, own_templates, endpoint.identity)
        return judge_candidates(judge, candidates, completions, endpoint, env.store, inputs.account)


def check_all_judged(result: JudgeResult | None) -> CheckResult:
    """Warn if rows have no score. The next run asks again for those without an answer of the judge."""
    if result is None:
        return CheckResult("all_judged", True, "warning", {"judge": "none"})
    errors = Counter(result.candidates["judge_error"].drop_nulls().to_list())
    details = {
        "asked": result.asked,
        "without_an_answer": result.failed,
        "of_another_form": result.malformed,
        "errors": "; ".join(f"{count} × {error}" for error, count in errors.most_common(5)),
    }
    return CheckResult("all_judged", not (result.failed or result.malformed), "warning", details)


def build_judge_metadata(task: Task, result: JudgeResult | None) -> dict[str, DisplayValue]:
    """Build what the user interface shows of the judge."""
    if result is None:
        return {}
    terms: dict[str, DisplayValue] = {"terms": find_terms(get_judge_teacher(task)).summary} if result.asked else {}
    mean = result.candidates["judge_score"].mean()
    shown: dict[str, DisplayValue] = {
        "judged": result.asked,
        "mean_judge_score": round(float(mean), 4) if isinstance(mean, float) else "none",
    }
    return terms | shown | result.usage.build_metadata()
