"""Load predictors: a student with its adapter, its base, and baselines on frozen sentence embeddings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.config import StudentSpec
from distill_dagster.core import progress
from distill_dagster.core.errors import ModelError
from distill_dagster.core.hashing import hash_content
from distill_dagster.student import loading
from distill_dagster.student.encoder import EncoderStudent
from distill_dagster.student.label_predictions import build_label_prediction
from distill_dagster.student.linear_probe import (
    COSINE_TEMPERATURE,
    LinearHead,
    ProbeRows,
    build_probe_rows,
    fit_linear_probe,
    format_descriptions,
    limit_rows,
)
from distill_dagster.student.sentences import SENTENCE_MODEL, SentenceEmbedder
from distill_dagster.student.train import PROMPT_FILE, Student, choose_student_class
from distill_dagster.student.types import Prediction, Predictor, StudentPrompt, TaskSettings, TrainRow

if TYPE_CHECKING:
    from distill_dagster.config import LabelSpec


def load_predictor(
    spec: StudentSpec,
    labels: list[LabelSpec],
    settings: TaskSettings,
    models_folder: Path,
    adapter: Path | None = None,
) -> Predictor:
    """Load a student with what was trained, in the folder `adapter`, or without one its base.

    The base of a causal model is the same model with the same input. The base of an encoder predicts the label whose
    `name: description` is nearest to the text by the encoder's own embeddings.

    Raises:
        ModelError: the base or the adapter cannot be found or loaded, or the student was trained with other prompts
            than it would be asked with.
    """
    merge = adapter is not None and spec.quantization == "none" and spec.method != "full"
    base = spec if adapter is None else loading.find_trained_base(spec, adapter)
    student = choose_student_class(spec, labels)(base, labels, settings, models_folder, "float32" if merge else None)
    size = student.base.bytes
    if adapter is not None:
        if not isinstance(student, EncoderStudent):
            _check_prompt(student.describe_prompt(), adapter)
        student.load_adapter(adapter, merge)
        if spec.method != "full":
            size += sum(f.stat().st_size for f in adapter.glob("*.safetensors"))
    if merge:  # merge in float32, then round once
        student.to_dtype(loading.get_torch_dtype(spec.dtype))
    return StudentPredictor(student, size)


def _check_prompt(now: dict[str, Any], adapter: Path) -> None:
    """Check that a student is asked as in its training. Its template or the task's instructions may have changed."""
    file = adapter / PROMPT_FILE
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if all(before["sample"][part] == now["sample"][part] for part in ("prompt_ids", "answer_ids")):
            return
        reason = f"the sample in its {PROMPT_FILE} has other tokens"
    elif now["prompt"] == "plain":  # before students had this file, all prompts were plain
        return
    else:
        reason = f"it has no {PROMPT_FILE}, so its prompts were plain"
    raise ModelError(
        f"{adapter} was trained with other prompts than the {now['prompt']} prompts that it would get now: {reason}. "
        f"Train the student again."
    )


BATCH_PROMPTS = 32
"""Prompts that a student answers at once."""


class StudentPredictor:
    """Predictions of a student, with its adapter or without."""

    def __init__(self, student: Student, size: int) -> None:
        self.student = student
        self.parameters: int = student.base.parameters
        self.bytes: int = size

    def predict(self, asked: list[StudentPrompt], batch_size: int = BATCH_PROMPTS) -> list[Prediction]:
        """Return one prediction per prompt, in order. Prompts of similar length share a batch."""
        predictions: dict[int, Prediction] = {}
        lengths = [len(prompt.text) for prompt in asked]
        order = sorted(range(len(asked)), key=lengths.__getitem__)
        for start in range(0, len(order), batch_size):
            if len(order) > batch_size:
                progress.report_progress("predicting answers", start, len(order))
            part = order[start : start + batch_size]
            predictions |= zip(part, self.student.predict_batch([asked[i] for i in part]), strict=True)
        return [predictions[i] for i in range(len(asked))]


