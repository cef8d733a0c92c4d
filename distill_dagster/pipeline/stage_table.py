"""The stages and what each is made from: one table for the Dagster graph, for `distill status` and for the records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Partition = Literal["slice", "student"] | None


@dataclass(frozen=True)
class Source:
    """A part of the user's files, observed by content."""

    name: str
    partition: Partition
    description: str


@dataclass(frozen=True)
class Stage:
    """One asset. `code_version` is kept by hand: raise it only where results change."""

    name: str
    partition: Partition
    upstream: tuple[str, ...]
    code_version: str
    kinds: tuple[str, ...]
    description: str


SOURCES = {
    s.name: s
    for s in (
        Source(
            "slice_files",
            "slice",
            "The user's slices/<slice>.yaml: description, seed prompts, target; and prompts accepted from the inbox. "
            "Its data version is the hash of the parsed content, not of bytes.",
        ),
        Source("slice_manifest", None, "The names of all slices: a removed slice leaves the dataset."),
        Source("golden_set", None, "golden.jsonl and dev.jsonl: human-labelled rows, never trained on."),
        Source("human_examples", None, "examples.jsonl and human.jsonl: human-labelled rows that may be learned from."),
        Source("teacher_settings", None, "The part of task.yaml, and the templates, that shape a teacher request."),
        Source("curation_settings", None, "The part of task.yaml that filters, removes duplicates and splits."),
        Source("gate_settings", None, "`gate:` in task.yaml, and the student that the teacher is compared with."),
        Source("evaluation_settings", None, "The part of task.yaml that the report reads."),
        Source("student_settings", "student", "The part of task.yaml that one student reads."),
    )
}

OPTIONAL_SOURCES = {
    s.name: s
    for s in (
        Source("imagine_settings", None, "`imagine:` in task.yaml, and its templates: how new prompts are imagined."),
        Source(
            "score_settings", None, "Which scores the filters of task.yaml read, by name and version; no threshold."
        ),
        Source("judge_settings", None, "`judge:` in task.yaml, and its templates: the rubric and who judges."),
    )
}
"""Sources of tasks that have that part in their task.yaml."""
OPTIONAL_UPSTREAM = {
    "imagine_settings": ("seed_prompts", ("teacher_gate", "imagine_settings")),
    "score_settings": ("scored_completions", ("score_settings",)),
    "judge_settings": ("scored_completions", ("judge_settings",)),
}
"""What a stage is made from beside, in a task that has the source: imagining is paid for, and waits for the gate."""
ALL_SOURCES = SOURCES | OPTIONAL_SOURCES

