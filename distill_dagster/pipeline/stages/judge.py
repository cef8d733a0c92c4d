"""Within the stage scored_completions: the judge's verdicts on the candidates of a slice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import polars as pl

from distill_dagster.config import Task
from distill_dagster.core.checks import CheckResult
from distill_dagster.pipeline.stages.context import DisplayValue, StageContext, StageInputs
from distill_dagster.prompts.auxiliary_templates import JUDGE_TEMPLATES, select_templates
from distill_dagster.teacher.judge.judge import Judge, JudgeResult, get_judge_teacher, judge_candidates
from distill_dagster.teacher.providers.terms import find_terms


def judge_slice(
    env: StageContext, inputs: StageInputs, candidates: pl.DataFrame, completions: pl.DataFrame
) -> JudgeResult | None:
    """The candidates with their verdicts; None where the task has no judge."""
    task = env.folder.task
    if task.judge is None:
        return None
    inputs.note_source("judge_settings")
    with env.endpoint(get_judge_teacher(task)) as endpoint:
        judge_ = Judge(task, select_templates(env.folder.templates(), JUDGE_TEMPLATES), endpoint.identity)
        return judge_candidates(judge_, candidates, completions, endpoint, env.store, inputs.account)


def build_judge_record(found: JudgeResult | None) -> dict[str, Any]:
    """What the record of scored_completions keeps of the asking."""
    if found is None:
        return {}
    return {
        "teacher_calls": found.calls,
        "teacher_calls_cached": found.cached,
        "spent_usd": found.spent_usd,
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "model_s": found.seconds,
    }


def check_all_judged(found: JudgeResult | None) -> CheckResult:
    """A warning where a verdict is missing: one that never came is asked for next time."""
    if found is None:
        return CheckResult("all_judged", True, "warning", {"judge": "none"})
    said = found.candidates["judge_error"].drop_nulls().to_list()
    errors = "; ".join(f"{n} × {e}" for e, n in Counter(said).most_common(5))
    counts = {"asked": found.asked, "without_an_answer": found.failed, "of_another_form": found.malformed}
    return CheckResult("all_judged", not (found.failed or found.malformed), "warning", counts | {"errors": errors})


def build_judge_metadata(task: Task, found: JudgeResult | None) -> dict[str, DisplayValue]:
    """What a person should see of it."""
    if found is None:
        return {}
    terms: dict[str, DisplayValue] = {"terms": find_terms(get_judge_teacher(task)).summary} if found.asked else {}
    mean = found.candidates["judge_score"].mean()
    return terms | {
        "judged": found.asked,
        "mean_judge_score": round(float(mean), 4) if isinstance(mean, float) else "none",
        "teacher_calls": found.calls,
        "teacher_calls_cached": found.cached,
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "spent_usd": "unknown" if found.spent_usd is None else found.spent_usd,
    }
