"""The stages and what each is made from: one table for the Dagster graph, `distill status` and the records."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal

Partition = Literal["slice", "student", "assistant"] | None
"""What an artifact is partitioned by. An assistant is a student that teaches another one."""
Feature = Literal[
    "imagine", "judge", "win_rate", "scores", "slice_labels", "rescaling", "preference", "assistants", "replay"
]
"""A part of a task that adds sources, inputs or a stage to its graph.

`imagine` and `judge` are the blocks of that name in task.yaml. `win_rate`: the judge compares answers to golden items.
`scores`: its filters read scores. `slice_labels`: every
slice is named like a label. `rescaling`: the dataset rescales soft labels by a temperature fitted on dev. `preference`:
a student has a preference phase. `assistants`: a student learns from another student.
`replay`: a student replays rows of an earlier dataset.
"""


@dataclass(frozen=True)
class Source:
    """A part of the user's files, observed by content. Only tasks with its `feature` have it."""

    name: str
    partition: Partition
    description: str
    feature: Feature | None = None


@dataclass(frozen=True)
class Stage:
    """One asset. `code_version` is kept by hand: raise it only where results change."""

    name: str
    partition: Partition
    upstream: tuple[str, ...]
    code_version: str
    kinds: tuple[str, ...]
    description: str
    after: tuple[str, ...] = ()
    """Stages that it waits for although it does not read them, so that a failure is known before it costs anything."""
    purpose: str | None = None
    """What the ledger books its teacher calls under; None for a stage that asks no teacher."""
    feature: Feature | None = None
    """Only tasks with this feature have the stage."""
    feature_upstream: Mapping[Feature, tuple[str, ...]] = field(default_factory=dict, hash=False)
    """Further inputs in tasks with a feature."""
    merges_slices: bool = False
    """It reads the last good version of every slice that was made, so a slice that fails delays no other."""
    reads_rejected_rows: bool = False
    """It also reads the rejected rows next to the dataset, which can change while the dataset stays the same."""
    is_explicit: bool = False
    """Only a command of its own, or a person in the UI, runs it: no `distill run` and no refresh."""

    def list_upstream(self, features: Collection[Feature]) -> tuple[str, ...]:
        """The sources and stages that it reads in a task with these features."""
        further = (names for feature, names in self.feature_upstream.items() if feature in features)
        return (*self.upstream, *chain.from_iterable(further))


SOURCES = {
    source.name: source
    for source in (
        Source(
            "slice_files",
            "slice",
            "The user's slices/<slice>.yaml (description, seed prompts, target), and prompts accepted from the inbox. "
            "Its data version is the hash of the parsed content, not of the bytes.",
        ),
        Source("slice_manifest", None, "The names of all slices: a removed slice leaves the dataset."),
        Source("golden_set", None, "golden.jsonl and dev.jsonl: human-labelled rows, never trained on."),
        Source("human_examples", None, "examples.jsonl and human.jsonl: human-labelled rows to learn from."),
        Source("teacher_settings", None, "The part of task.yaml, and the templates, that determine a teacher request."),
        Source("curation_settings", None, "The part of task.yaml that filters, removes duplicates and splits."),
        Source("gate_settings", None, "`gate:` in task.yaml, and the student that the teacher is compared with."),
        Source("evaluation_settings", None, "The part of task.yaml that the report reads."),
        Source("student_settings", "student", "The part of task.yaml that one student reads."),
        Source("release_settings", None, "`release:` and `routing:` in task.yaml: gate, formats, and the router."),
        Source(
            "imagine_settings",
            None,
            "`imagine:` in task.yaml, and its templates: how new prompts are imagined.",
            feature="imagine",
        ),
        Source(
            "score_settings",
            None,
            "The scores that the filters of task.yaml read, by name and version, without thresholds.",
            feature="scores",
        ),
        Source(
            "kept_datasets",
            None,
            "The earlier datasets in datasets/ of the task folder that students replay rows of.",
            feature="replay",
        ),
        Source(
            "judge_settings",
            None,
            "`judge:` in task.yaml, and its templates: the rubric and the model that judges.",
            feature="judge",
        ),
        Source(
            "win_rate_settings",
            None,
            "`evaluation.judged_items` in task.yaml: how many golden items the judge compares answers to.",
            feature="win_rate",
        ),
    )
}

STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "prompt_context",
            None,
            ("human_examples", "golden_set"),
            "2",
            ("polars", "parquet"),
            "The pool of few-shot examples that all teacher prompts share, without duplicates and without rows that "
            "repeat golden or dev. `seed_only` learns from these rows alone.",
        ),
        Stage(
            "teacher_prior",
            None,
            ("prompt_context", "teacher_settings"),
            "2",
            ("litellm", "polars"),
            "The teacher's mean answer to examples left out of each draw. It measures the teacher's bias; soft labels "
            "are divided by it (contextual calibration, Zhao et al. 2021).",
            purpose="prior",
        ),
        Stage(
            "golden_completions",
            None,
            ("golden_set", "prompt_context", "teacher_settings"),
            "2",
            ("litellm", "polars"),
            "The teacher's answers to golden and dev, asked once for all students, before any slice is paid for.",
            purpose="golden",
        ),
        Stage(
            "teacher_gate",
            None,
            ("golden_completions", "teacher_prior", "golden_set", "teacher_settings", "gate_settings"),
            "1",
            ("polars", "parquet"),
            "Compares the teacher with `gate.teacher_min` and with the untrained student on dev, before any slice is "
            "paid for. Every passed gate has the same data version, so slices stay fresh when golden or dev change.",
        ),
        Stage(
            "seed_prompts",
            "slice",
            ("slice_files", "teacher_settings"),
            "2",
            ("polars", "parquet"),
            "The prompts of one slice, as the teacher and the student see them: the user's, those from the inbox and, "
            "for a slice with a `target`, those that the teacher imagined.",
            purpose="imagine",
            # Imagining is paid for, and waits for the gate.
            feature_upstream={"imagine": ("teacher_gate", "imagine_settings")},
        ),
        Stage(
            "teacher_completions",
            "slice",
            ("seed_prompts", "prompt_context", "teacher_gate", "teacher_settings"),
            "2",
            ("litellm", "polars"),
            "Every sample of the teacher for the prompts of one slice: answer, soft labels, tokens, cost.",
            purpose="slices",
        ),
        Stage(
            "scored_completions",
            "slice",
            ("seed_prompts", "teacher_completions", "teacher_prior"),
            "4",
            ("polars",),
            "One row per prompt: the candidate answer over all samples, with its scores. No thresholds.",
            purpose="judge",
            feature_upstream={"scores": ("score_settings",), "judge": ("judge_settings",)},
        ),
        Stage(
            "filtered_dataset",
            None,
            ("scored_completions", "slice_manifest", "golden_set", "human_examples", "curation_settings"),
            "6",
            ("duckdb", "polars"),
            "What the student learns from: all slices after filters, leak removal, deduplication, caps and the split. "
            "The rejected rows are stored next to it, each with one drop reason.",
            feature_upstream={"rescaling": ("golden_completions", "teacher_prior")},
            merges_slices=True,
        ),
        Stage(
            "preference_pairs",
            None,
            ("filtered_dataset", "teacher_completions", "slice_manifest", "curation_settings"),
            "2",
            ("polars", "parquet"),
            "Only if a student has a preference phase: for each training row, the answers of other samples or teachers "
            "that lost against its own.",
            feature="preference",
            feature_upstream={"judge": ("judge_settings",)},
            merges_slices=True,
        ),
        Stage(
            "replay_rows",
            None,
            ("kept_datasets", "filtered_dataset", "golden_set", "curation_settings"),
            "2",
            ("polars", "parquet"),
            "Only if a student replays an earlier dataset: the training rows of that dataset that the dataset of today "
            "does not have, without those that repeat golden or dev.",
            feature="replay",
        ),
        Stage(
            "seed_only_adapter",
            "student",
            ("prompt_context", "student_settings"),
            "3",
            ("pytorch", "huggingface"),
            "The baseline: the same student trained on the human examples alone.",
            after=("teacher_gate",),
        ),
        Stage(
            "assistant_adapter",
            "assistant",
            ("filtered_dataset", "student_settings"),
            "2",
            ("pytorch", "huggingface"),
            "Only for students that teach another one: the student trained on the filtered dataset. Its "
            "student_adapter is the same.",
            feature="assistants",
            feature_upstream={"preference": ("preference_pairs",), "replay": ("replay_rows",)},
        ),
        Stage(
            "assistant_labels",
            "assistant",
            ("assistant_adapter", "filtered_dataset", "student_settings"),
            "1",
            ("polars", "parquet"),
            "Only for students that teach another one: the filtered dataset with this student's answers instead of the "
            "teacher's. Answers of people stay.",
            feature="assistants",
        ),
        Stage(
            "student_adapter",
            "student",
            ("filtered_dataset", "student_settings"),
            "3",
            ("pytorch", "huggingface"),
            "The distilled student: a LoRA adapter trained on the filtered dataset, with its training log.",
            feature_upstream={
                "preference": ("preference_pairs",),
                "replay": ("replay_rows",),
                "assistants": ("assistant_adapter", "assistant_labels"),
            },
        ),
        Stage(
            "slice_label_adapter",
            "student",
            ("filtered_dataset", "student_settings"),
            "3",
            ("pytorch", "huggingface"),
            "Only if every slice is named like a label: the same student trained on the seeds with their slice's "
            "label, without a teacher.",
            feature="slice_labels",
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
            "5",
            ("polars", "parquet"),
            "Every system's answer to every golden, dev and validation item.",
            feature_upstream={"slice_labels": ("slice_label_adapter",), "assistants": ("assistant_adapter",)},
        ),
        Stage(
            "judged_pairs",
            "student",
            ("predictions", "golden_set", "judge_settings", "win_rate_settings"),
            "1",
            ("litellm", "polars"),
            "Only with `evaluation.judged_items`: whose answer to a golden item the judge prefers, the student's or "
            "the teacher's, asked in both orders.",
            purpose="judge",
            feature="win_rate",
        ),
        Stage(
            "eval_report",
            "student",
            ("predictions", "filtered_dataset", "student_adapter", "golden_set", "evaluation_settings"),
            "5",
            ("html",),
            "Metrics with intervals, the recommendation in words, and one HTML file that opens offline.",
            reads_rejected_rows=True,
            feature_upstream={"win_rate": ("judged_pairs",)},
        ),
        Stage(
            "release",
            "student",
            (
                "student_adapter",
                "predictions",
                "eval_report",
                "filtered_dataset",
                "golden_set",
                "student_settings",
                "release_settings",
            ),
            "1",
            ("huggingface",),
            "A numbered folder with the student in formats that other programs load, behind the gate of `release.gate`."
            " Only `distill release`, or a person, makes one.",
            is_explicit=True,
        ),
    )
}


