"""The stage `judged_pairs`: whose answer to a golden item the judge prefers, the student's or the teacher's."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import polars as pl

from distill_dagster.core.checks import CheckResult
from distill_dagster.core.hashing import hash_content
from distill_dagster.evaluation.metrics import DISTILLED, TEACHER
from distill_dagster.evaluation.metrics.win_rate import compute_win_rate
from distill_dagster.kinds import get_kind
from distill_dagster.pipeline.stages.context import DisplayValue, StageContext, StageInputs, StageResult, sample_rows
from distill_dagster.prompts.seeds import build_messages
from distill_dagster.prompts.templates import JUDGE_TEMPLATES, select_templates
from distill_dagster.tables.schemas import JUDGED_PAIRS, PREDICTIONS, build_frame
from distill_dagster.tables.validation import check_table
from distill_dagster.teacher.completions.usage import Usage
from distill_dagster.teacher.judge.pairs import AnswerPair, PairResult, compare_pairs
from distill_dagster.teacher.judge.requests import Judge, get_judge_teacher
from distill_dagster.teacher.providers.terms import find_terms


def make_judged_pairs(env: StageContext, partition: str | None) -> StageResult:
    """Ask the judge about the answers of student and teacher, in both orders.

    Reads: predictions, golden.jsonl.
    Writes: JUDGED_PAIRS.
    Asks a teacher: the judge, twice for each of `evaluation.judged_items` items.
    Re-runs when: the predictions, the judge's settings or the number of items change.
    """
    assert partition is not None
    inputs = StageInputs(env, "judged_pairs", partition)
    for source in ("golden_set", "judge_settings", "win_rate_settings"):
        inputs.note_source(source)
    task, spec = env.folder.task, env.folder.task.evaluation
    assert spec.judged_items is not None
    predictions = inputs.read_table("predictions", PREDICTIONS, partition)
    kind, messages = get_kind(task), {row.id: build_messages(row) for row in env.folder.golden}
    rows: list[dict[str, Any]] = []
    pairs: list[AnswerPair] = []
    # A row that left golden after the predictions has no text to show.
    for item in _select_items(predictions.filter(pl.col("item_id").is_in(list(messages))), spec.judged_items):
        first, second = item[DISTILLED], item[TEACHER]
        plain = {"item_id": item["item_id"], "slice": item["slice"], "first": DISTILLED, "second": TEACHER}
        decided_by, winner = "judge", None
        if first is None or second is None:
            decided_by, winner = "missing", DISTILLED if first is not None else TEACHER if second is not None else None
        elif first == second or kind.are_equal(json.loads(first), json.loads(second)):
            decided_by = "equal"
        else:
            pair = AnswerPair(messages[item["item_id"]], first, second)
            pairs += [pair, pair.swap()]
        rows += [
            plain | {"shown_first": shown, "winner": winner, "decided_by": decided_by} for shown in (DISTILLED, TEACHER)
        ]
    result = PairResult([], 0, Usage())
    if pairs:
        own_templates = select_templates(env.folder.read_templates(), JUDGE_TEMPLATES)
        with env.endpoint(get_judge_teacher(task)) as endpoint:
            judge = Judge(task, own_templates, endpoint.identity)
            result = compare_pairs(judge, pairs, endpoint, env.store, inputs.account)
    asked = [row for row in rows if row["decided_by"] == "judge"]
    for row, choice in zip(asked, result.choices, strict=True):
        other = TEACHER if row["shown_first"] == DISTILLED else DISTILLED
        row["winner"] = None if choice.best is None else (row["shown_first"], other)[choice.best]
        row["judge"], row["error"] = get_judge_teacher(task).model, choice.error
        row["reason"] = choice.reasons["best"] if choice.reasons else None
    empty: dict[str, Any] = dict.fromkeys(JUDGED_PAIRS)
    frame = build_frame([empty | row for row in rows], JUDGED_PAIRS, ("item_id", "shown_first"))
    checks = [check_table("judged_pairs", frame), check_all_compared(frame, result.failed)]
    record = inputs.write_table(frame, checks, result.failed, result.usage)
    win_rate = compute_win_rate(frame, spec)
    shown: dict[str, DisplayValue] = {
        "items": frame["item_id"].n_unique(),
        "asked": len(asked),
        "wins": win_rate.wins,
        "ties": win_rate.ties,
        "losses": win_rate.losses,
        **({} if win_rate.rate.value is None else {"win_rate": win_rate.rate.value}),
        **({} if win_rate.flip_rate is None else {"flip_rate": win_rate.flip_rate}),
        **({"terms": find_terms(get_judge_teacher(task)).summary} if asked else {}),
        **result.usage.build_metadata(),
        "sample": sample_rows(frame, ["item_id", "shown_first", "winner", "decided_by", "reason"], 6),
    }
    return StageResult(record, shown, checks)


def _select_items(predictions: pl.DataFrame, most: int) -> list[dict[str, Any]]:
    """Golden items with rows of student and teacher, and both answers; the order of a hash is as good as random."""
    golden = predictions.filter(pl.col("split") == "golden")
    answers = [
        golden.filter(pl.col("system") == system).select("item_id", "slice", pl.col("answer").alias(system))
        for system in (DISTILLED, TEACHER)
    ]
    items = answers[0].join(answers[1].drop("slice"), on="item_id").to_dicts()
    return sorted(items, key=lambda item: hash_content(item["item_id"]))[:most]


def check_all_compared(frame: pl.DataFrame, failed: int) -> CheckResult:
    """Warn if the judge made no choice for some pairs. The next run asks again for those without an answer."""
    errors = Counter(frame["error"].drop_nulls().to_list())
    details = {
        "without_an_answer": failed,
        "of_another_form": sum(errors.values()) - failed,
        "errors": "; ".join(f"{count} × {error}" for error, count in errors.most_common(5)),
    }
    return CheckResult("all_compared", not errors, "warning", details)
