"""What each system of a report is called, for readers who have never heard of distillation."""

from __future__ import annotations

from distill_dagster.evaluation.metrics import (
    ASSISTANT,
    BASE,
    CENTROID,
    DISTILLED,
    LINEAR_PROBE,
    SEED_ONLY,
    SLICE_LABEL,
    TEACHER,
)

SYSTEM_MEANINGS = {
    TEACHER: "the large model whose answers the student learns from",
    ASSISTANT: "a student of the teacher, whose answers the student learns from",
    BASE: "the student's model before any training",
    SEED_ONLY: "the student trained on your labelled examples alone, without the teacher",
    DISTILLED: "the student trained on the teacher's answers",
    CENTROID: "no training at all: the label whose examples are nearest in meaning",
    SLICE_LABEL: "the student trained on the names of the slices, without the teacher",
    LINEAR_PROBE: "a logistic regression on frozen sentence embeddings, trained on the teacher's answers",
}
"""What each system is, for a reader who sees its name for the first time."""
SYSTEM_TITLES = {
    TEACHER: "teacher",
    ASSISTANT: "assistant",
    BASE: "untrained",
    SEED_ONLY: "human labels only",
    DISTILLED: "distilled",
    LINEAR_PROBE: "linear probe",
    CENTROID: "class centroid",
    SLICE_LABEL: "slice names",
}
"""A short name of each system for a reader who has never heard of distillation."""
SYSTEM_NAMES = {
    TEACHER: "the teacher",
    ASSISTANT: "the assistant, a student that teaches this one (assistant)",
    BASE: "the untrained base",
    SEED_ONLY: "the student trained on the human examples alone (seed_only)",
    DISTILLED: "the distilled student",
    CENTROID: "the class centroid of the examples' embeddings (centroid)",
    SLICE_LABEL: "the student trained on slice names (slice_label)",
    LINEAR_PROBE: "the linear probe, a logistic regression on frozen sentence embeddings (linear_probe)",
}
"""Each system as a sentence names it."""


def describe_system(name: str) -> str:
    """A system's name with what it is."""
    meaning = SYSTEM_MEANINGS.get(name)
    return f"{name} ({meaning})" if meaning else name
