"""Data versions of the user's files: what a change of them means, not what their bytes are."""

from __future__ import annotations

from collections.abc import Iterator

from distill_dagster.core.errors import InputError
from distill_dagster.core.hashing import hash_content
from distill_dagster.pipeline.stage_table import ALL_SOURCES, OPTIONAL_SOURCES
from distill_dagster.prompts.auxiliary_templates import (
    IMAGINE_TEMPLATES,
    JUDGE_TEMPLATES,
    select_answer_templates,
    select_templates,
)
from distill_dagster.tasks import LabelledRow, TaskFolder
from distill_dagster.teacher.providers.replay import recorded_version


def _hash_rows(rows: list[LabelledRow]) -> list[str]:
    return sorted(hash_content(row.said()) for row in rows)


def compute_source_version(folder: TaskFolder, source: str, partition: str | None = None) -> str:
    """The data version of one source.

    Raises:
        InputError: the file is malformed; nothing that was made from it before is touched.
    """
    task = folder.task
    match source:
        case "slice_files":
            assert partition is not None
            return folder.slice(partition).content_version()
        case "slice_manifest":
            return hash_content(folder.slice_keys())
        case "golden_set":
            return hash_content({"golden": _hash_rows(folder.golden), "dev": _hash_rows(folder.dev)})
        case "human_examples":
            return hash_content({"examples": _hash_rows(folder.examples), "human": _hash_rows(folder.human)})
        case "teacher_settings":
            settings, recorded = (
                task.teacher_hash(select_answer_templates(folder.templates())),
                recorded_version(folder),
            )
            return hash_content([settings, recorded]) if recorded is not None else settings
        case "imagine_settings":
            return task.imagine_hash(select_templates(folder.templates(), IMAGINE_TEMPLATES))
        case "judge_settings":
            return task.judge_hash(select_templates(folder.templates(), JUDGE_TEMPLATES))
        case "score_settings":
            return task.score_hash()
        case "curation_settings":
            return task.curation_hash()
        case "gate_settings":
            return task.gate_hash()
        case "evaluation_settings":
            return task.evaluation_hash()
        case "student_settings":
            assert partition is not None
            return task.student_hash(partition)
    raise KeyError(f"{source} is not one of {', '.join(ALL_SOURCES)}")


def list_optional_sources(folder: TaskFolder) -> list[str]:
    """The optional sources that a task has: those whose part stands in its task.yaml, and needed scores."""
    task = folder.task
    parts = {"imagine_settings": task.imagine, "score_settings": task.scorers, "judge_settings": task.judge}
    return [name for name, part in parts.items() if part]


def iter_source_versions(folder: TaskFolder, students: list[str]) -> Iterator[tuple[str, str | None, str | InputError]]:
    """Every source by name and partition, with its data version, or with what is wrong in its file."""
    absent = set(OPTIONAL_SOURCES) - set(list_optional_sources(folder))
    for source in [source for name, source in ALL_SOURCES.items() if name not in absent]:
        partitions: list[str | None] = [None]
        if source.partition is not None:
            partitions = list(folder.slice_keys() if source.partition == "slice" else students)
        for partition in partitions:
            try:
                yield source.name, partition, compute_source_version(folder, source.name, partition)
            except InputError as error:
                yield source.name, partition, error


def has_slices_as_labels(folder: TaskFolder) -> bool:
    """Whether every slice of the user is named like a label: then a slice could be taken for the answer.

    A slice that only came through the inbox, such as `unsorted`, does not count: it must not change the graph.
    """
    names = {"".join(c for c in label.casefold() if c.isalnum()) for label in folder.task.label_names}
    keys = ["".join(c for c in key if c.isalnum()) for key in folder.written_slices()]
    return bool(keys) and all(key in names for key in keys)


def find_label_of_slice(folder: TaskFolder, key: str) -> str | None:
    """The label that a slice is named like, where `slices_are_labels`; None for a slice of the inbox."""
    plain = "".join(c for c in key if c.isalnum())
    names = folder.task.label_names
    return next((x for x in names if "".join(c for c in x.casefold() if c.isalnum()) == plain), None)
