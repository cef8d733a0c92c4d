"""Load predictors: a student with its adapter, its base, and the class centroid of examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distill_dagster.config import StudentSpec
from distill_dagster.student import loading
from distill_dagster.student.encoder import COSINE_TEMPERATURE
from distill_dagster.student.label_predictions import build_label_prediction
from distill_dagster.student.sentences import SENTENCE_MODEL, SentenceEmbedder
from distill_dagster.student.train import Student, choose_student_class
from distill_dagster.student.types import Prediction, Predictor, TaskSettings

if TYPE_CHECKING:
    import numpy as np

    from distill_dagster.config import LabelSpec


def load_predictor(
    spec: StudentSpec,
    labels: list[LabelSpec],
    settings: TaskSettings,
    models_folder: Path,
    adapter: Path | None = None,
) -> Predictor:
    """Load a student with its adapter or, without one, its base.

    The base of a causal model is the same model with the same input. The base of an encoder predicts the label whose
    `name: description` is nearest to the text by the encoder's own embeddings.

    Raises:
        ModelError: the base or the adapter cannot be found or loaded.
    """
    merge = adapter is not None and spec.quantization == "none"
    student = choose_student_class(spec, labels)(spec, labels, settings, models_folder, "float32" if merge else None)
    size = student.base.bytes
    if adapter is not None:
        student.load_adapter(adapter, merge)
        size += sum(f.stat().st_size for f in adapter.glob("*.safetensors"))
    if merge:  # merge in float32, then round once
        student.to_dtype(loading.get_torch_dtype(spec.dtype))
    return StudentPredictor(student, size)


class StudentPredictor:
    """Predictions of a student, with its adapter or without."""

    def __init__(self, student: Student, size: int) -> None:
        self._student = student
        self.parameters: int = student.base.parameters
        self.bytes: int = size

    def predict(self, texts: list[str], batch_size: int = 32) -> list[Prediction]:
        """Return one prediction per text, in order. Texts of similar length share a batch."""
        predictions: dict[int, Prediction] = {}
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            predictions |= zip(part, self._student.predict_batch([texts[i] for i in part]), strict=True)
        return [predictions[i] for i in range(len(texts))]


class NearestLabelPredictor:
    """Predicts the label whose embedding is nearest by cosine. Probabilities are a softmax of cosine / 0.05."""

    def __init__(self, embedder: SentenceEmbedder, anchors: np.ndarray, labels: list[str]) -> None:
        """`anchors` is (labels, dimensions), each row of length 1. A label with a row of NaN is never predicted."""
        self._embedder, self._anchors, self._labels = embedder, anchors, labels
        self.parameters: int = embedder.parameters
        self.bytes: int = embedder.bytes

    def predict(self, texts: list[str], batch_size: int = 32) -> list[Prediction]:
        """Return one prediction per text, in order."""
        import numpy as np

        if not texts:
            return []
        scores = self._embedder.embed(texts, batch_size) @ self._anchors.T / COSINE_TEMPERATURE
        odds = np.nan_to_num(np.exp(scores.astype(np.float64) - np.nanmax(scores, axis=1, keepdims=True)))
        return [build_label_prediction(self._labels, row.tolist()) for row in odds]


def build_centroid_predictor(
    example_texts: list[str],
    example_labels: list[str],
    labels: list[LabelSpec],
    models_folder: Path,
    model: str = SENTENCE_MODEL,
) -> Predictor:
    """Build the nearest class centroid, a baseline without training: the mean embedding of each label's examples.

    A label without an example is never predicted. Decontamination may remove the only example of a label.

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
    means = np.full((len(names), vectors.shape[1]), np.nan, dtype=vectors.dtype)
    for number, name in enumerate(names):
        if name in example_labels:
            means[number] = vectors[[label == name for label in example_labels]].mean(0)
    return NearestLabelPredictor(embedder, means / np.linalg.norm(means, axis=1, keepdims=True), names)
