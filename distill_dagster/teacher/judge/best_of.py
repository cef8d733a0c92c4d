"""Mode `best_of`: find prompts whose samples differ, and put the judge's choice in place of the candidate."""

from __future__ import annotations

import json
from collections.abc import Callable

import polars as pl

from distill_dagster.core.hashing import hash_content
from distill_dagster.kinds import Kind
from distill_dagster.kinds.base import find_majority

SAMPLE_ORDER = ("prompt_id", "sample_index", "teacher")


def find_differing_answers(kind: Kind, completions: pl.DataFrame) -> dict[str, list[str]]:
    """Find the different answers of each prompt whose usable samples differ under the kind's equality.

    The first of several equal answers represents them. The order is that of a hash, so that it reveals neither which
    sample gave an answer nor how many did.

    Returns:
        By prompt id, two or more answers as canonical JSON texts.
    """
    answers: dict[str, list[str]] = {}
    for prompt_id, answer in _select_usable(completions).select("prompt_id", "answer").iter_rows():
        answers.setdefault(prompt_id, []).append(answer)
    differing: dict[str, list[str]] = {}
    for prompt_id, texts in answers.items():
        groups = find_majority(list(dict.fromkeys(texts)), _make_equality(kind)).votes
        if len(groups) > 1:
            options = (answer for answer, _ in groups)
            differing[prompt_id] = sorted(options, key=lambda answer: hash_content([prompt_id, answer]))
    return differing


def apply_choices(
    kind: Kind, candidates: pl.DataFrame, completions: pl.DataFrame, choices: dict[str, str]
) -> pl.DataFrame:
    """Replace the answers of candidates by the judge's choices, with every column that depends on the answer.

    Args:
        completions: the samples of the candidates.
        choices: the chosen answer by prompt id, as canonical JSON text.
    """
    are_equal = _make_equality(kind)
    teacher_counts = dict(completions.group_by("prompt_id").agg(pl.col("teacher").n_unique()).iter_rows())
    samples: dict[str, list[tuple[str, str | None, str]]] = {}
    columns = ("prompt_id", "answer", "reasoning", "teacher")
    for prompt_id, answer, reasoning, teacher in _select_usable(completions).select(columns).iter_rows():
        samples.setdefault(prompt_id, []).append((answer, reasoning, teacher))
    rows = []
    for row in candidates.iter_rows(named=True):
        choice = choices.get(row["prompt_id"])
        if choice is not None and not are_equal(choice, row["answer"]):
            every = samples[row["prompt_id"]]
            chosen = [sample for sample in every if are_equal(sample[0], choice)]
            teachers = {teacher for *_, teacher in chosen}
            several_teachers = row["teacher_agreement"] is not None
            probs = {entry["label"]: entry["prob"] for entry in row["soft_labels"] or []}
            confidence = max(probs.get(kind.format_answer(json.loads(answer)), 0.0) for answer, *_ in chosen)
            row |= {
                "answer": choice,
                "agreement": len(chosen) / len(every),
                "confidence": confidence if probs else row["confidence"],
                "reasoning": next((reasoning for _, reasoning, _ in chosen if reasoning is not None), None),
                "teacher": row["teacher"] if row["teacher"] in teachers else chosen[0][2],
                "teacher_agreement": (len(teachers) / teacher_counts[row["prompt_id"]] if several_teachers else None),
            }
        rows.append(row)
    return pl.DataFrame(rows, schema=candidates.schema)


def _make_equality(kind: Kind) -> Callable[[str, str], bool]:
    """Make the kind's equality for answers given as canonical JSON texts."""
    return lambda first, second: first == second or kind.are_equal(json.loads(first), json.loads(second))


def _select_usable(completions: pl.DataFrame) -> pl.DataFrame:
    usable = (pl.col("status") == "ok") & pl.col("answer").is_not_null()
    return completions.filter(usable).sort(*SAMPLE_ORDER)
