"""What exports are made from, and what they return.

An export is a file or a folder in a release, in one format. `export_gguf` and `export_onnx` take an `ExportSource` and
the folder of the release, write below it, and return an `ExportResult`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distill_dagster.config.release import ExportName
from distill_dagster.core.checks import CheckResult, CheckSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.student.types import StudentPrompt, TaskSettings

if TYPE_CHECKING:
    from distill_dagster.config import LabelSpec, StudentSpec
    from distill_dagster.kinds import Kind

RuntimeName = Literal["adapter", "llama_server", "onnx"]
"""What can answer from an export."""
ParityStage = Literal["conversion", "quantization"]


EXPORTS_CHECK = CheckSpec(
    "exports_answer_as_adapter", "Every converted export answers as the adapter that was measured.", blocking=True
)


class ParityError(DistillError):
    """A converted export answers other than its adapter, so nothing is released."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.checks = (CheckResult(EXPORTS_CHECK.name, False, details={"why": message}),)


@dataclass(frozen=True)
class ParityPrompt:
    """A prompt with the adapter's own answer, computed in float32.

    `answer` is the label, or the text that the student writes. `log_probs` are natural logarithms: of every label in
    the task's order, or of every token of `answer_tokens`.
    """

    prompt: StudentPrompt
    prompt_tokens: tuple[int, ...]
    """The tokens of the rendered prompt, with special tokens, after truncation to `max_tokens`."""

    answer: str
    log_probs: tuple[float, ...]
    answer_tokens: tuple[int, ...] = ()
    """What a student that writes its answer wrote, with the end token. Empty if it chooses a label."""


@dataclass(frozen=True)
class DevItem:
    """A row of dev.jsonl with the adapter's answer. `reference` and `answer` are canonical JSON values of the kind.

    `answer` is None if what the student wrote is no answer. `score` is `kind.score(answer, reference)`, 0 to 1.
    """

    id: str
    prompt: StudentPrompt
    reference: Any
    answer: Any
    score: float


@dataclass(frozen=True)
class ExportSource:
    """A trained student, and what its exports are compared with.

    `adapter` is the folder of what was trained. `merged` is the same student in Hugging Face format and float32, with
    the adapter merged into its base, and with its tokenizer; an encoder's head is head.safetensors next to it.
    """

    task: str
    student: str
    adapter: Path
    merged: Path
    spec: StudentSpec
    kind: Kind
    labels: tuple[LabelSpec, ...]
    settings: TaskSettings
    models: Path
    """Converted and downloaded models, for `load_predictor`."""

    parity: tuple[ParityPrompt, ...]
    """Prompts of golden, dev and validation. Where base and student differ come first, so a lost adapter is seen."""

    dev: tuple[DevItem, ...]
    wanted: tuple[ExportName, ...]
    """What task.yaml asks for. A file that is only needed on the way is removed again."""

    margin: float = 0.05
    """By how much a quantized export's mean score on dev may be below the adapter's: `evaluation.margin`."""

    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Parity:
    """A comparison of an export with the adapter, or of a quantized export with its full one.

    `bounds` has an entry for each figure that decides. `text` is one sentence: what was compared, and if it failed,
    which figure is beyond its bound.
    """

    stage: ParityStage
    figures: Mapping[str, float]
    bounds: Mapping[str, float]
    passed: bool
    text: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Export:
    """One format of a released student.

    `path` is relative to the release's folder: the file that is loaded, or the folder. `files` are all files that
    belong to it, relative to the release's folder, and `bytes` their size. `runtime` can answer from it.
    """

    name: ExportName
    path: str
    files: tuple[str, ...]
    bytes: int
    parity: tuple[Parity, ...] = ()
    runtime: RuntimeName | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class LeftOut:
    """A format that is not in the release. `reason` is a sentence with what would change that."""

    name: ExportName
    reason: str


@dataclass(frozen=True)
class ExportResult:
    """What was exported, and what was left out."""

    exports: tuple[Export, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = field(default=())
    """What a reader of the model card should know, such as "4 bits: 5.7 bits per weight". One sentence each."""


def build_export(
    name: ExportName,
    folder: Path,
    path: str,
    files: tuple[str, ...],
    parity: tuple[Parity, ...] = (),
    runtime: RuntimeName | None = None,
) -> Export:
    """The export of these files below the folder of a release, with their size."""
    size = sum((folder / file).stat().st_size for file in files)
    return Export(name, path, files, size, parity, runtime)