STAGES = {
    s.name: s
    for s in (
        Stage(
            "prompt_context",
            None,
            ("human_examples", "golden_set"),
            "1",
            ("polars", "parquet"),
            "What every teacher prompt shares: the pool of few-shot examples, without repeats and without rows equal "
            "to golden or dev. Also all that `seed_only` learns from.",
        ),
        Stage(
            "teacher_prior",
            None,
            ("prompt_context", "teacher_settings"),
            "1",
            ("litellm", "polars"),
            "The teacher's mean answer to examples left out of each draw: its prejudice, by which soft labels are "
            "divided (contextual calibration, Zhao et al. 2021).",
        ),
        Stage(
            "golden_completions",
            None,
            ("golden_set", "prompt_context", "teacher_settings"),
            "1",
            ("litellm", "polars"),
            "The teacher's answers on golden and dev, asked once for all students and before any slice is paid for.",
        ),
        Stage(
            "teacher_gate",
            None,
            ("golden_completions", "teacher_prior", "golden_set", "teacher_settings", "gate_settings"),
            "1",
            ("polars", "parquet"),
            "The teacher against `gate.teacher_min` and against the untrained student, on dev: stands before every "
            "slice that is paid for. Its data version is the same whenever it is passed, so that slices stay as they "
            "are where golden or dev change.",
        ),
        Stage(
            "seed_prompts",
            "slice",
            ("slice_files", "teacher_settings"),
            "1",
            ("polars", "parquet"),
            "The prompts of one slice, as the teacher and the student will see them: the user's, those of the inbox, "
            "and where the slice has a `target` those that the teacher imagined.",
        ),
        Stage(
            "teacher_completions",
            "slice",
            ("seed_prompts", "prompt_context", "teacher_gate", "teacher_settings"),
            "1",
            ("litellm", "polars"),
            "Every sample of the teacher for the prompts of one slice: answer, soft labels, tokens, cost.",
        ),
        Stage(
            "scored_completions",
            "slice",
            ("seed_prompts", "teacher_completions", "teacher_prior"),
            "2",
            ("polars",),
            "One row per prompt: the candidate answer over all samples, with its scores. No thresholds.",
        ),
        Stage(
            "filtered_dataset",
            None,
            ("scored_completions", "slice_manifest", "golden_set", "human_examples", "curation_settings"),
            "3",
            ("duckdb", "polars"),
            "What the student learns from: filters, leaks of golden or dev, duplicates, caps, and the split, over all "
            "slices. Beside it the rejected rows, each with one drop reason.",
        ),
        Stage(
            "seed_only_adapter",
            "student",
            ("prompt_context", "student_settings"),
            "1",
            ("pytorch", "huggingface"),
            "The comparison: the same student trained on the human examples alone.",
        ),
        Stage(
            "student_adapter",
            "student",
            ("filtered_dataset", "student_settings"),
            "1",
            ("pytorch", "huggingface"),
            "The distilled student: a LoRA adapter trained on the filtered dataset, with its training log.",
        ),
        Stage(
            "slice_label_adapter",
            "student",
            ("filtered_dataset", "student_settings"),
            "1",
            ("pytorch", "huggingface"),
            "Where slices are labels: the same student trained on the seeds with their slice's label, no teacher.",
        ),
        Stage(
            "predictions",
            "student",
            (
                "student_adapter",
                "seed_only_adapter",
                "filtered_dataset",
                "prompt_context",
                "golden_set",
                "golden_completions",
                "teacher_prior",
                "student_settings",
            ),
            "1",
            ("polars", "parquet"),
            "Every system's answer to every golden, dev and validation item.",
        ),
        Stage(
            "eval_report",
            "student",
            ("predictions", "evaluation_settings"),
            "1",
            ("html",),
            "Metrics with intervals, the verdict in words, and one HTML file that opens offline.",
        ),
    )
}


REFRESHES_ASSET = "refreshes"
"""The asset that has an event for every refresh."""
MERGING_STAGE = "filtered_dataset"
"""Where slices flow together: a slice that fails gives its last good rows, or none, and holds up no other."""


def get_slices_partitions_name(task: str) -> str:
    """The name of a task's dynamic partitions: the graph declares it, and the command line fills it."""
    return f"{task}_slices"


def list_stages(slices_are_labels: bool, optional: Iterable[str] = ()) -> dict[str, Stage]:
    """One task's stages.

    `slice_label_adapter` exists, and `predictions` reads it, only where slices are labels; `optional` are the
    `OPTIONAL_SOURCES` that the task has.
    """
    stages = dict(STAGES)
    for source in optional:
        name, upstream = OPTIONAL_UPSTREAM[source]
        stages[name] = replace(stages[name], upstream=(*stages[name].upstream, *upstream))
    extra = stages.pop("slice_label_adapter")
    if not slices_are_labels:
        return stages
    predictions = stages["predictions"]
    upstream = (*predictions.upstream, extra.name)
    changed = Stage(
        "predictions", "student", upstream, predictions.code_version, predictions.kinds, predictions.description
    )
    return {
        **{n: s for n, s in stages.items() if n not in ("predictions", "eval_report")},
        extra.name: extra,
        "predictions": changed,
        "eval_report": stages["eval_report"],
    }
