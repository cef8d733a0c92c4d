"""Check a whole task folder for `distill check`, without running anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill_dagster.config import Task
from distill_dagster.core.errors import InputError, Problem
from distill_dagster.core.files import make_symlink_problem
from distill_dagster.core.text import normalize_text
from distill_dagster.curation.filters import find_filter_problems
from distill_dagster.pipeline.teacher_check import find_model_problems, find_thinking_notes
from distill_dagster.prompts.templates import AUXILIARY_TEMPLATES, find_template_problems, get_template_names
from distill_dagster.tasks.accepted import find_accepted_problems, list_accepted_slices
from distill_dagster.tasks.folder import TaskFolder, find_slice_file_problem, list_slice_files
from distill_dagster.tasks.imagined import find_imagined_problems, get_imagined_path, list_shipped_files
from distill_dagster.tasks.kept_datasets import compute_kept_version
from distill_dagster.tasks.reading import (
    DEV_FILE,
    EXAMPLES_FILE,
    GOLDEN_FILE,
    HUMAN_FILE,
    TASK_FILE,
    find_example_problems,
    read_rows,
    read_shipped_prompts,
    read_slice,
    read_task,
)
from distill_dagster.tasks.rows import LabelledRow
from distill_dagster.tasks.yaml_files import find_line, read_yaml
from distill_dagster.teacher.providers.replay import compute_recorded_version
from distill_dagster.teacher.providers.terms import check_terms


def check_task_folder(folder: TaskFolder) -> list[Problem]:
    """All problems in a task folder, errors and warnings. Nothing is run and no teacher is asked."""
    result = read_task(folder.path)
    if result.value is None:
        return result.problems
    task, path = result.value, folder.path / TASK_FILE
    problems = [*result.problems, *find_filter_problems(path, task), *_find_terms_problems(path, task)]
    problems += [*find_model_problems(path, task), *find_thinking_notes(path, task)]
    slice_problems, seeds = _check_slices(folder.path, folder.accepted, task)
    problems += [*_find_unknown_slices(path, task, folder.list_slice_keys())]
    problems += [*slice_problems, *find_accepted_problems(folder.accepted), *find_imagined_problems(folder.accepted)]
    row_problems, held_out = _check_rows(folder.path, task)
    problems += [*row_problems, *_find_repeated_seeds(seeds, held_out)]
    try:
        compute_recorded_version(folder)
        for name in task.list_replayed_datasets():
            compute_kept_version(folder.path, name)
        for name, text in folder.read_templates().items():
            problems += _find_template_problems(folder.path / "templates" / f"{name}.j2", text, task)
    except InputError as error:
        problems += [problem for problem in error.problems if problem not in problems]
    return problems


def _find_terms_problems(path: Path, task: Task) -> list[Problem]:
    """An error if a teacher's terms restrict training and the task does not acknowledge it; a warning if unknown."""
    several: list[tuple[str, ...]] = [("teachers", name) for name in task.teachers]
    problems = []
    for place, spec in zip(several or [("teacher",)], task.teacher_specs, strict=True):
        failed = [check for check in check_terms(spec) if not check.passed]
        location = (*place, "terms" if "terms" in spec.model_fields_set else "model")
        line = find_line(read_yaml(path, [])[1], location) if failed else None
        field = ".".join([*place, "terms"])
        problems += [
            Problem(path, check.details["terms"], check.details["remedy"], line, field, check.severity)
            for check in failed
        ]
    return problems


def _check_slices(path: Path, accepted: Path | None, task: Task) -> tuple[list[Problem], dict[str, list[Path]]]:
    """The problems in all slice files and shipped prompts, and the files of each prompt by its normalized text."""
    problems: list[Problem] = []
    seeds: dict[str, list[Path]] = {}
    files = list_slice_files(path)
    try:
        imported = list_accepted_slices(accepted)
    except InputError:  # `find_accepted_problems` names it
        imported = []
    if (path / "slices").is_symlink():
        problems.append(make_symlink_problem(path / "slices"))
    elif not files and not imported:
        remedy = (
            "Add slices/<slice>.yaml with a description and seeds, or import prompts: "
            f"`distill import {path.name} FILE --as seeds`."
        )
        problems.append(Problem(path / "slices", "the task has no slice.", remedy))
    names: dict[str, str] = {}
    for file in files:
        if problem := find_slice_file_problem(path, file):
            problems.append(problem)
            continue
        if twin := names.get(file.stem.casefold()):
            problems.append(Problem(file, f"differs from {twin} only in case.", "Rename one of them."))
        names[file.stem.casefold()] = file.name
        shipped = read_shipped_prompts(get_imagined_path(path, file.stem), task)
        problems += shipped.problems
        result = read_slice(file, task, has_more=file.stem in imported or bool(shipped.value))
        problems += result.problems
        for seed in result.value.seeds if result.value and not result.problems else []:
            seeds.setdefault(normalize_text(seed.text), []).append(file)
        for prompt in shipped.value or []:
            seeds.setdefault(normalize_text(prompt.text), []).append(get_imagined_path(path, file.stem))
    problems += _find_shipped_without_slice(path, {*imported, *(file.stem for file in files)})
    return problems, seeds


