"""What goes into a student and what comes out of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from distill_dagster.config import Task


@dataclass(frozen=True)
class TaskSettings:
    """The parts of a task that shape a student's input: what one prompt is called, and what is to be done with it."""

    item: str = "Message"
    instructions: str = ""
    reasoning: bool = False
    """Whether a student that writes its answer writes its reasoning first."""

    @classmethod
    def of(cls, task: Task) -> TaskSettings:
        return cls(task.item, task.instructions, task.reasoning)


@dataclass(frozen=True)
class TrainRow:
    """One row to learn from.

    `soft` maps labels to the teacher's probabilities (labels left out have none; empty: the answer alone counts).
    `weight` multiplies the row's loss. `target` is all that a student writes that does not choose a label.
    """

    prompt_id: str
    text: str
    answer_label: str
    soft: dict[str, float] = field(default_factory=dict)
    weight: float = 1.0
    target: str | None = None


@dataclass(frozen=True)
class Prediction:
    """`probs` holds every label in the task's order and sums to 1; `raw_text` is what the model would write.

    An answer that was written and not chosen has no `probs`, and `label` is its raw text.
    """

    label: str
    probs: dict[str, float]
    raw_text: str


class Predictor(Protocol):
    """A model that is ready to answer.

    `parameters` counts the deployed weights, `bytes` is the size on disk of the base's weights file and the adapter.
    """

    parameters: int
    bytes: int

    def predict(self, texts: list[str], batch_size: int = 32) -> list[Prediction]:
        """One prediction for each text, in order."""
        ...


@dataclass
class TrainingLog:
    """How a training went. `losses` are (step, epoch, mean loss since the entry before); `validation` is per epoch.

    `tokens` counts what was read in training without padding; `peak_mb` is the most memory the whole process ever
    held (on a GPU: that torch held there), in MiB.
    """

    losses: list[tuple[int, float, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    epochs: int = 0
    steps: int = 0
    rows: int = 0
    tokens: int = 0
    tokens_per_s: float = 0.0
    peak_mb: float = 0.0
    trainable_parameters: int = 0
    total_parameters: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
