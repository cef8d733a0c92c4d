"""Settings of students."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill_dagster.config.answers import LABEL_KINDS
from distill_dagster.config.base import STUDENT_NAME_PATTERN, ConfigModel


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
        description="adapt only this many transformer layers, counted from the output; training a causal_lm computes "
        "the layers below once per row, not once per epoch",
    )


class StudentSpec(ConfigModel):
    """A student: a causal LM that writes its answer, or an encoder with a classification head."""

    model: str = Field(description="name of a packaged model, a folder, or a Hugging Face id")
    architecture: Literal["causal_lm", "encoder"] = Field(
        description="causal_lm: a language model that writes its answer; encoder: an embedding model with a head "
        "for labels"
    )
    revision: str | None = Field(default=None, description="branch, tag or commit of a Hugging Face id")
    lora: LoraSpec = LoraSpec()
    quantization: Literal["none", "nf4"] = Field(
        default="none", description="nf4: train on 4-bit weights (QLoRA, Dettmers et al. 2023); needs a GPU"
    )
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
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=5e-4, description="highest learning rate; it falls linearly to 0"
    )
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="share of the steps in which the learning rate rises"
    )
    temperature: Annotated[float, Field(gt=0, le=20)] = Field(default=1.0, description="of the distillation loss")
    soft_weight: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="1: learn soft labels only, 0: learn the chosen label only"
    )
    max_tokens: Annotated[int, Field(ge=8, le=8192)] = Field(
        default=256, description="longest prompt in tokens; longer ones are cut"
    )
    answer_tokens: Annotated[int, Field(ge=1, le=8192)] = Field(
        default=256, description="longest written answer in tokens, with its reasoning, in training and prediction"
    )
    reasoning: bool = Field(
        default=False,
        description="for a task with labels and `reasoning: true`: learn to write the teacher's reasoning and then "
        "the label, instead of choosing the label at once",
    )
    seed: int = Field(default=0, description="seed of initial weights and of the order of rows")


BASE_MODEL_SETTINGS = (
    "model",
    "architecture",
    "revision",
    "quantization",
    "dtype",
    "max_tokens",
    "answer_tokens",
    "reasoning",
)
"""A student's settings that change the answers of its base, the untrained model."""


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
    if student.reasoning and kind not in LABEL_KINDS:
        raise ValueError(
            f"student {name!r}: reasoning is for kinds with labels; a student of kind {kind} learns it if the task "
            f"has `reasoning: true`. Leave it out"
        )
    if student.reasoning and not reasoning:
        raise ValueError(
            f"student {name!r} cannot learn reasoning that the teacher is not asked for: set `reasoning: true` "
            f"for the task"
        )
    if student.reasoning and student.architecture == "encoder":
        raise ValueError(
            f"student {name!r} is an encoder, which writes nothing; reasoning needs `architecture: causal_lm`"
        )
