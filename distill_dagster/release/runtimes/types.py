"""The interface of a runtime: what it is asked, what it answers, and what it must know about its student."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from distill_dagster.config import LabelSpec, StudentSpec
from distill_dagster.config.objective import WRITING_OBJECTIVES
from distill_dagster.core.files import write_atomically
from distill_dagster.student.types import Predictor, StudentPrompt, TaskSettings

STUDENT_FILE = "student.json"
"""The file in a release with the `StudentSetup`."""
SERVABLE_EXPORTS = {
    "onnx": "onnx/model.onnx",
    "onnx-int8": "onnx/model_int8.onnx",
    "gguf-q8_0": "gguf/model-q8_0.gguf",
    "gguf-f16": "gguf/model-f16.gguf",
    "gguf-q4_k_m": "gguf/model-q4_k_m.gguf",
    "adapter": "adapter",
}
"""The exports that a runtime answers from, by name, with their path in a release. Served is the first that is there."""


@dataclass(frozen=True)
class StudentAnswer:
    """A student's answer to one prompt.

    For a student that chooses a label, `answer` is the label, `label_probs` has every label in the task's order and
    sums to 1, and `confidence` is the largest of them. For a student that writes, `answer` is `raw_text`, which
    `kinds.read_answer` parses, and `label_probs` is None. `confidence` is then the geometric mean of the tokens'
    probabilities, or None where the runtime does not know them.

    `finish_reason` is `stop`, or `length` if the answer was cut at `answer_tokens`. `prompt_tokens` counts what the
    model read, after cutting a prompt that is too long.
    """

    answer: str
    raw_text: str
    confidence: float | None
    label_probs: dict[str, float] | None
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str = "stop"


@dataclass(frozen=True)
class StudentSetup:
    """What a runtime must know about its student next to the export's own files.

    `models` is the folder of packaged and downloaded models. Only the adapter's runtime reads it.
    """

    spec: StudentSpec
    labels: tuple[LabelSpec, ...]
    settings: TaskSettings
    models: Path

    @property
    def label_names(self) -> list[str]:
        return [label.name for label in self.labels]

    @property
    def chooses_label(self) -> bool:
        """Whether the student chooses among the labels. Otherwise it writes its answer, a label with reasoning too."""
        objective = self.spec.resolve_objective(bool(self.labels), self.settings.reasoning)
        return bool(self.labels) and objective.kind not in WRITING_OBJECTIVES

    def with_spec(self, **changes: Any) -> StudentSetup:
        """The same student with other settings."""
        return replace(self, spec=self.spec.model_copy(update=changes))

    def load_predictor(self, folder: Path) -> Predictor:
        """Load what was trained from its folder.

        Raises:
            ModelError: it cannot be loaded.
        """
        from distill_dagster.student.predict import load_predictor  # torch, which other runtimes do without

        return load_predictor(self.spec, list(self.labels), self.settings, self.models, folder)

    def write(self, release: Path) -> None:
        """Write `student.json` into a release: all settings, since defaults may change. `models` is not part of it."""
        unused = {"lora"} if self.spec.method == "full" else set()
        value = {
            "student": self.spec.model_dump(mode="json", exclude=unused),
            "labels": [label.model_dump(mode="json") for label in self.labels],
            "settings": asdict(self.settings),
        }
        write_atomically(release / STUDENT_FILE, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, release: Path, models: Path) -> StudentSetup:
        """Read `student.json` of a release."""
        value: dict[str, Any] = json.loads((release / STUDENT_FILE).read_text(encoding="utf-8"))
        labels = tuple(LabelSpec(**label) for label in value["labels"])
        return cls(StudentSpec(**value["student"]), labels, TaskSettings(**value["settings"]), models)


class Runtime(Protocol):
    """A program that answers from one export. It is opened once, used by several threads, and closed once.

    Classes are built from the export's file or folder, a `StudentSetup` and the export's name: `(path, setup, name)`.

    `name` is the export's name. `batch_size` is how many prompts one call of `answer` should have at most.
    `concurrency` is how many calls of `answer` and `stream` may run at the same time: 1 for a model in this process,
    the number of slots for a server.

    Raises:
        ModelError: from any method, if the export cannot be loaded or its process has ended.
    """

    name: str
    batch_size: int
    concurrency: int

    def open(self) -> None:
        """Load the export, so that the next call answers without delay."""
        ...

    def close(self) -> None:
        """Give back memory and processes. Closing twice, or before `open`, does nothing."""
        ...

    def is_alive(self) -> bool:
        """Whether it is open and can answer."""
        ...

    def answer(self, prompts: Sequence[StudentPrompt]) -> list[StudentAnswer]:
        """Answer every prompt, in order. A text that is too long is cut as in training."""
        ...

    def stream(self, prompt: StudentPrompt) -> Iterator[str | StudentAnswer]:
        """Answer one prompt in pieces of text that add up to `raw_text`, and at last the whole answer.

        Closing the iterator early stops the generation. A label comes in one piece.
        """
        ...
