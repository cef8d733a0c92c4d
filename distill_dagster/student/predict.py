"""Ready predictors: the distilled student, its base, and the class centroid of examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distill_dagster.config import StudentSpec
from distill_dagster.student import loading
from distill_dagster.student.encoder import COSINE_TEMPERATURE, mean_pool
from distill_dagster.student.free_text import FreeTextStudent
from distill_dagster.student.train import Student, choose_student_class
from distill_dagster.student.types import Prediction, Predictor, TaskSettings

if TYPE_CHECKING:
    import numpy as np

    from distill_dagster.config import LabelSpec

SENTENCE_MODEL = "all-minilm-l6-v2"


def load_predictor(
    spec: StudentSpec,
    labels: list[LabelSpec],
    settings: TaskSettings,
    models_folder: Path,
    adapter: Path | None = None,
) -> Predictor:
    """A student with its adapter or, without one, its base.

    The base of a causal model is the same model on the same input. The base of an encoder is the label whose
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
    if merge:  # added in float32, then rounded once
        student.to_dtype(loading.get_torch_dtype(spec.dtype))
    return StudentPredictor(student, size)


class StudentPredictor:
    """Answers of a causal model or of an encoder with a trained head."""

    def __init__(self, student: Student, size: int) -> None:
        self._student = student
        self.parameters: int = student.base.parameters
        self.bytes: int = size

    def predict(self, texts: list[str], batch_size: int = 32) -> list[Prediction]:
        """One prediction for each text, in order. Texts of like length share a batch."""
        student = self._student
        found: dict[int, Prediction] = {}
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            if isinstance(student, FreeTextStudent):
                words = student.write([texts[i] for i in part])
                found |= {i: Prediction(text, {}, text) for i, text in zip(part, words, strict=True)}
                continue
            probs = student.log_probs([texts[i] for i in part]).exp()
            for i, row in zip(part, probs.tolist(), strict=True):
                found[i] = _build_prediction(student.labels, row)
        return [found[i] for i in range(len(texts))]


class Embedder:
    """Mean-pooled, normalised sentence embeddings of an encoder (Reimers and Gurevych 2019)."""

    def __init__(self, model: str, models_folder: Path, revision: str | None = None, max_tokens: int = 256) -> None:
        spec = StudentSpec(model=model, architecture="encoder", revision=revision)
        base = loading.load_base(spec, models_folder, "AutoModel")
        self._model, self._tokenizer, self._max_tokens = base.model, base.tokenizer, max_tokens
        self.parameters, self.bytes = base.parameters, base.bytes

    def embed(self, texts: list[str], batch_size: int = 64) -> np.ndarray:
        """float32 (texts, dimensions), each row of length 1."""
        import numpy as np
        import torch

        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        result = np.zeros((len(texts), self._model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            batch = self._tokenizer(
                [texts[i] for i in part],
                padding=True,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            ).to(self._model.device)
            with torch.inference_mode():
                result[part] = mean_pool(self._model, batch["input_ids"], batch["attention_mask"]).cpu().numpy()
        return result


class NearestLabelPredictor:
    """The label whose embedding is nearest by cosine; probabilities are a softmax of cosine / 0.05."""

    def __init__(self, embedder: Embedder, anchors: np.ndarray, labels: list[str]) -> None:
        """`anchors` is (labels, dimensions), each row of length 1, or nan: that label is never predicted."""
        self._embedder, self._anchors, self._labels = embedder, anchors, labels
        self.parameters: int = embedder.parameters
        self.bytes: int = embedder.bytes

    def predict(self, texts: list[str], batch_size: int = 32) -> list[Prediction]:
        import numpy as np

        if not texts:
            return []
        scores = self._embedder.embed(texts, batch_size) @ self._anchors.T / COSINE_TEMPERATURE
        odds = np.nan_to_num(np.exp(scores.astype(np.float64) - np.nanmax(scores, axis=1, keepdims=True)))
        return [_build_prediction(self._labels, row.tolist()) for row in odds]


def embed_texts(texts: list[str], models_folder: Path, model: str = SENTENCE_MODEL) -> np.ndarray:
    """Embeddings of texts: float32 (texts, 384 with the default model), each row of length 1.

    Raises:
        ModelError: the model cannot be found or loaded.
    """
    return Embedder(model, models_folder).embed(texts)


def build_centroid_predictor(
    example_texts: list[str],
    example_labels: list[str],
    labels: list[LabelSpec],
    models_folder: Path,
    model: str = SENTENCE_MODEL,
) -> Predictor:
    """The nearest class centroid: the mean embedding of each label's examples. A baseline that needs no training.

    A label without an example, as where decontamination took its only one, is never predicted.

    Raises:
        ModelError: the model cannot be found or loaded.
        ValueError: no label has an example.
    """
    import numpy as np

    names = [label.name for label in labels]
    if not set(names) & set(example_labels):
        raise ValueError("no label has an example")
    embedder = Embedder(model, models_folder)
    vectors = embedder.embed(example_texts)
    means = np.full((len(names), vectors.shape[1]), np.nan, dtype=vectors.dtype)
    for number, name in enumerate(names):
        if name in example_labels:
            means[number] = vectors[[found == name for found in example_labels]].mean(0)
    return NearestLabelPredictor(embedder, means / np.linalg.norm(means, axis=1, keepdims=True), names)


def _build_prediction(labels: list[str], weights: list[float]) -> Prediction:
    total = sum(weights)
    probs = {label: weight / total for label, weight in zip(labels, weights, strict=True)}
    best = max(probs, key=probs.__getitem__)
    return Prediction(best, probs, best)
