"""All of `task.yaml`: its blocks together, and their hashes by part."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticKnownError

from distill_dagster.config.answers import (
    DEFAULT_INSTRUCTIONS,
    LABEL_KINDS,
    AnswerSpec,
    LabelSpec,
    TaskKind,
    ToolSpec,
    check_answer_schema,
    check_labels,
    check_tools,
    fill_default_labels,
)
from distill_dagster.config.base import STUDENT_NAME_PATTERN, ConfigModel
from distill_dagster.config.budget import BudgetSpec
from distill_dagster.config.curation import CurationSpec
from distill_dagster.config.evaluation import EvaluationSpec, GateSpec
from distill_dagster.config.imagine import ImagineSpec
from distill_dagster.config.inbox import InboxSpec
from distill_dagster.config.judge import JudgeSpec
from distill_dagster.config.refresh import RefreshSpec
from distill_dagster.config.replay import REPLAY_PREFIX
from distill_dagster.config.student import BASE_MODEL_SETTINGS, StudentSpec, check_student
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

    kind: TaskKind
    description: Annotated[str, Field(min_length=1)]
    instructions: Annotated[str, Field(min_length=1)] = Field(
        default=None, validate_default=True, description="what is to be done; each kind has words of its own"
    )
    item: Annotated[str, Field(min_length=1, max_length=40)] = Field(
        default="Message", description="what one prompt is called in templates: Ticket, Message, Question"
    )
    owners: list[str] = Field(default=[])
    labels: list[LabelSpec] = Field(default=[], validate_default=True)
    reasoning: bool = Field(default=False, description="ask the teacher for its reasoning before the answer")
    answer: AnswerSpec = AnswerSpec()
    answer_schema: dict[str, Any] | None = Field(
        default=None, validate_default=True, description="kind extraction: JSON schema of an answer"
    )
    tools: list[ToolSpec] = Field(default=[], validate_default=True)
    teachers: dict[str, TeacherSpec] = Field(
        default={}, description="several teachers by name, instead of `teacher`; the one to trust most stands last"
    )
    cascade: CascadeSpec | None = Field(
        default=None, description="ask the next of `teachers` only where the one before is unsure; else all answer"
    )
    teacher: TeacherSpec = Field(default=None, validate_default=True)
    imagine: ImagineSpec | None = None
    judge: JudgeSpec | None = None
    students: Annotated[dict[str, StudentSpec], Field(min_length=1)]
    default_student: str | None = None
    curation: CurationSpec = CurationSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    gate: GateSpec = GateSpec()
    budget: BudgetSpec = BudgetSpec()
    refresh: RefreshSpec = RefreshSpec()
    inbox: InboxSpec = InboxSpec()

    @field_validator("instructions", mode="before")
    @classmethod
    def _own_words(cls, value: Any, info: ValidationInfo) -> Any:
        return DEFAULT_INSTRUCTIONS.get(info.data.get("kind", ""), "-") if value is None else value

    @field_validator("labels", mode="before")
    @classmethod
    def _default_labels(cls, value: Any, info: ValidationInfo) -> Any:
        return fill_default_labels(value, info.data.get("kind"))

    @field_validator("labels")
    @classmethod
    def _labels_of_kind(cls, value: list[LabelSpec], info: ValidationInfo) -> list[LabelSpec]:
        return check_labels(value, info.data.get("kind"))

    @field_validator("answer")
    @classmethod
    def _choices_of_qa(cls, value: AnswerSpec, info: ValidationInfo) -> AnswerSpec:
        if (value.choices or value.exact) and info.data.get("kind", "qa") != "qa":
            raise ValueError("answer.choices and answer.exact are for kind qa alone")
        return value

    @field_validator("answer_schema")
    @classmethod
    def _schema_of_extraction(cls, value: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        return check_answer_schema(value, info.data.get("kind"))

    @field_validator("tools")
    @classmethod
    def _tools_of_kind(cls, value: list[ToolSpec], info: ValidationInfo) -> list[ToolSpec]:
        return check_tools(value, info.data.get("kind"))

    @field_validator("teachers", mode="before")
    @classmethod
    def _short_teachers(cls, value: Any, info: ValidationInfo) -> Any:
        return {name: cls._filled(one, info) for name, one in value.items()} if isinstance(value, dict) else value

    @field_validator("teachers")
    @classmethod
    def _teacher_names(cls, value: dict[str, TeacherSpec], info: ValidationInfo) -> dict[str, TeacherSpec]:
        for name, one in value.items():
            if not STUDENT_NAME_PATTERN.fullmatch(name):
                raise ValueError(f"teacher name {name!r} must match {STUDENT_NAME_PATTERN.pattern}")
            if one.calibration != "none":
                raise ValueError(f"{name}: calibration is for a task with one teacher")
            cls._teacher_of_kind(one, info)
        return value

    @field_validator("cascade", mode="before")
    @classmethod
    def _default_cascade(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and len(info.data.get("teachers", {1: 1, 2: 2})) < 2:
            raise ValueError("a cascade wants two `teachers` or more")
        return value

    @field_validator("teacher", mode="before")
    @classmethod
    def _short_teacher(cls, value: Any, info: ValidationInfo) -> Any:
        if "teachers" not in info.data:  # they are malformed, which is said already
            return TeacherSpec(model="-") if value is None else value
        several = info.data["teachers"]
        if value is not None and several:
            raise ValueError("name one `teacher`, or several `teachers`, not both")
        if value is None:
            if not several:
                raise PydanticKnownError("missing")
            return next(iter(several.values()))
        return cls._filled(value, info)

    @classmethod
    def _filled(cls, value: Any, info: ValidationInfo) -> Any:
        return fill_teacher_defaults(value, info.data.get("kind"), info.data.get("reasoning"))

    @field_validator("teacher")
    @classmethod
    def _teacher_of_kind(cls, value: TeacherSpec, info: ValidationInfo) -> TeacherSpec:
        return check_teacher(value, info.data.get("kind"), info.data.get("reasoning"))

    @field_validator("students")
    @classmethod
    def _students_of_kind(cls, value: dict[str, StudentSpec], info: ValidationInfo) -> dict[str, StudentSpec]:
        for name, student in value.items():
            check_student(name, student, info.data.get("kind", LABEL_KINDS[0]), info.data.get("reasoning", True))
        return value

    @model_validator(mode="after")
    def _default_student(self) -> Task:
        if self.default_student is not None and self.default_student not in self.students:
            raise ValueError(f"default_student {self.default_student!r} is not one of {', '.join(self.students)}")
        return self

    @property
    def free(self) -> bool:
        """Whether everybody that is asked is embedded or a replay and costs nothing."""
        imaginer = self.imagine.teacher if self.imagine else None
        models = [one.model for one in self.teacher_specs]
        models += [one.model for one in (imaginer, self.judge) if one is not None]
        return all(model.startswith((EMBEDDED_PREFIX, REPLAY_PREFIX)) for model in models)

    @property
    def label_names(self) -> list[str]:
        return [label.name for label in self.labels]

    @property
    def chosen_student(self) -> str:
        return self.default_student or next(iter(self.students))

    @property
    def has_labels(self) -> bool:
        return self.kind in LABEL_KINDS

    @property
    def answers_are_written(self) -> bool:
        """Whether the teacher writes an answer, with its reasoning or of a kind without labels, or names a label."""
        return not self.has_labels or self.reasoning

    def answer_settings(self) -> dict[str, Any]:
        """The settings that define what an answer is, for hashes: kind, labels and the shape of an answer."""
        return {"kind": self.kind, "labels": [label.model_dump() for label in self.labels]} | self._answers()

    def _answers(self) -> dict[str, Any]:
        """What a task says of its answers beside its labels; nothing where it says nothing, so that no hash moves."""
        said = {
            "reasoning": self.reasoning or None,
            "answer": self.answer.model_dump(exclude_defaults=True) or None,
            "answer_schema": self.answer_schema,
            "tools": [tool.model_dump() for tool in self.tools] or None,
        }
        return {name: value for name, value in said.items() if value is not None}

    def each_teacher(self) -> list[tuple[str, Task]]:
        """The teachers in their order: the name in the column `teacher`, and the task as if it had that one alone."""
        if not self.teachers:
            return [(self.teacher.model, self)]
        alone: dict[str, Any] = {"teachers": {}, "cascade": None}
        return [(name, self.model_copy(update=alone | {"teacher": one})) for name, one in self.teachers.items()]

    @property
    def teacher_specs(self) -> list[TeacherSpec]:
        return list(self.teachers.values()) or [self.teacher]

    def teacher_hash(self, templates: dict[str, str]) -> str:
        """Hash of everything that shapes a teacher request or how its answer is read."""
        shared = self.answer_settings() | {"instructions": self.instructions, "item": self.item}
        asked: dict[str, Any] = {"teacher": self.teacher.result_settings()}
        if self.teachers:
            cascade = self.cascade.model_dump() if self.cascade else None
            each = [[name, one.result_settings()] for name, one in self.teachers.items()]
            asked = {"teachers": each, "cascade": cascade}
        return hash_content(shared | asked | {"templates": templates})

    def imagine_hash(self, templates: dict[str, str]) -> str:
        """Hash of everything that shapes a request for new prompts."""
        assert self.imagine is not None
        settings = self.imagine.model_dump(exclude={"teacher"})
        settings["teacher"] = self.imagine.teacher.asked_settings() if self.imagine.teacher else None
        return hash_content({"description": self.description, "imagine": settings, "templates": templates})

    def judge_hash(self, templates: dict[str, str]) -> str:
        """Hash of everything that shapes a request to the judge, but the rows themselves."""
        assert self.judge is not None
        shown = {"description": self.description, "instructions": self.instructions, "item": self.item}
        settings = self.judge.judge_settings()
        if self.judge.mode == "best_of" and not self.has_labels:
            settings["options"] = "differ as the kind says"  # it came later, and changes what is asked of these alone
        return hash_content(self.answer_settings() | shown | {"judge": settings, "templates": templates})

    def student_hash(self, student: str) -> str:
        shared = self.answer_settings() | {"instructions": self.instructions, "item": self.item}
        settings = self.students[student].model_dump()
        for name in ("answer_tokens", "reasoning"):
            if settings[name] == StudentSpec.model_fields[name].default:
                del settings[name]  # it came later: no hash moves for it
        return hash_content(shared | {"student": settings})

    def gate_hash(self) -> str:
        """Hash of what the teacher has to reach, and of the base that it is compared with."""
        base: dict[str, Any] | None = None
        if self.gate.teacher_over_base is not None:
            student = self.students[self.chosen_student]
            # Apart: the task has a setting `reasoning` of its own.
            base = {"student": student.model_dump(include=set(BASE_MODEL_SETTINGS))} | self.answer_settings()
            base |= {"instructions": self.instructions, "item": self.item}
        return hash_content({"gate": self.gate.model_dump(), "base": base})

    def evaluation_hash(self) -> str:
        named = {"labels": self.label_names} | ({} if self.has_labels else {"kind": self.kind})
        return hash_content({"evaluation": self.evaluation.model_dump()} | named | self._answers())
