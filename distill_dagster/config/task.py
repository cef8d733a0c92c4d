"""All of `task.yaml`: its blocks together, their defaults by kind, and their hashes by part."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from distill_dagster.config.answers import (
    DEFAULT_INSTRUCTIONS,
    LABEL_KINDS,
    NLI_LABELS,
    AnswerSpec,
    LabelSpec,
    TaskKind,
    ToolSpec,
    check_answer_options,
    check_answer_schema,
    check_labels,
    check_tools,
)
from distill_dagster.config.assistants import check_assistant
from distill_dagster.config.base import MODEL_NAME, STUDENT_NAME_PATTERN, ConfigModel
from distill_dagster.config.budget import BudgetSpec
from distill_dagster.config.curation import CurationSpec
from distill_dagster.config.evaluation import EvaluationSpec, GateSpec
from distill_dagster.config.imagine import ImagineSpec
from distill_dagster.config.inbox import InboxSpec
from distill_dagster.config.judge import JudgeSpec
from distill_dagster.config.objective import SHORT_FORMS, Objective, writes_reasoning
from distill_dagster.config.refresh import RefreshSpec
from distill_dagster.config.release import ReleaseSpec
from distill_dagster.config.replay import REPLAY_PREFIX
from distill_dagster.config.routing import RoutingSpec
from distill_dagster.config.serving import ServingSpec
from distill_dagster.config.student import (
    BASE_MODEL_SETTINGS,
    RUN_SETTINGS,
    StudentSpec,
    check_student,
)
from distill_dagster.config.teacher import (
    EMBEDDED_PREFIX,
    CascadeSpec,
    TeacherSpec,
    check_teacher,
    fill_teacher_defaults,
)
from distill_dagster.core.hashing import hash_content


class Task(ConfigModel):
    """All of `task.yaml`."""

    kind: TaskKind = Field(description="what an answer is; docs/kinds.md describes each kind")
    description: Annotated[str, Field(min_length=1)] = Field(
        description="one sentence about the task; the judge and the model that imagines prompts read it"
    )
    instructions: Annotated[str, Field(min_length=1)] = Field(
        default="", description="what the teacher is asked to do; by default a sentence of the kind"
    )
    item: Annotated[str, Field(min_length=1, max_length=40)] = Field(
        default="Message", description="what one prompt is called in templates: Ticket, Message, Question"
    )
    owners: list[str] = Field(
        default=[],
        description="people or teams that Dagster shows as owners of the task's assets: an e-mail address or "
        "`team:name`",
    )
    labels: list[LabelSpec] = Field(
        default=[], description="the categories, for kinds with labels; kind nli has its three by default"
    )
    reasoning: bool = Field(default=False, description="ask the teacher for its reasoning before the answer")
    answer: AnswerSpec = AnswerSpec()
    answer_schema: dict[str, Any] | None = Field(default=None, description="kind extraction: JSON schema of an answer")
    tools: list[ToolSpec] = Field(default=[], description="kind tool_call: the functions that an answer may call")
    teachers: dict[str, Annotated[TeacherSpec, MODEL_NAME]] = Field(
        default={}, description="several teachers by name, instead of `teacher`; list the most trusted one last"
    )
    cascade: CascadeSpec | None = Field(
        default=None,
        description="ask the next of `teachers` only if the previous one is uncertain; else all answer",
    )
    teacher: Annotated[TeacherSpec, MODEL_NAME] = Field(
        default=TeacherSpec(model="-"), description="one teacher; of several `teachers`, the first"
    )
    imagine: ImagineSpec | None = None
    judge: JudgeSpec | None = None
    students: Annotated[dict[str, StudentSpec], Field(min_length=1)] = Field(
        description="the models that learn from the teacher's answers, by a name of your choice"
    )
    default_student: str | None = Field(
        default=None, description="the student of a command that names none; by default the first"
    )
    curation: CurationSpec = CurationSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    gate: GateSpec = GateSpec()
    release: ReleaseSpec = ReleaseSpec()
    routing: RoutingSpec = RoutingSpec()
    serving: ServingSpec = ServingSpec()
    budget: BudgetSpec = BudgetSpec()
    refresh: RefreshSpec = RefreshSpec()
    inbox: InboxSpec = InboxSpec()

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, value: Any) -> Any:
        """Fill in what depends on the kind: instructions, labels of kind nli, and the teachers' defaults."""
        if not isinstance(value, dict):
            return value
        filled = dict(value)
        kind, reasoning = filled.get("kind"), _is_true(filled.get("reasoning", False))
        if filled.get("instructions") is None:
            filled["instructions"] = DEFAULT_INSTRUCTIONS.get(str(kind), "-")
        if kind == "nli" and not filled.get("labels"):
            filled["labels"] = [{"name": name, "description": text} for name, text in NLI_LABELS]
        if isinstance(filled.get("teachers"), dict):
            filled["teachers"] = {
                name: fill_teacher_defaults(teacher, kind, reasoning) for name, teacher in filled["teachers"].items()
            }
        if filled.get("teacher") is None:
            filled.pop("teacher", None)
        else:
            filled["teacher"] = fill_teacher_defaults(filled["teacher"], kind, reasoning)
        return filled

    @model_validator(mode="after")
    def _check_blocks(self) -> Task:
        """Check what one block alone cannot: settings that depend on the kind or on another block."""
        problems = list(self._find_problems())
        if problems:
            raise ValidationError.from_exception_data("Task", problems)
        if self.teachers:
            self.__dict__["teacher"] = next(iter(self.teachers.values()))  # the model is frozen from here on
        return self

    def _find_problems(self) -> Iterator[InitErrorDetails]:
        kind = self.kind
        yield from _try_check(("labels",), self.labels, check_labels, self.labels, kind)
        yield from _try_check(("answer",), self.answer, check_answer_options, self.answer, kind)
        yield from _try_check(("answer_schema",), self.answer_schema, check_answer_schema, self.answer_schema, kind)
        yield from _try_check(("tools",), self.tools, check_tools, self.tools, kind)
        yield from _try_check(("teachers",), self.teachers, self._check_teachers)
        if self.cascade is not None and len(self.teachers) < 2:
            yield _make_error(("cascade",), self.cascade, ValueError("a cascade needs two or more `teachers`"))
        yield from _try_check(("teacher",), self.teacher, self._check_teacher)
        for name in self.students:
            yield from _try_check(("students", name), self.students[name], self._check_student, name)
        if self.curation.rescale_soft_labels != "none" and not self.has_labels:
            error = ValueError("only label tasks have soft labels that can be rescaled")
            yield _make_error(("curation", "rescale_soft_labels"), self.curation.rescale_soft_labels, error)
        if self.evaluation.judged_items is not None and self.judge is None:
            error = ValueError("judged_items needs a judge: describe one in `judge`, or remove judged_items")
            yield _make_error(("evaluation", "judged_items"), self.evaluation.judged_items, error)
        if self.default_student is not None and self.default_student not in self.students:
            names = ", ".join(self.students)
            error = ValueError(f"default_student {self.default_student!r} is not one of {names}")
            yield _make_error(("default_student",), self.default_student, error)

    def _check_teachers(self) -> None:
        for name, teacher in self.teachers.items():
            if not STUDENT_NAME_PATTERN.fullmatch(name):
                raise ValueError(f"teacher name {name!r} must match {STUDENT_NAME_PATTERN.pattern}")
            if teacher.calibration != "none":
                raise ValueError(f"{name}: calibration is for a task with one teacher")
            check_teacher(teacher, self.kind, self.reasoning)

    def _check_teacher(self) -> None:
        has_teacher = "teacher" in self.model_fields_set
        if has_teacher and self.teachers:
            raise ValueError("name one `teacher`, or several `teachers`, not both")
        if has_teacher:
            check_teacher(self.teacher, self.kind, self.reasoning)
        elif not self.teachers:
            raise PydanticCustomError("missing", "Field required")

    def _check_student(self, name: str) -> None:
        check_student(name, self.students[name], self.kind, self.reasoning)
        check_assistant(name, self.students, self.kind, self.reasoning)

    @property
    def is_free(self) -> bool:
        """Whether every model that is asked is embedded or a replay, and costs nothing."""
        imaginer = self.imagine.teacher if self.imagine else None
        models = [teacher.model for teacher in self.teacher_specs]
        models += [spec.model for spec in (imaginer, self.judge) if spec is not None]
        return all(model.startswith((EMBEDDED_PREFIX, REPLAY_PREFIX)) for model in models)

    @property
    def label_names(self) -> list[str]:
        """The names of the labels in their order; none for kinds without labels."""
        return [label.name for label in self.labels]

    @property
    def chosen_student(self) -> str:
        """The student of a command that names none."""
        return self.default_student or next(iter(self.students))

    @property
    def has_labels(self) -> bool:
        """Whether an answer is one of the task's labels."""
        return self.kind in LABEL_KINDS

    @property
    def has_written_answers(self) -> bool:
        """Whether answers are written (a kind without labels, or with reasoning), not chosen from labels."""
        return not self.has_labels or self.reasoning

    @property
    def teacher_specs(self) -> list[TeacherSpec]:
        """The teachers in their order."""
        return list(self.teachers.values()) or [self.teacher]

    def list_teachers(self) -> list[tuple[str, Task]]:
        """For each teacher in order: its name in the column `teacher`, and the task with this teacher only."""
        if not self.teachers:
            return [(self.teacher.model, self)]
        alone: dict[str, Any] = {"teachers": {}, "cascade": None}
        return [(name, self.model_copy(update=alone | {"teacher": spec})) for name, spec in self.teachers.items()]

    def resolve_objective(self, student: str) -> Objective:
        """What the training of a student minimizes."""
        return self.students[student].resolve_objective(self.has_labels, self.reasoning)

    def writes_reasoning(self, student: str) -> bool:
        """Whether a student writes reasoning before its answer."""
        return writes_reasoning(self.resolve_objective(student), self.has_labels, self.reasoning)

    def list_replayed_datasets(self) -> list[str]:
        """The names of the earlier datasets of which students replay rows, sorted."""
        return sorted({spec.data.replay.dataset for spec in self.students.values() if spec.data.replay})

    def list_assistants(self, students: Collection[str] | None = None) -> list[str]:
        """The students that teach another one, in the order of task.yaml; those of some students only."""
        taught = [spec for name, spec in self.students.items() if students is None or name in students]
        used = {spec.assistant for spec in taught}
        return [name for name in self.students if name in used]

    def dump_answer_settings(self) -> dict[str, Any]:
        """The settings that define what an answer is, for hashes."""
        return self.model_dump(include={"kind", "labels", "reasoning", "answer", "answer_schema", "tools"})

    def hash_teacher_settings(self, templates: dict[str, str]) -> str:
        """Hash of everything that changes a teacher's request, or how its answer is read."""
        settings: dict[str, Any] = {"teacher": self.teacher.dump_result_settings()}
        if self.teachers:
            cascade = self.cascade.model_dump() if self.cascade else None
            teachers = [[name, spec.dump_result_settings()] for name, spec in self.teachers.items()]
            settings = {"teachers": teachers, "cascade": cascade}
        return hash_content(self.dump_prompt_settings() | settings | {"templates": templates})

    def hash_imagine_settings(self, templates: dict[str, str]) -> str:
        """Hash of everything that changes a request for new prompts."""
        assert self.imagine is not None
        settings = self.imagine.model_dump(exclude={"teacher"})
        settings["teacher"] = self.imagine.teacher.dump_request_settings() if self.imagine.teacher else None
        return hash_content({"description": self.description, "imagine": settings, "templates": templates})

    def hash_judge_settings(self, templates: dict[str, str]) -> str:
        """Hash of everything that changes a request to the judge, except the rows."""
        assert self.judge is not None
        settings = {"description": self.description, "judge": self.judge.dump_request_settings()}
        return hash_content(self.dump_prompt_settings() | settings | {"templates": templates})

    def hash_win_rate_settings(self) -> str:
        """Hash of what decides which golden items are compared by the judge."""
        return hash_content({"judged_items": self.evaluation.judged_items})

    def hash_student_settings(self, student: str) -> str:
        """Hash of everything but the dataset that changes a student's training."""
        settings = self.students[student].model_dump(exclude={*SHORT_FORMS, *RUN_SETTINGS})
        settings["objective"] = self.resolve_objective(student).model_dump()
        if settings["layer_decay"] == 1:  # students of before these settings need no new training
            del settings["layer_decay"]
        if settings["shrink"] and settings["shrink"]["start"] == "model":
            del settings["shrink"]["start"]
        return hash_content(self.dump_prompt_settings() | {"student": settings})

    def hash_gate_settings(self) -> str:
        """Hash of the scores that the teacher must reach, and of the base that it is compared with."""
        base: dict[str, Any] | None = None
        if self.gate.teacher_over_base is not None:
            student = self.students[self.chosen_student].model_dump(include=set(BASE_MODEL_SETTINGS))
            (student["shrink"] or {}).pop("start", None)  # the base has the layers that were downloaded
            student["reasoning"] = self.writes_reasoning(self.chosen_student)
            base = {"student": student} | self.dump_prompt_settings()
        return hash_content({"gate": self.gate.model_dump(), "base": base})

    def hash_evaluation_settings(self) -> str:
        """Hash of everything but the answers that changes a report."""
        evaluation = self.evaluation.model_dump(exclude={"judged_items"})
        settings: dict[str, Any] = {"evaluation": evaluation, "labels": self.label_names}
        settings["routing"] = self.routing.model_dump(include={"margin", "confidence", "threshold"})
        # What others cost is what they billed, whatever the price is now.
        prices = [spec.price.model_dump() for spec in self.teacher_specs if spec.is_replay and spec.price is not None]
        settings |= {"prices": prices} if prices else {}
        return hash_content(self.dump_answer_settings() | settings)

    def hash_release_settings(self) -> str:
        """Hash of the gate before a release, its formats, and how the router is calibrated."""
        return hash_content({"release": self.release.model_dump(), "routing": self.routing.model_dump()})

    def dump_prompt_settings(self) -> dict[str, Any]:
        """The settings that a prompt is rendered with, apart from its template and examples."""
        return self.dump_answer_settings() | {"instructions": self.instructions, "item": self.item}


def _is_true(value: Any) -> bool:
    """Whether pydantic reads a value as true; a malformed one is reported with its field."""
    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError:
        return False


def _try_check(
    location: tuple[str, ...], value: Any, check: Callable[..., None], *arguments: Any
) -> Iterator[InitErrorDetails]:
    """The error of a check at its place in task.yaml, if it fails."""
    try:
        check(*arguments)
    except ValueError as error:
        yield _make_error(location, value, error)


def _make_error(location: tuple[str, ...], value: Any, error: ValueError) -> InitErrorDetails:
    if not isinstance(error, PydanticCustomError):
        error = PydanticCustomError("value_error", "Value error, {error}", {"error": str(error)})
    return InitErrorDetails(type=error, loc=location, input=value)
