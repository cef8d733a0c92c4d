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

    If samples have soft labels, these are averaged as `choose_label_candidates` does, and the answer is the likeliest
    label that a sample gave, so that the reasoning belongs to it.

    Args:
        prior: for labels that follow a reasoning: their votes or soft labels are divided by it (schema TEACHER_PRIOR).

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
    has_soft_labels = any(sample["soft_labels"] is not None for sample in usable)
    if (weights is not None or has_soft_labels) and not any(is_refusal(answer) for answer in answers):
        vote, confidence = _choose_by_weight(kind.task.label_names, answers, usable, weights or {})
    chosen = usable[vote.index]
    soft_labels = [{"label": kind.format_answer(answer), "prob": round(share, 6)} for answer, share in vote.votes]
    return out | {
        "answer": chosen["answer"],
        "reasoning": chosen["reasoning"],
        "agreement": round(vote.agreement, 6),
        "confidence": round(confidence, 6),
        "soft_labels": soft_labels if (len(usable) > 1 or has_soft_labels) and soft_labels else None,
    }


def _choose_by_weight(
    names: list[str], labels: list[str], samples: list[dict[str, Any]], weights: dict[tuple[int, str], float]
) -> tuple[MajorityVote, float]:
    """The likeliest of the labels that the samples gave, and its share of all weight. On a tie the first one wins.

    The weight of a label is the sum of its votes, each multiplied by its weight. The vote of a sample with soft labels
    is divided among the labels as they say. The agreement is the share of the samples that name the label.

    Args:
        names: all labels of the task.
        labels: the label that each sample names.
        samples: the rows of the samples.
        weights: by sample index and label; what is missing counts as under a uniform prior.
    """
    mass = dict.fromkeys(names, 0.0)
    are_votes = all(sample["soft_labels"] is None for sample in samples)
    for label, sample in zip(labels, samples, strict=True):
        soft = {entry["label"]: entry["prob"] for entry in sample["soft_labels"] or []} or {label: 1.0}
        index = sample["sample_index"]
        votes = {name: share * weights.get((index, name), float(len(names))) for name, share in soft.items()}
        # A single vote divided by its prior is still one vote, so the sum of the votes is divided.
        whole = 1.0 if are_votes else sum(votes.values())
        for name, vote in votes.items():
            mass[name] += vote / whole
    total = sum(mass.values())
    shares = {name: weight / total for name, weight in mass.items() if weight}
    best = max(dict.fromkeys(name for name in names if name in labels), key=lambda name: shares[name])
    ranked = sorted(shares.items(), key=lambda vote: -vote[1])
    return MajorityVote(labels.index(best), labels.count(best) / len(labels), tuple(ranked)), shares[best]