class EmbeddingPredictor:
    """Predicts with a linear head on frozen sentence embeddings."""

    def __init__(self, embedder: SentenceEmbedder, head: LinearHead, labels: list[str]) -> None:
        self._embedder, self._head, self._labels = embedder, head, labels
        self.parameters: int = embedder.parameters + head.weight.size + head.bias.size
        self.bytes: int = embedder.bytes + head.weight.nbytes + head.bias.nbytes

    def predict(self, asked: list[StudentPrompt], batch_size: int = BATCH_PROMPTS) -> list[Prediction]:
        """Return one prediction per prompt, in order."""
        from scipy.special import softmax

        if not asked:
            return []
        vectors = self._embedder.embed([prompt.text for prompt in asked], batch_size)
        probs = softmax(self._head.compute_logits(vectors).astype("float64"), axis=1)
        return [build_label_prediction(self._labels, row.tolist()) for row in probs]


def build_centroid_predictor(
    example_texts: list[str],
    example_labels: list[str],
    labels: list[LabelSpec],
    models_folder: Path,
    model: str = SENTENCE_MODEL,
) -> Predictor:
    """Build the nearest class centroid, a baseline without training: the mean embedding of each label's examples.

    Probabilities are a softmax of cosine / 0.05. A label without an example is never predicted. Decontamination may
    remove the only example of a label.

    Raises:
        ModelError: the model cannot be found or loaded.
        ValueError: no label has an example.
    """
    import numpy as np

    names = [label.name for label in labels]
    if not set(names) & set(example_labels):
        raise ValueError("no label has an example")
    embedder = SentenceEmbedder(models_folder, model)
    vectors = embedder.embed(example_texts)
    weight = np.zeros((len(names), vectors.shape[1]), dtype=vectors.dtype)
    bias = np.full(len(names), -np.inf, dtype=vectors.dtype)
    for number, name in enumerate(names):
        if name in example_labels:
            mean = vectors[[label == name for label in example_labels]].mean(0)
            weight[number], bias[number] = mean / np.linalg.norm(mean) / COSINE_TEMPERATURE, 0
    return EmbeddingPredictor(embedder, LinearHead(weight, bias), names)


def build_linear_probe_predictor(
    rows: list[TrainRow],
    validation: list[TrainRow],
    labels: list[LabelSpec],
    models_folder: Path,
    model: str = SENTENCE_MODEL,
) -> Predictor:
    """Build a linear probe, a cheap baseline that had the teacher: it learns from the student's rows.

    Args:
        validation: rows that choose the penalty; without any, cross-validation does.

    Raises:
        ModelError: the model cannot be found or loaded.
        ValueError: there are no rows, or a row names a label that is not one of `labels`.
    """
    if not rows:
        raise ValueError("there are no rows to learn from")
    embedder = SentenceEmbedder(models_folder, model)
    key = hash_content([[asdict(row) for row in part] for part in (rows, validation)] + format_descriptions(labels))
    if (model, key) not in _LAST_PROBE:
        head = _fit_sentence_probe(embedder, rows, validation, labels)
        _LAST_PROBE.clear()
        _LAST_PROBE[model, key] = head
    return EmbeddingPredictor(embedder, _LAST_PROBE[model, key], [label.name for label in labels])


_LAST_PROBE: dict[tuple[str, str], LinearHead] = {}
"""The last probe of this process by model and hash of what taught it: the reports of all students of a task need it."""


def _fit_sentence_probe(
    embedder: SentenceEmbedder, rows: list[TrainRow], validation: list[TrainRow], labels: list[LabelSpec]
) -> LinearHead:
    names = [label.name for label in labels]

    def read(part: list[TrainRow]) -> ProbeRows:
        return build_probe_rows(part, embedder.embed([row.prompt.text for row in part]), names, soft_weight=1.0)

    anchors = embedder.embed(format_descriptions(labels))
    return fit_linear_probe(read(limit_rows(rows)), anchors, read(validation) if validation else None)
