"""Ask the judge about the candidates of one slice.

Every answer of the judge is stored by its request key, like a completion, so none is paid for twice. An answer that
does not fit the declared form is asked for once more, as another sample.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import polars as pl

from distill_dagster.core.errors import TeacherError
from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.teacher.completions.ask_all import ask_all, require_success
from distill_dagster.teacher.completions.engine import CompletionEngine
from distill_dagster.teacher.completions.ledger import Account
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.completions.usage import Usage
from distill_dagster.teacher.judge.best_of import apply_choices, find_differing_answers
from distill_dagster.teacher.judge.requests import JUDGE_ATTEMPTS, Judge, JudgeScore
from distill_dagster.teacher.providers import event_loop
from distill_dagster.teacher.providers.client import Endpoint

Item = TypeVar("Item")


@dataclass(frozen=True)
class JudgeResult:
    """The candidates with the columns of the judge, and what the asking took.

    `asked` counts the rows that the judge was asked about. `failed` of them have no answer yet, and asking again may
    return one. `malformed` of them have only answers that do not fit the declared form.
    """

    candidates: pl.DataFrame
    asked: int
    failed: int
    malformed: int
    usage: Usage


def judge_candidates(
    judge: Judge,
    candidates: pl.DataFrame,
    completions: pl.DataFrame,
    endpoint: Endpoint,
    store: CompletionStore,
    account: Account | None = None,
) -> JudgeResult:
    """Ask the judge about the candidates of one slice.

    A budget stop is no failure: rows that were not asked count as `failed`, and the next run asks for them.

    Args:
        candidates: scored rows. Rows without an answer are not shown to the judge.
        completions: the samples of the candidates.

    Raises:
        TeacherError: the judge refuses every request, or fewer than `min_success` of the rows have an answer.
    """
    return event_loop.run_in_loop(_judge_async(judge, candidates, completions, endpoint, store, account))


async def _judge_async(
    judge: Judge,
    candidates: pl.DataFrame,
    completions: pl.DataFrame,
    endpoint: Endpoint,
    store: CompletionStore,
    account: Account | None,
) -> JudgeResult:
    engine = CompletionEngine(endpoint, judge.teacher, store, account)
    answered = candidates.filter((pl.col("status") == "ok") & pl.col("answer").is_not_null())
    rows = list(answered.iter_rows(named=True))
    options: dict[str, list[str]] = {}
    if judge.spec.mode == "best_of":
        options = find_differing_answers(judge.kind, completions)
        rows = [row for row in rows if row["prompt_id"] in options]

    async def judge_row(row: dict[str, Any]) -> JudgeScore:
        return await ask_judge(engine, judge, row, options.get(row["prompt_id"]))

    found, usage = await ask_about_all(engine, judge, rows, judge_row, "rows", "asking the judge")
    scores = {row["prompt_id"]: score for row, score in zip(rows, found, strict=True)}
    choices = {id_: options[id_][score.best] for id_, score in scores.items() if score.best is not None}
    if choices:
        candidates = apply_choices(judge.kind, candidates, completions, choices)
    return JudgeResult(
        _add_judge_columns(candidates, scores, judge.spec.model),
        asked=len(rows),
        failed=sum(score.failed for score in found),
        malformed=sum(score.error is not None and not score.failed for score in scores.values()),
        usage=usage,
    )


async def ask_about_all(
    engine: CompletionEngine,
    judge: Judge,
    items: Sequence[Item],
    ask: Callable[[Item], Awaitable[JudgeScore]],
    name: str,
    what: str,
) -> tuple[list[JudgeScore], Usage]:
    """Ask the judge about each item, and close the engine. An item without an answer has a score with `failed`.

    Args:
        name: what the items are called in an error.
        what: what progress reports say.

    Raises:
        TeacherError: the judge refuses every request, or fewer than `min_success` of the items have an answer.
    """
    started = time.perf_counter()
    try:
        results = await ask_all(engine, items, ask, report=partial(engine.report_progress, what))
    finally:
        await engine.close()
    errors = [result for result in results if isinstance(result, TeacherError)]
    require_success(
        engine,
        len(items) - len(errors),
        len(items),
        judge.spec.min_success,
        items=name,
        setting="judge.min_success",
        first_error=next(iter(errors), None),
    )
    scores = [
        JudgeScore(error=str(result), failed=True) if isinstance(result, TeacherError) else result for result in results
    ]
    return scores, engine.build_usage(time.perf_counter() - started)


async def ask_judge(
    engine: CompletionEngine, judge: Judge, row: dict[str, Any], options: list[str] | None
) -> JudgeScore:
    """Ask the judge about one row, or for a choice among `options`, once more if its answer does not fit the form.

    Raises:
        TeacherError: the judge gave no answer.
    """
    for sample in range(JUDGE_ATTEMPTS):
        response = await engine.answer(judge.build_request(row, options, sample))
        if score := judge.read_score(response.text, len(options) if options else None):
            return score
    return JudgeScore(error=f"{JUDGE_ATTEMPTS} answers of the judge do not fit the declared form")


def _add_judge_columns(candidates: pl.DataFrame, scores: dict[str, JudgeScore], model: str) -> pl.DataFrame:
    columns: dict[str, list[Any]] = {name: [] for name in candidates.columns if name.startswith("judge")}
    for prompt_id in candidates["prompt_id"]:
        score = scores.get(prompt_id, JudgeScore())
        columns["judge"].append(model if prompt_id in scores else None)
        columns["judge_score"].append(score.mean_score)
        columns["judge_scores"].append(to_canonical_json(score.scores) if score.scores else None)
        columns["judge_reasons"].append(to_canonical_json(score.reasons) if score.reasons else None)
        columns["judge_error"].append(score.error)
    return candidates.with_columns(pl.Series(name, v, candidates.schema[name]) for name, v in columns.items())
