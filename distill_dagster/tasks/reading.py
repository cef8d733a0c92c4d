"""Read and check each file of a task folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from distill_dagster.config import SLICE_KEY_PATTERN, TASK_NAME_PATTERN, Task, TeacherSpec
from distill_dagster.core.errors import InputError, Problem
from distill_dagster.kinds import InvalidAnswerError, Question, get_kind, is_refusal
from distill_dagster.tasks.imagined import ImaginedPrompt, read_shipped
from distill_dagster.tasks.rows import LabelledRow, PromptText, Seed, Slice, SliceFile
from distill_dagster.tasks.unknown_fields import find_close_name
from distill_dagster.tasks.yaml_files import ParseResult, convert_validation_error, find_line, read_text, read_yaml

TASK_FILE = "task.yaml"
EXAMPLES_FILE, DEV_FILE, GOLDEN_FILE, HUMAN_FILE = "examples.jsonl", "dev.jsonl", "golden.jsonl", "human.jsonl"
ImportTarget = Literal["seeds", "examples", "golden", "dev", "human", "recorded"]
"""What `distill import` can turn records into."""


def read_task(folder: Path) -> ParseResult[Task]:
    """Read the task.yaml of a folder."""
    path, problems = folder / TASK_FILE, list[Problem]()
    if not TASK_NAME_PATTERN.fullmatch(folder.name):
        remedy = f"Rename the folder to something that matches {TASK_NAME_PATTERN.pattern}."
        problems.append(Problem(folder, f"{folder.name!r} cannot be a task name.", remedy))
    value, tree = read_yaml(path, problems)
    if problems:
        return ParseResult(None, problems)
    try:
        return ParseResult(Task.model_validate(value if value is not None else {}))
    except ValidationError as error:
        return ParseResult(None, convert_validation_error(path, error, Task, lambda loc: find_line(tree, loc)))


def read_slice(path: Path, task: Task, has_more: bool = False) -> ParseResult[Slice]:
    """Read one slice file, with its references in the canonical form of the kind.

    Args:
        has_more: whether the slice has prompts from the inbox, an import or `imagined/`; then it needs no seed.
    """
    problems: list[Problem] = []
    value, tree = read_yaml(path, problems)
    if problems:
        return ParseResult(None, problems)
    try:
        content = SliceFile.model_validate(value if value is not None else {})
    except ValidationError as error:
        return ParseResult(None, convert_validation_error(path, error, SliceFile, lambda loc: find_line(tree, loc)))
    ids: dict[str, Seed] = {}
    seeds: list[Seed] = []
    if content.refusal and task.has_labels:
        remedy = "Remove it, or add a label for prompts to refuse."
        message = f"kind {task.kind} answers with labels, and a refusal is not a label."
        problems.append(Problem(path, message, remedy, line=find_line(tree, ("refusal",)), field="refusal"))
    if not content.seeds and not has_more:
        remedy = "Add at least one, or import prompts: `distill import … --as seeds --slice`."
        line = find_line(tree, ("seeds",))
        problems.append(Problem(path, "the slice has no prompt.", remedy, line=line, field="seeds"))
    for index, seed in enumerate(content.seeds):
        line = find_line(tree, ("seeds", index))
        problems += _check_label(path, line, f"seeds.{index}.target_label", seed.target_label, task)
        problems += _check_messages(path, line, f"seeds.{index}.messages", seed, task)
        name = f"seeds.{index}.reference"
        if task.has_labels:
            problems += _check_label(path, line, name, seed.reference, task)
        elif seed.reference is not None:
            answer, more = _canonicalize_answer(path, line, name, seed.reference, seed.text, task)
            seed, problems = seed.model_copy(update={"reference": answer}), problems + more
        seeds.append(seed)
        if seed.id is not None and seed.id in ids:
            problems.append(_make_id_problem(path, line, f"seeds.{index}.id", seed.id, ids[seed.id].text == seed.text))
        if seed.id is not None:
            ids.setdefault(seed.id, seed)
    return ParseResult(Slice.model_construct(**dict(content) | {"seeds": seeds}), problems)


def read_shipped_prompts(path: Path, task: Task) -> ParseResult[list[ImaginedPrompt]]:
    """Read the imagined prompts of one slice in the task folder. A missing file has none."""
    try:
        prompts = read_shipped(path)
    except InputError as error:
        return ParseResult(None, list(error.problems))
    problems: list[Problem] = []
    for prompt, line in prompts:
        problems += _check_label(path, line, "target_label", prompt.target_label, task)
    return ParseResult([prompt for prompt, _ in prompts], problems)


def read_rows(path: Path, task: Task, labelled: bool) -> ParseResult[list[LabelledRow]]:
    """Read the rows of a JSONL file. There is a problem for each bad line, not only for the first."""
    problems: list[Problem] = []
    text = read_text(path, problems)
    rows: list[LabelledRow] = []
    ids: dict[str, LabelledRow] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_reject_repeated_fields)
        except json.JSONDecodeError as error:
            remedy = "Write one JSON object on each line."
            problems.append(Problem(path, f"malformed JSON at column {error.colno}: {error.msg}.", remedy, line=number))
            continue
        except (ValueError, RecursionError) as error:  # a duplicate field, a huge number, deep nesting
            reason = str(error).splitlines()[0] if str(error) else "nested too deep"
            remedy = "Fix the line: write each field once, with a plain value."
            problems.append(Problem(path, f"{reason}.", remedy, line=number))
            continue
        try:
            row = LabelledRow.model_validate(value)
        except ValidationError as error:
            problems += convert_validation_error(path, error, LabelledRow, _return_line(number))
            continue
        row, more = _check_row(path, number, row, task, labelled)
        problems += more
        if row.slice is not None and not SLICE_KEY_PATTERN.fullmatch(row.slice):
            remedy = f"A slice matches {SLICE_KEY_PATTERN.pattern}."
            problems.append(Problem(path, f"{row.slice!r} cannot be a slice.", remedy, line=number, field="slice"))
        if row.id in ids:
            problems.append(_make_id_problem(path, number, "id", row.id, ids[row.id] == row))
        ids.setdefault(row.id, row)
        rows.append(row)
    if not rows and not problems:
        problems.append(Problem(path, "the file is empty.", "Write one JSON object on each line."))
    return ParseResult(rows, problems)


def _reject_repeated_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for name, times in Counter(name for name, _ in pairs).items():
        if times > 1:
            raise ValueError(f"duplicate field {name!r}")
    return dict(pairs)


def _return_line(line: int) -> Callable[[tuple[int | str, ...]], int | None]:
    return lambda _: line


def _check_row(
    path: Path, line: int, row: LabelledRow, task: Task, labelled: bool
) -> tuple[LabelledRow, list[Problem]]:
    """The row with its answer in canonical form, and the problems in it."""
    problems = _check_messages(path, line, "messages", row, task)
    field, other = ("label", "answer") if task.has_labels else ("answer", "label")
    if getattr(row, other) is not None:
        message = f"kind {task.kind} has no {other!r}."
        problems.append(Problem(path, message, f"Write {field!r} instead.", line=line, field=other))
    elif labelled and getattr(row, field) is None:
        problems.append(Problem(path, f"the {field} is missing.", "Add it.", line=line, field=field))
    if task.has_labels:
        problems += _check_label(path, line, "label", row.label, task)
    elif row.answer is not None:
        answer, more = _canonicalize_answer(path, line, "answer", row.answer, row.text, task)
        row, problems = row.model_copy(update={"answer": answer}), problems + more
    if task.reasoning and path.name == EXAMPLES_FILE and row.reasoning is None:
        remedy = "Write how a person finds the answer, or set `reasoning: false` in task.yaml."
        message = "the reasoning is missing, which is shown to the teacher."
        problems.append(Problem(path, message, remedy, line=line, field="reasoning"))
    return row, problems


def _canonicalize_answer(
    path: Path, line: int | None, name: str, value: Any, text: str, task: Task
) -> tuple[Any, list[Problem]]:
    """A person's answer in the canonical form of the kind, or the problem with it."""
    if is_refusal(value) and isinstance(value["refusal"], str) and value["refusal"].strip():
        return value, []
    try:
        return get_kind(task).canonicalize(value, Question(text)), []
    except InvalidAnswerError as why:
        remedy = f"Write an answer of kind {task.kind}; the kinds are described in docs/kinds.md."
        return value, [Problem(path, f"{str(why).rstrip('.')}.", remedy, line=line, field=name)]


