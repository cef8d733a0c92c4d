"""Reading a task folder: strict, with file, line, field and remedy for everything that is wrong."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from distill_dagster.accepted import (
    DESCRIPTION,
    Accepted,
    accepted_file,
    accepted_keys,
    accepted_problems,
    read_accepted,
)
from distill_dagster.errors import InputError, Problem
from distill_dagster.hashing import canonical_json, content_hash
from distill_dagster.imagined import Imagination, imagined_file, imagined_problems, read_imagined
from distill_dagster.kinds import InvalidAnswer, Question, is_refusal, kind_of
from distill_dagster.spec import SLICE_KEY, TASK_NAME, ReplaySpec, Task, TeacherSpec

if TYPE_CHECKING:
    from distill_dagster.teacher.recorded import Recorded

TASK_FILE = "task.yaml"
EXAMPLES, DEV, GOLDEN, HUMAN = "examples.jsonl", "dev.jsonl", "golden.jsonl", "human.jsonl"
UNQUOTED = {"api_base", "api_key_env"}
"""Fields that a key may stand in by mistake: no message repeats what was found there."""
T = TypeVar("T")
_TEXT = Annotated[str, Field(min_length=1, pattern=r"\S")]


class Turn(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: _TEXT


class _Prompt(BaseModel):
    """A prompt: a text, or the turns of a conversation, of which the user's are then its text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: _TEXT
    messages: Annotated[list[Turn], Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _text_of_turns(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("messages"), list) or "text" in value:
            return value
        turns = [t for t in value["messages"] if isinstance(t, dict) and t.get("role") == "user"]
        return value | {"text": "\n".join(str(t.get("content") or "") for t in turns)}

    @field_validator("messages")
    @classmethod
    def _user_last(cls, value: list[Turn] | None) -> list[Turn] | None:
        if value is not None:
            roles = [turn.role for turn in value]
            if roles[-1] != "user" or "system" in roles[1:]:
                raise ValueError("the last turn is the user's, and a system turn can only be the first")
        return value


class Row(_Prompt):
    """One line of a JSONL file: a prompt and, where a person answered it, the label or answer.

    `answer` is any JSON value for kinds without labels, in the kind's canonical form once it is read.
    """

    id: Annotated[str, Field(min_length=1, max_length=200)]
    label: str | None = None
    answer: Any = None
    reasoning: _TEXT | None = None
    slice: str | None = None
    axes: dict[str, str] = {}
    source: str | None = None

    @field_validator("id", mode="before")
    @classmethod
    def _number_ids(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @property
    def answer_json(self) -> str:
        """The label or answer as canonical JSON text."""
        return canonical_json(self.answer if self.answer is not None else self.label)

    def said(self) -> dict[str, Any]:
        """All that counts of a row; fields that came later are left out where they are empty, so no hash moves."""
        return _without_empty(self.model_dump(exclude={"source"}), "answer", "reasoning", "messages")


class Seed(_Prompt):
    """One seed prompt of a slice: a plain string in the YAML, or a mapping with these fields."""

    id: str | None = None
    target_label: str | None = None
    reference: Any = None
    axes: dict[str, str] = {}
    source: str | None = None

    def said(self) -> dict[str, Any]:
        """All that counts of a seed, as of a row."""
        return _without_empty(self.model_dump(exclude={"source"}), "messages")


def _without_empty(value: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: inner for name, inner in value.items() if inner is not None or name not in names}


class Slice(BaseModel):
    """One `slices/<slice>.yaml`, and the prompts that came to this slice through the inbox or were imagined for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: Annotated[str, Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    target: Annotated[int, Field(ge=1)] | None = None
    refusal: Literal["wanted"] | None = Field(
        default=None, description="a safety slice: a refusal is the right answer, and any other is none"
    )
    _accepted: tuple[Accepted, ...] = PrivateAttr(default=())  # private: nothing that can be written in the YAML
    _imagination: Imagination = PrivateAttr(default=Imagination())

    @property
    def accepted(self) -> tuple[Accepted, ...]:
        return self._accepted

    def with_accepted(self, rows: Iterable[Accepted]) -> Slice:
        slice_ = self.model_copy()
        slice_._accepted = tuple(rows)
        return slice_

    @property
    def imagination(self) -> Imagination:
        return self._imagination

    def with_imagined(self, imagination: Imagination) -> Slice:
        slice_ = self.model_copy()
        slice_._imagination = imagination
        return slice_

    @field_validator("seeds", mode="before")
    @classmethod
    def _plain_strings(cls, value: Any) -> Any:
        return [{"text": s} if isinstance(s, str) else s for s in value] if isinstance(value, list) else value

    def content_version(self) -> str:
        """Hash of what the slice says, parsed and canonical: white space, comments and key order do not count."""
        value = _without_empty(self.model_dump(exclude={"seeds"}), "refusal")
        seeds = [seed.said() for seed in self.seeds]
        value |= {"seeds": sorted(seeds, key=content_hash)}
        if self.accepted:
            value["accepted"] = sorted({row.text for row in self.accepted})
        if self.imagination.generation:  # not the imagined prompts: the stage that imagines them would never be fresh
            value["generation"] = self.imagination.generation
        return content_hash(value)


@dataclass(frozen=True)
class TaskFolder:
    """A task folder and, read once when first needed, what is in it. Properties raise `InputError`.

    `accepted` is the folder of what came through the inbox; without it a task has what is in its own folder.
    """

    path: Path
    accepted: Path | None = None
    _recorded: dict[tuple[str, ReplaySpec | None], Recorded] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def task(self) -> Task:
        return _raise(read_task(self.path))

    def slice_keys(self) -> list[str]:
        """All slices, sorted: those of the user's files, and those that only have prompts from the inbox."""
        return sorted({*self.written_slices(), *accepted_keys(self.accepted)})

    def written_slices(self) -> list[str]:
        """Slice files by name, sorted. A name that cannot be a partition is left out here and named by `check`."""
        files = _slice_files(self.path)
        return sorted(f.stem for f in files if not _slice_file_problem(self.path, f))

    def slice(self, key: str) -> Slice:
        rows = read_accepted(accepted_file(self.accepted, key)) if self.accepted else []
        path = self.path / "slices" / f"{key}.yaml"
        if rows and not (path.is_symlink() or path.exists()):
            bare = Slice.model_construct(description=DESCRIPTION.format(key=key), seeds=[])
            return bare.with_accepted(rows)
        imagination = read_imagined(imagined_file(self.accepted, key)) if self.accepted else Imagination()
        return _raise(read_slice(path, self.task)).with_accepted(rows).with_imagined(imagination)

    def rows(self, file: str, labelled: bool = True) -> list[Row]:
        path = self.path / file
        if file == HUMAN and not path.exists():
            return []
        return _raise(read_rows(path, self.task, labelled))

    @cached_property
    def examples(self) -> list[Row]:
        rows = self.rows(EXAMPLES)
        if problems := _example_problems(self.path, self.task, rows):
            raise InputError(problems)
        return rows

    @cached_property
    def dev(self) -> list[Row]:
        return self.rows(DEV)

    @cached_property
    def golden(self) -> list[Row]:
        return self.rows(GOLDEN)

    @cached_property
    def human(self) -> list[Row]:
        return self.rows(HUMAN)

    def recorded(self, spec: TeacherSpec) -> Recorded:
        """What a replay teacher of this task answers with."""
        from distill_dagster.teacher.recorded import recorded

        key = (spec.model, spec.replay)
        if key not in self._recorded:
            self._recorded[key] = recorded(self, spec)
        return self._recorded[key]

    def recorded_version(self) -> str | None:
        """Hash of what the task's replay teachers have recorded, parsed; None where every teacher is asked."""
        versions = [self.recorded(spec).version for spec in self.task.teacher_specs if spec.replayed]
        return versions[0] if len(versions) == 1 else content_hash(versions) if versions else None

    def templates(self) -> dict[str, str]:
        """The user's own templates by name.

        Raises:
            InputError: one of them cannot be read, or is a symbolic link.
        """
        folder = self.path / "templates"
        problems: list[Problem] = []
        if folder.is_symlink():
            problems.append(_link_problem(folder))
        files = sorted(folder.glob("*.j2")) if not problems and folder.is_dir() else []
        texts = {f.stem: _read_text(f, problems) for f in files}
        if problems:  # falling back to the built-in template would ask the teacher something else than the user wrote
            raise InputError(problems)
        return texts


@dataclass
class _Result(Generic[T]):
    value: T | None
    problems: list[Problem] = field(default_factory=list)


def _raise(result: _Result[T]) -> T:
    errors = [p for p in result.problems if p.severity == "error"]
    if errors or result.value is None:
        raise InputError(errors)
    return result.value


def find_tasks(tasks: Path, accepted: Path) -> list[TaskFolder]:
    """All folders below `tasks` that hold a task.yaml, sorted by name; `accepted` is where the inbox puts prompts."""
    if not tasks.is_dir():
        return []
    found = [p for p in sorted(tasks.iterdir()) if (p / TASK_FILE).is_file() and not p.is_symlink()]
    return [TaskFolder(p, accepted / p.name) for p in found]


def open_task(tasks: Path, name: str, accepted: Path) -> TaskFolder:
    """The folder of one task; `accepted` is where the inbox puts prompts of all tasks.

    Raises:
        InputError: there is no such task, or its name cannot be a task name.
    """
    known = [t.name for t in find_tasks(tasks, accepted)]
    if not TASK_NAME.fullmatch(name) or name not in known:
        problem = Problem(
            tasks,
            f"there is no task {name!r}.",
            f"Known tasks: {', '.join(known) or 'none'}. A task is a folder "
            f"with a {TASK_FILE}; its name matches {TASK_NAME.pattern}.",
        )
        raise InputError([problem])
    return TaskFolder(tasks / name, accepted / name)


def _read_text(path: Path, problems: list[Problem]) -> str:
    if path.is_symlink():
        problems.append(_link_problem(path))
        return ""
    content = b""
    try:
        content = path.read_bytes()
        return content.decode("utf-8").removeprefix("\ufeff")
    except FileNotFoundError:
        problems.append(Problem(path, "the file is missing.", "Add it; the README shows what belongs into it."))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        remedy = "Save the file as UTF-8."
        problems.append(Problem(path, f"invalid UTF-8 at byte {error.start}.", remedy, line=line))
    except OSError as error:
        problems.append(Problem(path, f"cannot be read: {error.strerror}.", "Put a readable file there."))
    return ""


def _link_problem(path: Path) -> Problem:
    return Problem(path, "symbolic links are not followed.", "Put the file itself into the task folder.")


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe loading, but a key that stands twice in one mapping is an error instead of the last one winning."""


def _construct_unique(loader: _UniqueKeyLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # `<<`, which the safe loader itself resolves
            continue
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, str) and key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        if isinstance(key, str):
            seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_unique)


def _read_yaml(path: Path, problems: list[Problem]) -> tuple[Any, yaml.Node | None]:
    text = _read_text(path, problems)
    if problems:
        return None, None
    try:
        loader = _UniqueKeyLoader(text)
        try:
            tree = loader.get_single_node()
            return (loader.construct_document(tree) if tree else None), tree
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or "malformed YAML"
        remedy = "Mend the YAML; texts with `:` or `#` want quotation marks."
        problems.append(Problem(path, f"{what}.", remedy, line=mark.line + 1 if mark else None))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: `2024-02-30` without quotation marks
        what = str(error).splitlines()[0] if str(error) else "nested too deep"
        remedy = "Mend the YAML; put texts that look like dates or numbers into quotation marks."
        problems.append(Problem(path, f"malformed YAML: {what}.", remedy))
    return None, None


def _line_of(tree: yaml.Node | None, location: Iterable[int | str]) -> int | None:
    """The line of the deepest node that a pydantic location leads to."""
    if tree is None:
        return None
    line, current = tree.start_mark.line + 1, tree
    for step in location:
        if isinstance(current, yaml.MappingNode):
            found = next(((k, v) for k, v in current.value if k.value == str(step)), None)
            if found is None:
                break
            line, current = found[0].start_mark.line + 1, found[1]
        elif isinstance(current, yaml.SequenceNode) and isinstance(step, int) and step < len(current.value):
            current = current.value[step]
            line = current.start_mark.line + 1
    return line


_REMEDIES = {
    "extra_forbidden": "Remove it, or mend its spelling.",
    "missing": "Add it.",
    "too_short": "Add at least one.",
    "string_too_short": "Write some text.",
    "string_pattern_mismatch": "Write some text.",
    "string_type": "Put texts that look like numbers, dates or yes and no into quotation marks.",
}


def _model_problems(
    path: Path, error: ValidationError, line: Callable[[tuple[int | str, ...]], int | None]
) -> list[Problem]:
    problems = []
    for item in error.errors():
        message = item["msg"].removeprefix("Value error, ").rstrip(".")
        message = {
            "extra_forbidden": "an unknown field",
            "string_pattern_mismatch": "the text is empty",
            "model_type": "a mapping of fields is wanted",
            "model_attributes_type": "a mapping of fields is wanted",
        }.get(item["type"], message[:1].lower() + message[1:])
        quoted = item["type"] not in ("missing", "extra_forbidden") and not UNQUOTED & set(item["loc"])
        if quoted and isinstance(item["input"], str | int | float | bool):
            message += f" (found {str(item['input'])[:60]!r})"
        name = ".".join(str(part) for part in item["loc"]) or None
        remedy = _REMEDIES.get(item["type"], "Mend the value; the README lists the fields.")
        problems.append(Problem(path, f"{message}.", remedy, line=line(item["loc"]), field=name))
    return problems


def read_task(folder: Path) -> _Result[Task]:
    path, problems = folder / TASK_FILE, list[Problem]()
    if not TASK_NAME.fullmatch(folder.name):
        remedy = f"Rename the folder to something that matches {TASK_NAME.pattern}."
        problems.append(Problem(folder, f"{folder.name!r} cannot be a task name.", remedy))
    value, tree = _read_yaml(path, problems)
    if problems:
        return _Result(None, problems)
    try:
        return _Result(Task.model_validate(value if value is not None else {}))
    except ValidationError as error:
        return _Result(None, _model_problems(path, error, lambda loc: _line_of(tree, loc)))


def read_slice(path: Path, task: Task) -> _Result[Slice]:
    problems: list[Problem] = []
    value, tree = _read_yaml(path, problems)
    if problems:
        return _Result(None, problems)
    try:
        slice_ = Slice.model_validate(value if value is not None else {})
    except ValidationError as error:
        return _Result(None, _model_problems(path, error, lambda loc: _line_of(tree, loc)))
    ids: dict[str, Seed] = {}
    seeds: list[Seed] = []
    if slice_.refusal and task.has_labels:
        remedy = "Leave it out, or make a label of what is to be refused."
        message = f"kind {task.kind} answers with labels, and a refusal is none."
        problems.append(Problem(path, message, remedy, line=_line_of(tree, ("refusal",)), field="refusal"))
    for index, seed in enumerate(slice_.seeds):
        line = _line_of(tree, ("seeds", index))
        problems += _label_problem(path, line, f"seeds.{index}.target_label", seed.target_label, task)
        problems += _turns_problem(path, line, f"seeds.{index}.messages", seed, task)
        name = f"seeds.{index}.reference"
        if task.has_labels:
            problems += _label_problem(path, line, name, seed.reference, task)
        elif seed.reference is not None:
            answer, found = _answer(path, line, name, seed.reference, seed.text, task)
            seed, problems = seed.model_copy(update={"reference": answer}), problems + found
        seeds.append(seed)
        if seed.id is not None and seed.id in ids:
            problems.append(_id_problem(path, line, f"seeds.{index}.id", seed.id, ids[seed.id].text == seed.text))
        if seed.id is not None:
            ids.setdefault(seed.id, seed)
    return _Result(slice_.model_copy(update={"seeds": seeds}), problems)


class _RepeatedKey(Exception):
    pass


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for name, times in Counter(name for name, _ in pairs).items():
        if times > 1:
            raise _RepeatedKey(f"the field {name!r} stands twice")
    return dict(pairs)


def read_rows(path: Path, task: Task, labelled: bool) -> _Result[list[Row]]:
    """Rows of a JSONL file; every bad line is named, not only the first."""
    problems: list[Problem] = []
    text = _read_text(path, problems)
    rows: list[Row] = []
    ids: dict[str, Row] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_unique_fields)
        except json.JSONDecodeError as error:
            remedy = "Write one JSON object on each line."
            problems.append(Problem(path, f"malformed JSON at column {error.colno}: {error.msg}.", remedy, line=number))
            continue
        except (_RepeatedKey, ValueError, RecursionError) as error:  # a number of thousands of digits, endless nesting
            what = str(error).splitlines()[0] if str(error) else "nested too deep"
            remedy = "Mend the line: each field once, with a plain value."
            problems.append(Problem(path, f"{what}.", remedy, line=number))
            continue
        try:
            row = Row.model_validate(value)
        except ValidationError as error:
            problems += _model_problems(path, error, _always(number))
            continue
        row, found = _checked_answer(path, number, row, task, labelled)
        problems += found
        if row.slice is not None and not SLICE_KEY.fullmatch(row.slice):
            remedy = f"A slice matches {SLICE_KEY.pattern}."
            problems.append(Problem(path, f"{row.slice!r} cannot be a slice.", remedy, line=number, field="slice"))
        if row.id in ids:
            problems.append(_id_problem(path, number, "id", row.id, ids[row.id] == row))
        ids.setdefault(row.id, row)
        rows.append(row)
    if not rows and not problems:
        problems.append(Problem(path, "the file is empty.", "Write one JSON object on each line."))
    return _Result(rows, problems)


def _always(line: int) -> Callable[[tuple[int | str, ...]], int | None]:
    return lambda _: line


def _id_problem(path: Path, line: int | None, name: str, id_: str, same: bool) -> Problem:
    what = f"the id {id_!r} stands twice" if same else f"the id {id_!r} is used for two different rows"
    return Problem(path, f"{what}.", "Give every row an id of its own.", line=line, field=name)


def _checked_answer(path: Path, line: int, row: Row, task: Task, labelled: bool) -> tuple[Row, list[Problem]]:
    """The row with its answer in canonical form, and what is wrong with it."""
    problems = _turns_problem(path, line, "messages", row, task)
    wanted, other = ("label", "answer") if task.has_labels else ("answer", "label")
    if getattr(row, other) is not None:
        message = f"kind {task.kind} has no {other!r}."
        problems.append(Problem(path, message, f"Write {wanted!r} instead.", line=line, field=other))
    elif labelled and getattr(row, wanted) is None:
        problems.append(Problem(path, f"the {wanted} is missing.", "Add it.", line=line, field=wanted))
    if task.has_labels:
        problems += _label_problem(path, line, "label", row.label, task)
    elif row.answer is not None:
        answer, found = _answer(path, line, "answer", row.answer, row.text, task)
        row, problems = row.model_copy(update={"answer": answer}), problems + found
    if task.reasoning and path.name == EXAMPLES and row.reasoning is None:
        remedy = "Write how a person comes to the answer, or set `reasoning: false` in task.yaml."
        message = "the reasoning is missing, which the teacher is shown."
        problems.append(Problem(path, message, remedy, line=line, field="reasoning"))
    return row, problems


def _answer(path: Path, line: int | None, name: str, value: Any, text: str, task: Task) -> tuple[Any, list[Problem]]:
    """An answer of a person in the kind's canonical form, or the problem with it."""
    if is_refusal(value) and isinstance(value["refusal"], str) and value["refusal"].strip():
        return value, []
    try:
        return kind_of(task).canonical(value, Question(text)), []
    except InvalidAnswer as why:
        remedy = f"Write an answer of kind {task.kind}; the kinds are described in docs/kinds.md."
        return value, [Problem(path, f"{str(why).rstrip('.')}.", remedy, line=line, field=name)]


def _turns_problem(path: Path, line: int | None, name: str, prompt: _Prompt, task: Task) -> list[Problem]:
    if prompt.messages is None or task.kind == "conversation":
        return []
    remedy = "Write the prompt as `text`, or set `kind: conversation` in task.yaml."
    return [Problem(path, f"kind {task.kind} has no conversations.", remedy, line=line, field=name)]


def _label_problem(path: Path, line: int | None, name: str, label: Any, task: Task) -> list[Problem]:
    if label is None or label in task.label_names:
        return []
    if not task.has_labels:
        return [Problem(path, f"kind {task.kind} has no labels.", "Leave it out.", line=line, field=name)]
    remedy = f"Use one of: {', '.join(task.label_names[:20])}{', …' if len(task.label_names) > 20 else ''}."
    return [Problem(path, f"{label!r} is not a label of this task.", remedy, line=line, field=name)]


def _example_problems(folder: Path, task: Task, rows: list[Row]) -> list[Problem]:
    few_shot = task.teacher.few_shot
    if not task.has_labels:
        need = max(1, few_shot.nearest or few_shot.per_label)
        asks = f"teacher.few_shot.{'nearest' if few_shot.nearest else 'per_label'} asks for {need}"
        message, remedy = f"there are {len(rows)} few-shot examples, {asks}.", "Add examples, or ask for fewer."
        return [Problem(folder / EXAMPLES, message, remedy)] if len(rows) < need else []
    need, have = few_shot.per_label, Counter(row.label for row in rows)
    asks = f"teacher.few_shot.per_label asks for {need}"
    if few_shot.nearest:
        need, asks = 1, "every label needs one to be found by teacher.few_shot.nearest"
    elif task.teacher.calibration == "examples":
        need, asks = need + 1, f"{asks}, and teacher.calibration for one more that is not in the prompt"
    return [
        Problem(
            folder / EXAMPLES,
            f"label {label!r} has {have[label]} few-shot examples, {asks}.",
            "Add examples, or lower per_label.",
            field="label",
        )
        for label in task.label_names
        if have[label] < max(need, 1)
    ]


def _slice_files(folder: Path) -> list[Path]:
    slices = folder / "slices"
    if slices.is_symlink() or not slices.is_dir():
        return []
    return sorted(p for p in slices.rglob("*") if p.suffix in (".yaml", ".yml") and not p.name.startswith("."))


def _slice_file_problem(folder: Path, file: Path) -> Problem | None:
    name = file.relative_to(folder / "slices").with_suffix("").as_posix()
    if file.suffix != ".yaml":
        return Problem(file, "slice files end with .yaml.", "Rename the file.")
    if not SLICE_KEY.fullmatch(name):
        message = f"the slice name {name!r} cannot be a partition."
        return Problem(file, message, f"Use a name that matches {SLICE_KEY.pattern}: no slash, no capital, no space.")
    return None


def check_folder(folder: TaskFolder) -> list[Problem]:
    """Everything that is wrong in a task folder, errors and warnings, without running anything."""
    result = read_task(folder.path)
    if result.value is None:
        return result.problems
    task, problems = result.value, [*result.problems, *_terms_problems(folder.path / TASK_FILE, task=result.value)]
    texts: dict[str, list[tuple[Path, int | None, str]]] = {}
    files = _slice_files(folder.path)
    if (folder.path / "slices").is_symlink():
        problems.append(_link_problem(folder.path / "slices"))
    elif not files:
        remedy = "Add slices/<slice>.yaml with a description and seeds."
        problems.append(Problem(folder.path / "slices", "the task has no slice.", remedy))
    lower: dict[str, Path] = {}
    for file in files:
        if problem := _slice_file_problem(folder.path, file):
            problems.append(problem)
            continue
        if twin := lower.get(file.stem.casefold()):
            problems.append(Problem(file, f"differs from {twin.name} in case alone.", "Rename one."))
        lower[file.stem.casefold()] = file
        slice_ = read_slice(file, task)
        problems += slice_.problems
        for seed in slice_.value.seeds if slice_.value and not slice_.problems else []:
            texts.setdefault(normalize(seed.text), []).append((file, None, "seed"))
    problems += [*accepted_problems(folder.accepted), *imagined_problems(folder.accepted)]
    held_out: dict[str, str] = {}
    rows_of: dict[str, list[Row]] = {}
    for name in (GOLDEN, DEV, EXAMPLES, HUMAN):
        if name == HUMAN and not (folder.path / HUMAN).exists():
            continue
        rows = read_rows(folder.path / name, task, labelled=True)
        problems += rows.problems
        rows_of[name] = rows.value or []
        for row in rows_of[name]:
            twin_row = held_out.get(normalize(row.text))
            if name in (GOLDEN, DEV):
                held_out.setdefault(normalize(row.text), f"{name} row {row.id}")
            if twin_row is not None and not twin_row.startswith(name):  # one file may well hold the same twice
                message = f"row {row.id} has the text of {twin_row}."
                remedy = "It will not be used as an example; better remove it here."
                if name == DEV:
                    remedy = "Choices made on dev would be made on golden too; remove it here."
                problems.append(Problem(folder.path / name, message, remedy, severity="warning"))
    if not any(p.file == folder.path / EXAMPLES and p.severity == "error" for p in problems):
        # Counting what is left of a file with broken lines would only name the same mistake again.
        problems += _example_problems(folder.path, task, rows_of.get(EXAMPLES, []))
    problems += _repeat_warnings(texts, held_out)
    try:
        folder.recorded_version()
        for name, text in folder.templates().items():
            problems += _template_problems(folder.path / "templates" / f"{name}.j2", text, task)
    except InputError as error:
        problems += error.problems
    return problems


def _terms_problems(path: Path, task: Task) -> list[Problem]:
    """An error where the teacher's terms restrict training and nobody said so, a warning where they are not known."""
    from distill_dagster.teacher.terms import terms_checks

    several: list[tuple[str, ...]] = [("teachers", name) for name in task.teachers]
    problems = []
    for place, spec in zip(several or [("teacher",)], task.teacher_specs, strict=True):
        failed = [check for check in terms_checks(spec) if not check.passed]
        at = (*place, "terms" if "terms" in spec.model_fields_set else "model")
        line = _line_of(_read_yaml(path, [])[1], at) if failed else None
        field = ".".join([*place, "terms"])
        problems += [
            Problem(path, check.found["terms"], check.found["remedy"], line, field, check.severity) for check in failed
        ]
    return problems


def normalize(text: str) -> str:
    """The key of exact duplicates; `tables.normalized_expr` is the same as a query."""
    import unicodedata

    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def _repeat_warnings(texts: dict[str, list[tuple[Path, int | None, str]]], held_out: dict[str, str]) -> list[Problem]:
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


def _template_problems(path: Path, text: str, task: Task) -> list[Problem]:
    from distill_dagster.prompts import more_templates, templates

    if path.stem in more_templates.MORE:
        found = more_templates.problems(path.stem, text)
    else:
        found = templates.problems(path.stem, text, templates.names_of(task.kind, task.reasoning))
    return [Problem(path, message, remedy, line=line) for line, message, remedy in found]