REFRESHES_ASSET = "refreshes"
"""The asset that has an event for every refresh."""
REJECTED_ROWS = "rejected_rows"
"""The table next to the dataset with the rows that it leaves out, stored like a partition of the dataset."""
MERGING_STAGE = "filtered_dataset"
"""The stage that merges all slices. A slice that fails gives its last good rows, or none, and delays no other slice."""


def get_slices_partitions_name(task: str) -> str:
    """The name of a task's dynamic partitions: the graph declares it, and the command line fills it."""
    return f"{task}_slices"


def get_students_partitions_name(task: str) -> str:
    """The name of the dynamic partitions with those students of a task that somebody asked for."""
    return f"{task}_students"


def get_job_name(task: str, partition: Partition) -> str:
    """The name of the job that runs a task's stages of one kind of partition: slices, students, or neither."""
    return f"{task}_{'shared' if partition is None else f'{partition}s'}"


def get_stage_job_name(task: str, stage: Stage) -> str:
    """The name of the job that runs a stage: one of its own for a stage that only a command of its own runs."""
    return f"{task}_{stage.name}" if stage.is_explicit else get_job_name(task, stage.partition)


def list_sources(features: Collection[Feature] = ()) -> dict[str, Source]:
    """The sources of a task with these features, by name."""
    return {name: s for name, s in SOURCES.items() if s.feature is None or s.feature in features}


def list_stages(features: Collection[Feature] = ()) -> dict[str, Stage]:
    """The stages of a task with these features by name, in topological order, each with all its inputs."""
    return {
        name: replace(stage, upstream=stage.list_upstream(features))
        for name, stage in STAGES.items()
        if stage.feature is None or stage.feature in features
    }