def _make_id_problem(path: Path, line: int | None, name: str, id_: str, same: bool) -> Problem:
    message = f"duplicate id {id_!r}" if same else f"the id {id_!r} is used for two different rows"
    return Problem(path, f"{message}.", "Give each row its own id.", line=line, field=name)


def _check_messages(path: Path, line: int | None, name: str, prompt: PromptText, task: Task) -> list[Problem]:
    if prompt.messages is None or task.kind == "conversation":
        return []
    remedy = "Write the prompt as `text`, or set `kind: conversation` in task.yaml."
    return [Problem(path, f"kind {task.kind} has no conversations.", remedy, line=line, field=name)]


def _check_label(path: Path, line: int | None, name: str, label: Any, task: Task) -> list[Problem]:
    if label is None or label in task.label_names:
        return []
    if not task.has_labels:
        return [Problem(path, f"kind {task.kind} has no labels.", "Remove it.", line=line, field=name)]
    close = find_close_name(str(label), task.label_names)
    meant = f"Did you mean {close!r}? " if close else ""
    remedy = f"{meant}Use one of: {', '.join(task.label_names[:20])}{', …' if len(task.label_names) > 20 else ''}."
    return [Problem(path, f"{label!r} is not a label of this task.", remedy, line=line, field=name)]


