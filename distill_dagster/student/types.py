"""Inputs and outputs of students."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.tables.messages import Message, format_messages, make_user_messages

if TYPE_CHECKING:
    from distill_dagster.config import StudentSpec, Task


ValidationListener = Callable[[int, dict[str, float]], None]
"""Gets an epoch and the student's scores on the validation rows after it. See `TrainingLog.validation`."""
TRAINING_LOG_FILE = "training_log.json"
"""The file with the `TrainingLog` in an adapter's folder."""


@dataclass(frozen=True)
class TaskSettings:
    """The settings of a task that shape a student's input. `item` is what one prompt is called.

    `tools` are the functions that an answer may call, as a JSON list in OpenAI's form. None if there are none.
    """

    item: str = "Message"
    instructions: str = ""
    reasoning: bool = False
    """Whether a student that writes free text writes its reasoning before its answer."""

    tools: str | None = None

    @classmethod
    def from_task(cls, task: Task) -> TaskSettings:
        tools = [{"type": "function", "function": tool.model_dump()} for tool in task.tools]
        return cls(task.item, task.instructions, task.reasoning, to_canonical_json(tools) if tools else None)


@dataclass(frozen=True)
class StudentPrompt:
    """What a student is asked: the turns of a conversation, the oldest first.

    `tools` is a JSON list of tools that belong to this prompt alone. Those of a task are in its settings.
    """

    messages: tuple[Message, ...]
    tools: str | None = None

    @classmethod
    def from_text(cls, text: str) -> StudentPrompt:
        """A prompt with one turn, the user's."""
        return cls(tuple(make_user_messages(text)))

    @classmethod
    def from_messages(cls, messages: Iterable[Message], tools: str | None = None) -> StudentPrompt:
        return cls(tuple(messages), tools)

    @property
    def text(self) -> str:
        """The prompt as one text, for models that know no turns: embeddings and plain prompts."""
        return format_messages(self.messages)


@dataclass(frozen=True)
class TrainRow:
    """One row to learn from.

    `soft` maps labels to the teacher's probabilities; missing labels have probability 0. If it is empty, only the
    answer counts. `weight` multiplies the row's loss. `target` is the full text that a student of free text writes.
    `reasoning` is the teacher's, without the answer. `completion_id` is the teacher's answer that the target is from.
    """

    prompt_id: str
    prompt: StudentPrompt
    answer_label: str
    soft: dict[str, float] = field(default_factory=dict)
    weight: float = 1.0
    target: str | None = None
    reasoning: str | None = None
    completion_id: str | None = None


TrainedStudent = tuple["StudentSpec", Path]
"""The settings of a student, and the folder of what was trained."""


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt: the one that the dataset keeps, and one that lost against it."""

    kept: TrainRow
    rejected: TrainRow


@dataclass(frozen=True)
class Prediction:
    """A student's answer to one prompt.

    `probs` has every label in the task's order and sums to 1. `raw_text` is what the model would write. For free text,
    `probs` is empty, `label` is the raw text, and `is_cut` says that it was cut before its end.
    """

    label: str
    probs: dict[str, float]
    raw_text: str
    is_cut: bool = False


class Predictor(Protocol):
    """A model that is ready to predict.

    `parameters` counts the deployed weights. `bytes` is the size on disk of the base's weights and the adapter.
    """

    parameters: int
    bytes: int

    def predict(self, asked: list[StudentPrompt], batch_size: int = 32) -> list[Prediction]:
        """Return one prediction per prompt, in order."""
        ...


@dataclass
class PhaseLog:
    """Figures of a phase.

    `rows` counts pairs or prompts, `left_out` pairs that cannot be compared. `losses` are (step, mean loss since the
    previous entry). `metrics` are TRL's, one value per entry of `losses`. For pairs: the share in which the kept answer
    became more likely than the rejected one, by how much, in nats times beta, and the weighted parts of a mixed loss,
    which add up to it. For own samples: their mean length in tokens and the share that was cut. `before` and `after`
    are the scores on validation; empty without validation rows.
    """

    kind: str
    rows: int = 0
    left_out: int = 0
    steps: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)


@dataclass
class TrainingLog:
    """Figures of a training. `losses` are (step, epoch, mean loss since the previous entry). `validation` is per epoch.
    `loss_parts` has (step, mean since its previous entry) of each part of the loss. The parts add up to the loss.

    `epochs` counts the epochs that ran: early stopping may end a training before the last. `best_epoch` is the one
    whose weights are kept. It is None if no epoch was chosen on validation: then the last one is kept. Epoch 0 of an
    encoder is its linear probe, before fine-tuning. `kept` names what is kept of an encoder: "linear probe" or
    "fine-tuned". `probe_penalty` is the chosen penalty of the probe.
    `rows_captured` counts the rows whose answers a local teacher had to read; those read before are kept.
    `long_reasoning` counts the rows whose reasoning is longer than the objective's `max_reasoning_tokens`.
    `prompt` is how a causal student is asked: "chat" or "plain". `target_tokens` (tokens with loss in one epoch),
    `prompts_cut` and `targets_cut` are those of `token_counts.TokenCounts`. `rows_without_target` have an empty answer
    and are left out. `rows_with_soft_labels` have the teacher's probabilities of labels; None in a log of before they
    were counted. `rows_without_reasoning` teach an answer behind another prompt than a student that writes its
    reasoning first is asked with. `padding_share` is the share of padding in the tokens of one epoch.
    `micro_batch` is what was computed at once at most: "whole step", a number of rows or of tokens with padding.
    `tokens` counts the tokens of all training rows in all epochs, without padding. `peak_mb` is the peak memory in MiB:
    of the process, or of torch on the GPU if there is one. `dtype` is the number format in which the base computes.
    `reused_layers` counts the frozen layers that ran once per text and not in every epoch.
    `phases` are those in `then`.
    """

    losses: list[tuple[int, float, float]] = field(default_factory=list)
    loss_parts: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    validation: list[dict[str, float]] = field(default_factory=list)
    resumed_at: list[int] = field(default_factory=list)
    """The steps at which the training went on from a checkpoint, after its process had ended."""
    seconds: float = 0.0
    seconds_before: float = 0.0
    """Those of `seconds` before the last checkpoint that the training went on from, in a process that has ended."""
    probe_seconds: float = 0.0
    probe_penalty: float | None = None
    epochs: int = 0
    best_epoch: int | None = None
    kept: str | None = None
    steps: int = 0
    rows: int = 0
    prompt: str | None = None
    target_tokens: int = 0
    prompts_cut: int = 0
    targets_cut: int = 0
    rows_without_target: int = 0
    rows_with_soft_labels: int | None = None
    rows_without_reasoning: int = 0
    padding_share: float = 0.0
    micro_batch: str = ""
    long_reasoning: int = 0
    rows_captured: int = 0
    tokens: int = 0
    tokens_per_s: float = 0.0
    peak_mb: float = 0.0
    dtype: str = ""
    reused_layers: int = 0
    method: str = "lora"
    objective: dict[str, Any] = field(default_factory=dict)
    """The objective with all its settings, as task.yaml would write it."""
    trainable_parameters: int = 0
    total_parameters: int = 0
    phases: list[PhaseLog] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> TrainingLog:
        """The log that `to_dict` returned, also that of an earlier version with fewer fields."""
        return cls(**value | {"phases": [PhaseLog(**phase) for phase in value.get("phases", [])]})
