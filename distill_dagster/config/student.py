"""Settings of students."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from distill_dagster.config.answers import LABEL_KINDS
from distill_dagster.config.base import STUDENT_NAME_PATTERN, ConfigModel
from distill_dagster.config.checkpoint import CheckpointSpec
from distill_dagster.config.data_mix import DataMixSpec
from distill_dagster.config.matching import AttentionObjectiveSpec, HiddenStateObjectiveSpec
from distill_dagster.config.objective import (
    MATCHING_OBJECTIVES,
    REASONING_OBJECTIVES,
    SHORT_FORMS,
    WRITING_OBJECTIVES,
    AnswerObjectiveSpec,
    Objective,
    ObjectiveField,
    ReasoningObjectiveSpec,
    build_objective,
    check_objective,
)
from distill_dagster.config.phases import PhaseSpec, check_phase
from distill_dagster.config.presets import PresetName, apply_preset
from distill_dagster.config.shrink import ShrinkSpec


class LoraSpec(ConfigModel):
    """Low-rank adapters (Hu et al. 2021)."""

    rank: Annotated[int, Field(ge=1, le=512)] = Field(
        default=16, description="rank of the update of each weight matrix: more can learn more and takes more memory"
    )
    alpha: Annotated[float, Field(gt=0)] = Field(default=32, description="scale of the update, divided by the rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="dropout within the adapter")
    target_modules: str | list[str] = Field(
        default="all-linear", description="names of the layers that get an adapter; all-linear: every linear layer"
    )
    last_layers: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="adapt only this many transformer layers, counted from the output; training computes the layers "
        "below once per row, not once per epoch",
    )


class StudentSpec(ConfigModel):
    """A student: a causal LM that writes its answer, or an encoder with a classification head."""

    preset: PresetName | None = Field(
        default=None,
        description="a model by a short name, with settings that fit it; what is set here next to it is kept, and "
        "`model` and `architecture` may be left out",
    )
    model: str = Field(
        default="", description="name of a packaged model, a folder, or a Hugging Face id; a preset names its own"
    )
    architecture: Literal["causal_lm", "encoder"] = Field(
        default="causal_lm",
        description="causal_lm: a language model that writes its answer; encoder: an embedding model with a head "
        "for labels; a preset has its own, otherwise it must be set",
    )
    prompt: Literal["auto", "chat", "plain"] = Field(
        default="auto",
        description="what a causal_lm reads. chat: the base's own chat template, with `instructions` as system text; "
        "plain: `item: text` without instructions, which takes fewer tokens; auto: chat if the base has a template "
        "that can be trained on, and it fits in `max_tokens` with the instructions, else plain",
    )
    revision: str | None = Field(default=None, description="branch, tag or commit of a Hugging Face id")
    shrink: ShrinkSpec | None = Field(
        default=None, description="make the student shallower than its model; by default it has all layers"
    )
    method: Literal["lora", "qlora", "dora", "rslora", "full"] = Field(
        default="lora",
        description="what is trained. lora: low-rank adapters; qlora: the same on 4-bit weights (Dettmers et al. "
        "2023); dora: adapters that learn length and direction of each weight (Liu et al. 2024); rslora: adapters "
        "scaled by the root of their rank (Kalajdzievski 2023); full: all weights",
    )
    lora: LoraSpec = LoraSpec()
    quantization: Literal["none", "nf4"] = Field(default="none", description="nf4: the older form of `method: qlora`")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="number format of the weights; auto: bfloat16 if the GPU or processor computes in it, else float32",
    )
    epochs: Annotated[int, Field(ge=1, le=200)] = Field(default=2, description="most passes over the dataset")
    patience: Annotated[int, Field(ge=1, le=200)] | None = Field(
        default=2,
        description="early stopping: the epoch with the lowest validation loss is kept, and training stops after this "
        "many epochs without a lower one; null: all epochs run and the last is kept",
    )
    seed_only_epochs: Annotated[int, Field(ge=1, le=500)] | None = Field(
        default=None, description="epochs of seed_only; by default `epochs`"
    )
    batch_size: Annotated[int, Field(ge=1, le=1024)] = Field(default=16, description="rows per step")
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        default="auto",
        description="rows that are computed at once, which changes memory and speed; auto: as many rows of a step as "
        "fit in memory",
    )
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=5e-4, description="highest learning rate; it falls linearly to 0"
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="learning rate of each layer as a share of that of the layer above it; what is above the layers, "
        "such as a head, has `learning_rate` (Howard and Ruder 2018); 1: one rate for all",
    )
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="share of the steps in which the learning rate rises"
    )
    objective: ObjectiveField = Field(
        default=None,
        description="what training minimizes, a name or a block; by default soft_label for a task with labels, "
        "reasoning for written answers of a task with `reasoning: true`, else answer",
    )
    temperature: Annotated[float, Field(gt=0, le=20)] | None = Field(
        default=None, description="older form of `objective: {kind: soft_label, temperature: …}`"
    )
    soft_weight: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="older form of `objective: {kind: soft_label, weight: …}`; 0: learn the chosen label only",
    )
    max_tokens: Annotated[int, Field(ge=8, le=8192)] = Field(
        default=256, description="longest prompt in tokens; longer ones are cut"
    )
    answer_tokens: Annotated[int, Field(ge=1, le=8192)] = Field(
        default=256, description="longest written answer in tokens, with its reasoning, in training and prediction"
    )
    max_cut_targets: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="most rows, as a share, whose written answer may be longer than `answer_tokens`; their end is not "
        "learned, and with more of them training does not start",
    )
    reasoning: bool = Field(
        default=False, description="older form of `objective: reasoning`, for a task with labels and `reasoning: true`"
    )
    data: DataMixSpec = DataMixSpec()
    teacher: str | None = Field(
        default=None,
        description="student:<name>: learn from the answers of another student of this task, an assistant between the "
        "teacher and a small student (Mirzadeh et al. 2020); by default from the teacher's",
    )
    checkpoint: CheckpointSpec = CheckpointSpec()
    then: list[PhaseSpec] = Field(
        default=[],
        description="phases of training that follow the objective, in order; they need the extra `align`, and only the "
        "distilled student has them",
    )
    seed: int = Field(default=0, description="seed of initial weights and of the order of rows")

    @model_validator(mode="before")
    @classmethod
    def _set_quantization(cls, data: Any) -> Any:
        """`method: qlora` and `quantization: nf4` are one setting: each form sets the other."""
        if not isinstance(data, dict):
            return data
        method, quantization = data.get("method"), data.get("quantization")
        if method == "qlora" and quantization in (None, "nf4"):
            return data | {"quantization": "nf4"}
        if quantization == "nf4" and method is None:
            return data | {"method": "qlora"}
        if quantization == "nf4" or method == "qlora":
            raise ValueError(f"quantization {quantization} contradicts method {method}. Keep `method` alone.")
        return data

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, data: Any) -> Any:
        filled = apply_preset(data)
        if isinstance(filled, dict) and not filled.get("preset"):
            missing = [f"`{name}`" for name in ("model", "architecture") if not filled.get(name)]
            if missing:
                raise PydanticCustomError(
                    "missing", f"{' and '.join(missing)} required. Set both, or `preset` in their place"
                )
        return filled

    @model_validator(mode="after")
    def _refuse_lora_of_full(self) -> StudentSpec:
        if self.method == "full" and "lora" in self.model_fields_set:
            raise ValueError("`method: full` trains all weights and has no adapter. Leave `lora` out.")
        return self

    @model_validator(mode="after")
    def _check_forms(self) -> StudentSpec:
        both = [name for name in SHORT_FORMS if getattr(self, name) is not None and getattr(self, name) is not False]
        if self.objective is not None and both:
            raise ValueError(
                f"`objective` and its older form `{both[0]}` are both given. Keep `objective` and remove `{both[0]}`"
            )
        return self

    @property
    def has_preference_phase(self) -> bool:
        """Whether the student learns from preference pairs."""
        return any(phase.kind == "preference" for phase in self.then)

    @field_validator("teacher")
    @classmethod
    def _check_teacher(cls, value: str | None) -> str | None:
        if value is not None and not STUDENT_NAME_PATTERN.fullmatch(value.removeprefix("student:")):
            raise ValueError(f"{value!r} is not the name of a student")
        if value is not None and not value.startswith("student:"):
            raise ValueError(
                f"write `student:{value}` for a student of this task; leave it out for the teacher of the task"
            )
        return value

    @property
    def assistant(self) -> str | None:
        """The name of the student that teaches this one; None if the task's teacher does."""
        return self.teacher.removeprefix("student:") if self.teacher else None

    @property
    def starts_trained(self) -> bool:
        """Whether training begins with layers of the student that teaches this one."""
        return self.shrink is not None and self.shrink.start == "teacher"

    def resolve_objective(self, has_labels: bool, task_reasoning: bool) -> Objective:
        """The objective of this student: the one that is given, or the default of its task.

        Args:
            task_reasoning: whether the teacher is asked for its reasoning.
        """
        if self.objective is not None:
            return self.objective
        return build_objective(self.soft_weight, self.temperature, self.reasoning, has_labels, task_reasoning)

    def keep_rows_only(self, writes_reasoning: bool) -> StudentSpec:
        """The same student if it learns from rows alone: no phases, and nothing of a model that it could imitate."""
        changed: dict[str, Any] = {"then": []}
        if self.objective is not None and self.objective.kind == "token_kd":
            thinks, answers = ReasoningObjectiveSpec(kind="reasoning"), AnswerObjectiveSpec(kind="answer")
            changed["objective"] = thinks if writes_reasoning else answers
        elif isinstance(self.objective, HiddenStateObjectiveSpec | AttentionObjectiveSpec):
            changed["objective"] = build_objective(
                self.objective.weight, self.objective.temperature, False, True, False
            )
        if self.shrink is not None:
            changed["shrink"] = self.shrink.model_copy(update={"start": "model"})
        return self.model_copy(update=changed)

    def without_reasoning(self) -> StudentSpec:
        """The same student if only labels are there to learn from: an objective of reasoning becomes `answer`."""
        has_reasoning = self.objective is not None and self.objective.kind in REASONING_OBJECTIVES
        objective = AnswerObjectiveSpec(kind="answer") if has_reasoning else self.objective
        return self.model_copy(update={"objective": objective, "reasoning": False})


