"""Data versions of the user's files. They are hashes of parsed content, so comments and white space do not count."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from distill_dagster.config import Task
from distill_dagster.core.errors import InputError, Problem
from distill_dagster.core.hashing import hash_content
from distill_dagster.curation.filters import collect_task_scorers, list_filter_hash_fields
from distill_dagster.curation.scores import get_scorer_versions
from distill_dagster.pipeline.model_terms import list_model_terms
from distill_dagster.pipeline.stage_table import SOURCES, Feature, list_sources
from distill_dagster.prompts.templates import (
    IMAGINE_TEMPLATES,
    JUDGE_TEMPLATES,
    select_answer_templates,
    select_templates,
)
from distill_dagster.tasks import LabelledRow, TaskFolder
from distill_dagster.tasks.kept_datasets import compute_kept_version
from distill_dagster.teacher.providers.replay import compute_recorded_version


def _hash_rows(rows: list[LabelledRow]) -> list[str]:
    return sorted(hash_content(row.get_hashed_fields()) for row in rows)


def hash_answer_settings(task: Task) -> str:
    """Hash of the settings that define what an answer is. Stored scores are valid while it does not change."""
    return hash_content(task.dump_answer_settings())


def hash_score_settings(task: Task) -> str:
    """Hash of the scores that are computed and of their versions. It does not change with a threshold."""
    return hash_content(get_scorer_versions(collect_task_scorers(task)))


def hash_curation_settings(task: Task) -> str:
    """Hash of everything that decides which candidates become rows of the dataset."""
    # A field that is left out at its default keeps the datasets that were cut before it existed fresh.
    unset = {"mix_human"} if task.curation.mix_human else set[str]()
    unset |= {"rescale_soft_labels"} if task.curation.rescale_soft_labels == "none" else set()
    curation = task.curation.model_dump(exclude={"filters", *unset})
    # A label's description changes what is asked, not which rows are kept.
    return hash_content(
        task.dump_answer_settings()
        | {
            "labels": task.label_names,
            "curation": curation,
            "filters": list_filter_hash_fields(task),
            "scorers": get_scorer_versions(collect_task_scorers(task)),  # people's answers are scored with the dataset
        }
    )


def compute_source_version(folder: TaskFolder, source: str, partition: str | None = None) -> str:
    """The data version of one source.

    Raises:
        InputError: the file is malformed. Nothing that was made from it before changes.
    """
    task = folder.task
    match source:
        case "slice_files":
            assert partition is not None
            return folder.compute_slice_version(partition)
        case "slice_manifest":
            return hash_content(folder.list_slice_keys())
        case "golden_set":
            return hash_content({"golden": _hash_rows(folder.golden), "dev": _hash_rows(folder.dev)})
        case "human_examples":
            return hash_content({"examples": _hash_rows(folder.examples), "human": _hash_rows(folder.human)})
        case "kept_datasets":
            kept = {name: compute_kept_version(folder.path, name) for name in task.list_replayed_datasets()}
            return hash_content(kept)
        case "teacher_settings":
            settings = task.hash_teacher_settings(select_answer_templates(folder.read_templates()))
            recorded = compute_recorded_version(folder)
            return hash_content([settings, recorded]) if recorded is not None else settings
        case "imagine_settings":
            return task.hash_imagine_settings(select_templates(folder.read_templates(), IMAGINE_TEMPLATES))
        case "judge_settings":
            return task.hash_judge_settings(select_templates(folder.read_templates(), JUDGE_TEMPLATES))
        case "win_rate_settings":
            return task.hash_win_rate_settings()
        case "score_settings":
            return hash_score_settings(task)
        case "curation_settings":
            return hash_curation_settings(task)
        case "gate_settings":
            return task.hash_gate_settings()
        case "evaluation_settings":
            # The report quotes the terms.
            return hash_content([task.hash_evaluation_settings(), list_model_terms(task)])
        case "release_settings":
            return task.hash_release_settings()
        case "student_settings":
            assert partition is not None
            if partition not in task.students:  # a name typed in the UI
                known = f"Known: {', '.join(task.students)}."
                raise InputError([Problem(folder.path / "task.yaml", f"there is no student {partition!r}.", known)])
            return task.hash_student_settings(partition)
    raise KeyError(f"{source} is not one of {', '.join(SOURCES)}")


def has_feature(folder: TaskFolder, feature: Feature) -> bool:
    """Whether a task has a feature, which adds sources, inputs or a stage to its graph."""
    match feature:
        case "imagine":
            return folder.task.imagine is not None
        case "judge":
            return folder.task.judge is not None
        case "win_rate":
            return folder.task.evaluation.judged_items is not None
        case "scores":
            return bool(collect_task_scorers(folder.task))
        case "slice_labels":
            return has_slices_as_labels(folder)
        case "rescaling":
            return folder.task.curation.rescale_soft_labels != "none"
        case "preference":
            return any(student.has_preference_phase for student in folder.task.students.values())
        case "replay":
            return bool(folder.task.list_replayed_datasets())
        case "assistants":
            return bool(folder.task.list_assistants())


def list_features(folder: TaskFolder) -> set[Feature]:
    """All features of a task."""
    return {feature for feature in get_args(Feature) if has_feature(folder, feature)}


def iter_source_versions(folder: TaskFolder, students: list[str]) -> Iterator[tuple[str, str | None, str | InputError]]:
    """Yield each source's name and partition with its data version, or with the error of its malformed file."""
    for source in list_sources(list_features(folder)).values():
        partitions: list[str | None] = [None]
        if source.partition is not None:
            partitions = list(folder.list_slice_keys() if source.partition == "slice" else students)
        for partition in partitions:
            try:
                yield source.name, partition, compute_source_version(folder, source.name, partition)
            except InputError as error:
                yield source.name, partition, error


def has_slices_as_labels(folder: TaskFolder) -> bool:
    """Whether every slice of the user is named like a label, so that the slice itself could be the answer.

    A slice without a file of the user, such as the inbox's `unsorted`, does not count: it must not change the graph.
    """
    labels = {_fold_name(label) for label in folder.task.label_names}
    keys = [_fold_name(key) for key in folder.list_written_slice_keys()]
    return bool(keys) and all(key in labels for key in keys)


def find_label_of_slice(folder: TaskFolder, key: str) -> str | None:
    """The label that a slice is named like, in a task with the feature `slice_labels`; None for an inbox slice."""
    return next((label for label in folder.task.label_names if _fold_name(label) == _fold_name(key)), None)


def _fold_name(name: str) -> str:
    """A name in lower case, letters and digits only."""
    return "".join(character for character in name.casefold() if character.isalnum())