def _find_unknown_slices(path: Path, task: Task, keys: list[str]) -> Iterator[Problem]:
    """Names of slices that a student weighs and that do not exist, so that the weight would have no effect."""
    for name, student in task.students.items():
        for key in sorted(student.data.slice_weights.keys() - set(keys)):
            location = ("students", name, "data", "slice_weights", key)
            line, remedy = find_line(read_yaml(path, [])[1], location), f"Known: {', '.join(keys)}."
            yield Problem(path, f"there is no slice {key!r}.", remedy, line, ".".join(location))


def _find_shipped_without_slice(path: Path, keys: set[str]) -> list[Problem]:
    """Files of imagined prompts that belong to no slice, so that nothing reads them."""
    remedy = "Add slices/{key}.yaml with a description, or rename the file to that of its slice."
    return [
        Problem(file, "there is no slice of this name.", remedy.format(key=file.stem))
        for file in list_shipped_files(path)
        if file.stem not in keys
    ]


def _check_rows(path: Path, task: Task) -> tuple[list[Problem], dict[str, str]]:
    """The problems in all JSONL files, and the row of each golden or dev text by the normalized text."""
    problems: list[Problem] = []
    held_out: dict[str, str] = {}
    examples: list[LabelledRow] = []
    for name in (GOLDEN_FILE, DEV_FILE, EXAMPLES_FILE, HUMAN_FILE):
        if name == HUMAN_FILE and not (path / HUMAN_FILE).exists():
            continue
        result = read_rows(path / name, task, labelled=True)
        problems += result.problems
        rows = result.value or []
        if name == EXAMPLES_FILE:
            examples = rows
        for row in rows:
            key = normalize_text(row.text)
            twin = held_out.get(key)
            if name in (GOLDEN_FILE, DEV_FILE):
                held_out.setdefault(key, f"{name} row {row.id}")
            if twin is not None and not twin.startswith(name):  # duplicates within one file are fine
                remedy = "It is not used as an example. Remove it here."
                if name == DEV_FILE:
                    remedy = "Choices are made on dev and must not depend on golden. Remove it here."
                message = f"row {row.id} has the text of {twin}."
                problems.append(Problem(path / name, message, remedy, severity="warning"))
    if not any(p.file == path / EXAMPLES_FILE and p.severity == "error" for p in problems):
        # With broken lines, too few examples would only be the same mistake again.
        problems += find_example_problems(path, task, examples)
    return problems, held_out


def _find_repeated_seeds(seeds: dict[str, list[Path]], held_out: dict[str, str]) -> list[Problem]:
    problems = []
    for key, files in seeds.items():
        if twin := held_out.get(key):
            remedy = "It is not used for training: it is dropped as `contaminated`."
            problems.append(Problem(files[0], f"a prompt has the text of {twin}.", remedy, severity="warning"))
        elif len(files) > 1:
            message = f"the task has the prompt {key[:40]!r} {len(files)} times."
            problems.append(Problem(files[1], message, "All but one are dropped as `duplicate`.", severity="warning"))
    return problems


def _find_template_problems(path: Path, text: str, task: Task) -> list[Problem]:
    used = {spec.has_stated_soft_labels: None for spec in task.teacher_specs}
    names = [name for stated in used for name in get_template_names(task.kind, task.reasoning, stated)]
    problems = find_template_problems(path.stem, text, (*names, *AUXILIARY_TEMPLATES))
    return [Problem(path, message, remedy, line=line) for line, message, remedy in problems]