RUN_SETTINGS = ("checkpoint", "micro_batch_size")
"""A student's settings that do not change what it learns. With others of them it is not trained again."""

WRITTEN_ANSWER_SETTINGS = ("answer_tokens", "max_cut_targets")
"""A student's settings of what it writes. A student that chooses a label has no use for them."""

BASE_MODEL_SETTINGS = (
    "model",
    "architecture",
    "revision",
    "shrink",
    "quantization",
    "dtype",
    "prompt",
    "max_tokens",
    "answer_tokens",
)
"""A student's settings that change the answers of its base, the untrained model."""


def reads_assistant(student: StudentSpec, objective: Objective) -> bool:
    """Whether a student needs the weights of the student that teaches it, not only its answers."""
    reads_layers = student.starts_trained or objective.kind in MATCHING_OBJECTIVES
    return reads_layers or (objective.kind == "token_kd" and objective.teacher is None)


def check_student(name: str, student: StudentSpec, kind: str, reasoning: bool) -> None:
    """Check that a student can learn the answers of a task.

    Args:
        reasoning: whether the teacher is asked for its reasoning.

    Raises:
        ValueError: it cannot, or its name is not allowed.
    """
    if not STUDENT_NAME_PATTERN.fullmatch(name):
        raise ValueError(f"student name {name!r} must match {STUDENT_NAME_PATTERN.pattern}")
    if student.architecture == "encoder" and kind not in LABEL_KINDS:
        raise ValueError(
            f"student {name!r} is an encoder, which chooses among labels; kind {kind} needs `architecture: causal_lm`"
        )
    if student.architecture == "encoder" and student.prompt == "chat":
        raise ValueError(f"student {name!r} is an encoder, which reads no chat template. Leave out `prompt: chat`")
    if student.architecture == "encoder" and student.prompt == "plain":
        raise ValueError(f"student {name!r} is an encoder, which reads the text alone. Leave out `prompt: plain`")
    if student.reasoning and kind not in LABEL_KINDS:
        raise ValueError(
            f"student {name!r}: reasoning is for kinds with labels; a student of kind {kind} learns it if the task "
            f"has `reasoning: true`. Leave it out"
        )
    objective = student.resolve_objective(kind in LABEL_KINDS, reasoning)
    writes = kind not in LABEL_KINDS or objective.kind in REASONING_OBJECTIVES
    if unused := [
        f"`{field}`" for field in WRITTEN_ANSWER_SETTINGS if field in student.model_fields_set and not writes
    ]:
        raise ValueError(
            f"student {name!r} chooses a label and writes no text, so {' and '.join(unused)} would change nothing. "
            f"Leave it out. `max_tokens` is the longest prompt"
        )
    try:
        check_objective(objective, student.architecture, kind, reasoning)
        for phase in student.then:
            check_phase(phase, student.architecture, kind not in LABEL_KINDS or objective.kind in WRITING_OBJECTIVES)
    except ValueError as error:
        raise ValueError(f"student {name!r}: {error}") from None
    if objective.kind == "token_kd" and objective.teacher is None and objective.revision is not None:
        raise ValueError(
            f"student {name!r}: `objective.revision` is that of `objective.teacher`, which is not set. Set it, or "
            f"leave `revision` out"
        )
    if objective.kind in MATCHING_OBJECTIVES and student.shrink is None and student.assistant is None:
        raise ValueError(
            f"student {name!r}: objective {objective.kind} imitates a deeper encoder. Set `shrink`, so that it "
            f"imitates its own model in full depth, or `teacher: student:<name>`"
        )
    if student.starts_trained:
        if student.assistant is None:
            raise ValueError(
                f"student {name!r}: `shrink.start: teacher` begins with the layers of a trained student. Name it with "
                f"`teacher: student:<name>`"
            )
        if student.method != "full":
            raise ValueError(
                f"student {name!r}: `shrink.start: teacher` needs `method: full`. An adapter would need the weights of "
                f"{student.assistant!r} in every place where it runs"
            )
    if objective.kind == "token_kd" and objective.teacher is None and student.assistant is None:
        raise ValueError(
            f"student {name!r}: objective token_kd needs a teacher whose probabilities can be read. Set "
            f"`objective.teacher` to a local model, or `teacher: student:<name>`"
        )
