"""Candidates of written answers: which of several samples stands for a prompt, under the kind's own equality."""

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
    """One scored row per prompt, with the reasoning of the very sample whose answer is the candidate.

    The answer that most usable samples equal wins, and of free texts the medoid (`kinds`); `agreement` is the share of
    equal samples, or the medoid's mean likeness to the others, and `confidence` is the same: 1 for a lone sample, which
    says nothing of how sure it is. The shares of several answers are kept as soft labels by the answer's text.

    Args:
        prior: of labels named behind reasoning: their votes are divided by it, as in `candidates`.
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
    usable = [s for s in samples if s["status"] == "ok" and s["answer"] is not None]
    first = usable[0] if usable else next((s for s in samples if s["status"] == "ok"), samples[0] if samples else None)
    out: dict[str, Any] = {
        "teacher": first["teacher"] if first else None,
        "status": first["status"] if first else None,
        "error": next((s["error"] for s in samples if s["error"] is not None), None) if not usable else None,
        "reasoning": first["reasoning"] if first else None,
        "completion_ids": [s["completion_id"] for s in samples] or None,
        "answer_kind": kind.answer_kind,
        "words": len(get_user_text(prompt["messages"]).split()),
    }
    if not usable:
        return out
    answers = [json.loads(s["answer"]) for s in usable]
    choice = kind.choose_candidate(answers)
    confidence = choice.agreement
    if weights is not None and not any(is_refusal(answer) for answer in answers):
        choice, confidence = _choose_by_weight(kind, answers, [s["sample_index"] for s in usable], weights)
    chosen = usable[choice.index]
    votes = [{"label": kind.format_answer(a), "prob": round(share, 6)} for a, share in choice.votes] if len(usable) > 1 else []
    return out | {
        "answer": chosen["answer"],
        "reasoning": chosen["reasoning"],
        "agreement": round(choice.agreement, 6),
        "confidence": round(confidence, 6),
        "soft_labels": votes or None,
    }


def _choose_by_weight(
    kind: Kind, labels: list[str], samples: list[int], weights: dict[tuple[int, str], float]
) -> tuple[MajorityVote, float]:
    """The label whose weighed votes are most, of equals the first in the task, and its share of them.

    Its agreement is the share of the samples that name it, whatever their votes weigh.
    """
    names = kind.task.label_names
    mass = dict.fromkeys(names, 0.0)
    for label, sample in zip(labels, samples, strict=True):
        mass[label] += weights.get((sample, label), float(len(names)))
    total = sum(mass.values())
    votes = sorted(((label, weight / total) for label, weight in mass.items() if weight), key=lambda vote: -vote[1])
    best, share = votes[0]
    return MajorityVote(labels.index(best), labels.count(best) / len(labels), tuple(votes)), share
