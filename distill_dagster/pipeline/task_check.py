"""All that is wrong in a task folder, found without running anything."""

from __future__ import annotations

from pathlib import Path

from distill_dagster.config import Task
from distill_dagster.core.errors import InputError, Problem
from distill_dagster.core.files import make_symlink_problem
from distill_dagster.core.text import normalize_text
from distill_dagster.curation.filters import find_filter_problems
from distill_dagster.prompts.templates import AUXILIARY_TEMPLATES, find_template_problems, get_template_names
from distill_dagster.tasks.accepted import find_accepted_problems
from distill_dagster.tasks.folder import TaskFolder, check_slice_file, list_slice_files
from distill_dagster.tasks.imagined import find_imagined_problems
from distill_dagster.tasks.reading import (
    DEV_FILE,
    EXAMPLES_FILE,
    GOLDEN_FILE,
    HUMAN_FILE,
    TASK_FILE,
    check_examples,
    read_rows,
    read_slice,
    read_task,
)
from distill_dagster.tasks.rows import LabelledRow
from distill_dagster.tasks.yaml_files import find_line, read_yaml
from distill_dagster.teacher.providers.replay import recorded_version
from distill_dagster.teacher.providers.terms import check_terms


def check_task_folder(folder: TaskFolder) -> list[Problem]:
    """Everything that is wrong in a task folder, errors and warnings, without running anything."""
    result = read_task(folder.path)
    if result.value is None:
        return result.problems
    task, path = result.value, folder.path / TASK_FILE
    problems = [*result.problems, *find_filter_problems(path, task), *_find_terms_problems(path, task)]
    texts: dict[str, list[tuple[Path, int | None, str]]] = {}
    files = list_slice_files(folder.path)
    if (folder.path / "slices").is_symlink():
        problems.append(make_symlink_problem(folder.path / "slices"))
    elif not files:
        remedy = "Add slices/<slice>.yaml with a description and seeds."
        problems.append(Problem(folder.path / "slices", "the task has no slice.", remedy))
    lower: dict[str, Path] = {}
    for file in files:
        if problem := check_slice_file(folder.path, file):
            problems.append(problem)
            continue
        if twin := lower.get(file.stem.casefold()):
            problems.append(Problem(file, f"differs from {twin.name} in case alone.", "Rename one."))
        lower[file.stem.casefold()] = file
        slice_ = read_slice(file, task)
        problems += slice_.problems
        for seed in slice_.value.seeds if slice_.value and not slice_.problems else []:
            texts.setdefault(normalize_text(seed.text), []).append((file, None, "seed"))
    problems += [*find_accepted_problems(folder.accepted), *find_imagined_problems(folder.accepted)]
    held_out: dict[str, str] = {}
    rows_of: dict[str, list[LabelledRow]] = {}
    for name in (GOLDEN_FILE, DEV_FILE, EXAMPLES_FILE, HUMAN_FILE):
        if name == HUMAN_FILE and not (folder.path / HUMAN_FILE).exists():
            continue
        rows = read_rows(folder.path / name, task, labelled=True)
        problems += rows.problems
        rows_of[name] = rows.value or []
        for row in rows_of[name]:
            twin_row = held_out.get(normalize_text(row.text))
            if name in (GOLDEN_FILE, DEV_FILE):
                held_out.setdefault(normalize_text(row.text), f"{name} row {row.id}")
            if twin_row is not None and not twin_row.startswith(name):  # one file may well hold the same twice
                message = f"row {row.id} has the text of {twin_row}."
                remedy = "It will not be used as an example; better remove it here."
                if name == DEV_FILE:
                    remedy = "Choices made on dev would be made on golden too; remove it here."
                problems.append(Problem(folder.path / name, message, remedy, severity="warning"))
    if not any(p.file == folder.path / EXAMPLES_FILE and p.severity == "error" for p in problems):
        # Counting what is left of a file with broken lines would only name the same mistake again.
        problems += check_examples(folder.path, task, rows_of.get(EXAMPLES_FILE, []))
    problems += _find_repeated_seeds(texts, held_out)
    try:
        recorded_version(folder)
        for name, text in folder.read_templates().items():
            problems += _find_template_problems(folder.path / "templates" / f"{name}.j2", text, task)
    except InputError as error:
        problems += [problem for problem in error.problems if problem not in problems]
    return problems


def _find_terms_problems(path: Path, task: Task) -> list[Problem]:
    """An error where the teacher's terms restrict training and nobody said so, a warning where they are not known."""
    several: list[tuple[str, ...]] = [("teachers", name) for name in task.teachers]
    problems = []
    for place, spec in zip(several or [("teacher",)], task.teacher_specs, strict=True):
        failed = [check for check in check_terms(spec) if not check.passed]
        at = (*place, "terms" if "terms" in spec.model_fields_set else "model")
        line = find_line(read_yaml(path, [])[1], at) if failed else None
        field = ".".join([*place, "terms"])
        problems += [
            Problem(path, check.details["terms"], check.details["remedy"], line, field, check.severity)
            for check in failed
        ]
    return problems


def _find_repeated_seeds(
    texts: dict[str, list[tuple[Path, int | None, str]]], held_out: dict[str, str]
) -> list[Problem]:
    problems = []
    for key, places in texts.items():
        if twin := held_out.get(key):
            remedy = "It is removed as `contaminated` from the training side."
            problems.append(Problem(places[0][0], f"a seed has the text of {twin}.", remedy, severity="warning"))
        elif len(places) > 1:
            remedy = "All but one are removed as `duplicate`."
            message = f"the seed {key[:40]!r} stands {len(places)} times in this task."
            problems.append(Problem(places[1][0], message, remedy, severity="warning"))
    return problems


def _find_template_problems(path: Path, text: str, task: Task) -> list[Problem]:
    names = (*get_template_names(task.kind, task.reasoning), *AUXILIARY_TEMPLATES)
    problems = find_template_problems(path.stem, text, names)
    return [Problem(path, message, remedy, line=line) for line, message, remedy in problems]