def find_example_problems(folder: Path, task: Task, rows: list[LabelledRow]) -> list[Problem]:
    """The problems with examples.jsonl if it has fewer rows than the prompts to a teacher need.

    A recorded teacher is shown none, but the student `seed_only` learns from them.
    """
    named = [(f"teachers.{name}", spec) for name, spec in task.teachers.items()] or [("teacher", task.teacher)]
    found = (_find_too_few_examples(folder, task, rows, spec, place) for place, spec in named)
    return next((problems for problems in found if problems), [])


def _find_too_few_examples(
    folder: Path, task: Task, rows: list[LabelledRow], spec: TeacherSpec, place: str
) -> list[Problem]:
    few_shot, path = spec.few_shot, folder / EXAMPLES_FILE
    if not task.has_labels:
        need = 1 if spec.is_replay else max(1, few_shot.nearest or few_shot.per_label)
        asks = f"{place}.few_shot.{'nearest' if few_shot.nearest else 'per_label'} asks for {need}"
        message, remedy = f"there are {len(rows)} few-shot examples, {asks}.", "Add examples, or ask for fewer."
        return [Problem(path, message, remedy)] if len(rows) < need else []
    need, counts = few_shot.per_label, Counter(row.label for row in rows)
    asks = f"{place}.few_shot.per_label asks for {need}"
    if spec.is_replay:
        need, asks = 1, "and `seed_only` needs one"
    elif few_shot.nearest:
        need, asks = 1, f"{place}.few_shot.nearest needs one of each label"
    elif spec.calibration == "examples":
        need, asks = need + 1, f"{asks}, and {place}.calibration for one more outside of the prompt"
    return [
        Problem(
            path,
            f"label {label!r} has {counts[label]} few-shot examples, {asks}.",
            "Add examples, or lower per_label.",
            field="label",
        )
        for label in task.label_names
        if counts[label] < max(need, 1)
    ]
