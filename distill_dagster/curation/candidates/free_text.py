"""Candidates of written answers: choose one of several samples under the equality of the kind."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from distill_dagster.curation.candidates.priors import compute_vote_weights
from distill_dagster.kinds import Kind, MajorityVote, is_refusal
from distill_dagster.tables.messages import get_user_text
from distill_dagster.tables.schemas import SCORED, build_frame

_COPIED_COLUMNS = ("prompt_id", "slice", "origin", "messages", "target_label", "reference")


def choose_free_text_candidates(
    kind: Kind, prompts: pl.DataFrame, completions: pl.DataFrame, prior: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Choose one candidate per prompt, with the reasoning of the sample that it comes from.

    The most frequent answer among usable samples wins, or the medoid of free texts (see `kinds`). `agreement` is the
    share of equal samples, or the medoid's mean similarity to the others. `confidence` equals it unless votes are
    weighted. It is 1 for a single sample, which says nothing about how sure the teacher is. `soft_labels` has the share
    of each answer by its text.

    Args:
        prior: for labels that follow a reasoning: their votes are divided by it (schema TEACHER_PRIOR).

    Returns:
        Schema SCORED, one row per prompt.
    """
    weights = compute_vote_weights(prior) if prior is not None else None
    samples: dict[str, list[dict[str, Any]]] = {}
    for row in completions.sort("prompt_id", "sample_index").iter_rows(named=True):
        samples.setdefault(row["prompt_id"], []).append(row)
    rows = [
        {name: prompt[name] for name in _COPIED_COLUMNS}
        | _choose_candidate(kind, prompt, samples.get(prompt["prompt_id"], []), weights)
        for prompt in prompts.iter_rows(named=True)
    ]
    empty = dict.fromkeys(SCORED)
    return build_frame([empty | row for row in rows], SCORED, ("prompt_id",))


def _choose_candidate(
    kind: Kind, prompt: dict[str, Any], samples: list[dict[str, Any]], weights: dict[tuple[int, str], float] | None
) -> dict[str, Any]:
    """The columns of one prompt's candidate that come from its samples."""
    usable = [sample for sample in samples if sample["status"] == "ok" and sample["answer"] is not None]
    ok = (sample for sample in samples if sample["status"] == "ok")
    first = usable[0] if usable else next(ok, samples[0] if samples else None)
    errors = (sample["error"] for sample in samples if sample["error"] is not None)
    out: dict[str, Any] = {
        "teacher": first["teacher"] if first else None,
        "status": first["status"] if first else None,
        "error": next(errors, None) if not usable else None,
        "reasoning": first["reasoning"] if first else None,
        "completion_ids": [sample["completion_id"] for sample in samples] or None,
        "answer_kind": kind.answer_kind,
        "words": len(get_user_text(prompt["messages"]).split()),
    }
    if not usable:
        return out
    answers = [json.loads(sample["answer"]) for sample in usable]
    vote = kind.choose_candidate(answers)
    confidence = vote.agreement
    if weights is not None and not any(is_refusal(answer) for answer in answers):
        indices = [sample["sample_index"] for sample in usable]
        vote, confidence = _choose_by_weight(kind.task.label_names, answers, indices, weights)
    chosen = usable[vote.index]
    soft_labels = [{"label": kind.format_answer(answer), "prob": round(share, 6)} for answer, share in vote.votes]
    return out | {
        "answer": chosen["answer"],
        "reasoning": chosen["reasoning"],
        "agreement": round(vote.agreement, 6),
        "confidence": round(confidence, 6),
        "soft_labels": soft_labels if len(usable) > 1 and soft_labels else None,
    }


def _choose_by_weight(
    names: list[str], labels: list[str], samples: list[int], weights: dict[tuple[int, str], float]
) -> tuple[MajorityVote, float]:
    """The label with the largest weight of votes, and its share of all weight. On a tie the first in the task wins.

    The agreement is the share of the samples that name the label, without weights.

    Args:
        names: all labels of the task.
        labels: the label that each sample names.
        samples: the index of each sample.
    """
    mass = dict.fromkeys(names, 0.0)
    for label, sample in zip(labels, samples, strict=True):
        mass[label] += weights.get((sample, label), float(len(names)))
    total = sum(mass.values())
    votes = sorted(((label, weight / total) for label, weight in mass.items() if weight), key=lambda vote: -vote[1])
    best, share = votes[0]
    return MajorityVote(labels.index(best), labels.count(best) / len(labels), tuple(votes)), share
