"""`objective` of a student in task.yaml: what its training minimizes."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field

from distill_dagster.config.answers import LABEL_KINDS
from distill_dagster.config.base import ConfigModel, ShortForm
from distill_dagster.config.matching import AttentionObjectiveSpec, HiddenStateObjectiveSpec

MaxReasoningTokens = Annotated[
    Annotated[int, Field(ge=1, le=8192)] | None,
    Field(description="longer reasoning is not learned: such rows are left out, and counted in the training log"),
]


class AnswerObjectiveSpec(ConfigModel):
    """Learn the chosen answer: the negative log-likelihood of its label or of its tokens."""

    kind: Literal["answer"] = Field(description="answer")


class ReasoningObjectiveSpec(ConfigModel):
    """Learn to write the teacher's reasoning and then the answer, in one text."""

    kind: Literal["reasoning"] = Field(description="reasoning")
    max_reasoning_tokens: MaxReasoningTokens = None


class MultitaskObjectiveSpec(ConfigModel):
    """Learn the answer and the reasoning as two tasks of one student (Hsieh et al. 2023). It answers without reasoning.

    The two tasks share all weights, and the last words of the prompt say which one is asked. So an answer costs what
    it costs with `answer`.
    """

    kind: Literal["multitask"] = Field(description="multitask")
    rationale_weight: Annotated[float, Field(gt=0, le=100)] = Field(
        default=1.0, description="weight of the reasoning's loss; the answer's is 1"
    )
    max_reasoning_tokens: MaxReasoningTokens = None


class SoftLabelObjectiveSpec(ConfigModel):
    """Learn the teacher's probabilities of the labels (Hinton, Vinyals and Dean 2015), mixed with the chosen label."""

    kind: Literal["soft_label"] = Field(description="soft_label")
    weight: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="share of the teacher's probabilities in the loss; the rest is the chosen label"
    )
    temperature: Annotated[float, Field(gt=0, le=20)] = Field(
        default=1.0, description="both distributions are softened by it; the loss is multiplied by its square"
    )


class TokenKdObjectiveSpec(ConfigModel):
    """Learn a local teacher's probabilities of the next token along each answer, mixed with the answer itself.

    The teacher reads the student's prompt and answer once, and its log-probabilities are kept. It needs the
    vocabulary of the student.
    """

    kind: Literal["token_kd"] = Field(description="token_kd")
    teacher: str | None = Field(
        default=None,
        description="a language model with the vocabulary of the student: a packaged name, a folder or a hub id; by "
        "default the student in `teacher: student:<name>`, which knows the task",
    )
    revision: str | None = Field(default=None, description="branch, tag or commit of a Hugging Face id")
    top_k: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=32, description="tokens that are kept of each position; all others count as one"
    )
    weight: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="share of the teacher's probabilities in the loss; the rest is the answer"
    )
    temperature: Annotated[float, Field(gt=0, le=20)] = Field(
        default=1.0, description="both distributions are softened by it; the loss is multiplied by its square"
    )


Objective = (
    AnswerObjectiveSpec
    | ReasoningObjectiveSpec
    | MultitaskObjectiveSpec
    | SoftLabelObjectiveSpec
    | TokenKdObjectiveSpec
    | HiddenStateObjectiveSpec
    | AttentionObjectiveSpec
)
"""What the training of a student minimizes. The field `kind` names it."""

LABEL_OBJECTIVES = ("soft_label", "hidden_state", "attention")
"""Objectives that need labels."""
REASONING_OBJECTIVES = ("reasoning", "multitask")
"""Objectives that learn the teacher's reasoning, which the task must ask for."""
WRITING_OBJECTIVES = ("reasoning",)
"""Objectives of which a student writes its answer even if the task has labels."""
CAUSAL_OBJECTIVES = ("reasoning", "multitask", "token_kd")
"""Objectives that learn to write text, which an encoder cannot."""
MATCHING_OBJECTIVES = ("hidden_state", "attention")
"""Objectives that imitate the layers of another encoder."""
SHORT_FORMS = ("soft_weight", "temperature", "reasoning")
"""Older fields of a student that stand for an objective."""


def _expand_name(value: Any) -> Any:
    """Expand `objective: answer` to `objective: {kind: answer}`."""
    return {"kind": value} if isinstance(value, str) else value


def _list_kinds() -> list[str]:
    return [get_args(model.model_fields["kind"].annotation)[0] for model in get_args(Objective)]


ObjectiveField = Annotated[
    Annotated[Objective, Discriminator("kind")] | None,
    BeforeValidator(_expand_name),
    ShortForm({"type": "string", "enum": _list_kinds()}),
]
"""The field `objective`: a mapping with `kind`, the kind alone, or nothing."""


def build_objective(
    soft_weight: float | None, temperature: float | None, reasoning: bool, has_labels: bool, task_reasoning: bool
) -> Objective:
    """The objective that a student's older fields stand for, or the default of its task.

    By default a task with labels teaches soft labels with half the weight. A task with written answers teaches the
    reasoning if the teacher is asked for it, else the answer.

    Args:
        task_reasoning: whether the teacher is asked for its reasoning.
    """
    if reasoning or (task_reasoning and not has_labels):
        return ReasoningObjectiveSpec(kind="reasoning")
    weight = 0.5 if soft_weight is None else soft_weight
    if not has_labels or weight == 0:
        return AnswerObjectiveSpec(kind="answer")
    return SoftLabelObjectiveSpec(kind="soft_label", weight=weight, temperature=temperature or 1.0)


def writes_reasoning(objective: Objective, has_labels: bool, task_reasoning: bool) -> bool:
    """Whether a student writes reasoning before its answer. With `token_kd` it writes what the teacher wrote."""
    return objective.kind == "reasoning" or (objective.kind == "token_kd" and task_reasoning and not has_labels)


def check_objective(objective: Objective, architecture: str, kind: str, task_reasoning: bool) -> None:
    """Check that a student of this architecture can learn an objective from answers of this kind.

    Raises:
        ValueError: it cannot.
    """
    name = objective.kind
    if name in LABEL_OBJECTIVES and kind not in LABEL_KINDS:
        raise ValueError(
            f"objective {name} is for kinds with labels ({', '.join(LABEL_KINDS)}); kind {kind} has written answers. "
            f"Use answer or reasoning"
        )
    if name in REASONING_OBJECTIVES and not task_reasoning:
        raise ValueError(
            f"objective {name} needs reasoning that the teacher is not asked for: set `reasoning: true` for the task"
        )
    if name in MATCHING_OBJECTIVES and architecture != "encoder":
        raise ValueError(
            f"objective {name} imitates the layers of an encoder; it needs `architecture: encoder`. Use soft_label"
        )
    if name in CAUSAL_OBJECTIVES and architecture == "encoder":
        raise ValueError(
            f"an encoder writes nothing; objective {name} needs `architecture: causal_lm`. Use answer or soft_label"
        )
