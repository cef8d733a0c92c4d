"""Sentence embeddings, for few-shot examples, near-duplicates and the centroid baseline."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from distill_dagster.config import StudentSpec, TeacherSpec
from distill_dagster.core.embedding import EmbedFunction
from distill_dagster.core.workers import IN_PROCESS, Workers, find_part_bounds
from distill_dagster.student import loading
from distill_dagster.student.encoder import mean_pool

if TYPE_CHECKING:
    import numpy as np

SENTENCE_MODEL = "all-minilm-l6-v2"
BATCH_TEXTS = 64
PART_TEXTS = 16 * BATCH_TEXTS
"""Texts that one worker embeds at a time: whole batches, so that each batch has the same texts on any engine."""
_MOST_REMEMBERED = 20_000
"""Embeddings that a process remembers: 30 MB of the packaged model's."""
_remembered: OrderedDict[tuple[object, str], np.ndarray] = OrderedDict()
_remembering = threading.Lock()


class SentenceEmbedder:
    """Mean-pooled, normalized sentence embeddings of an encoder (Reimers and Gurevych 2019)."""

    def __init__(
        self, models_folder: Path, model: str = SENTENCE_MODEL, revision: str | None = None, max_tokens: int = 256
    ) -> None:
        """Load the encoder.

        Raises:
            ModelError: the model cannot be found or loaded.
        """
        spec = StudentSpec(model=model, architecture="encoder", revision=revision)
        base = loading.load_base(spec, models_folder, "AutoModel")
        self._model, self._tokenizer, self._max_tokens = base.model, base.tokenizer, max_tokens
        self.parameters, self.bytes = base.parameters, base.bytes
        self._identity = (str(models_folder), model, revision, max_tokens)

    def embed(self, texts: list[str], batch_size: int = BATCH_TEXTS) -> np.ndarray:
        """Embeddings of texts: float32 (texts, dimensions), each row of length 1."""
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
                result[part] = mean_pool(self._model(**batch).last_hidden_state, batch["attention_mask"]).cpu().numpy()
        with _remembering:
            _remembered.update(((self._identity, text), row) for text, row in zip(texts, result, strict=True))
            while len(_remembered) > _MOST_REMEMBERED:
                _remembered.popitem(last=False)
        return result

    def embed_remembered(self, texts: list[str]) -> np.ndarray:
        """`embed`, with the embeddings that this process computed last for the same texts.

        They may differ in the last digits: a text's embedding depends slightly on the batch that it was in. So use this
        where figures are shown, and `embed` where something is decided or trained.
        """
        import numpy as np

        with _remembering:
            known = {text: _remembered[self._identity, text] for text in texts if (self._identity, text) in _remembered}
        missing = list(dict.fromkeys(text for text in texts if text not in known))
        if missing:
            known |= zip(missing, self.embed(missing), strict=True)
        return np.stack([known[text] for text in texts]) if texts else self.embed([])


def make_sentence_embedder(spec: TeacherSpec, models_folder: Path) -> EmbedFunction | None:
    """The function that finds examples for `few_shot.nearest`, or None if the task does not use it.

    The model is loaded on the first call, which raises `ModelError` if it cannot be found or loaded.
    """
    if not spec.few_shot.nearest:
        return None

    def embed(texts: list[str]) -> np.ndarray:
        return _embed_cached(models_folder, tuple(texts))

    return embed


def embed_sentences(texts: list[str], models_folder: Path, workers: Workers = IN_PROCESS) -> np.ndarray:
    """Embeddings of texts: float32 (texts, 384), each row of length 1. The model stays loaded in this process.

    Args:
        workers: embed parts of more than `PART_TEXTS` texts. They find the models in the same folder.

    Raises:
        ModelError: the model cannot be found or loaded.
    """
    if workers.is_remote and len(texts) > PART_TEXTS:
        return _embed_on_workers(texts, models_folder, workers)
    with _limit_to_one_thread():
        return _load_embedder(models_folder).embed(texts)


def _embed_on_workers(texts: list[str], models_folder: Path, workers: Workers) -> np.ndarray:
    import numpy as np

    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # as `SentenceEmbedder.embed` does
    bounds = find_part_bounds(len(order), PART_TEXTS)
    parts = [[texts[i] for i in order[start:end]] for start, end in bounds]
    embedded = np.concatenate(list(workers.map(partial(embed_sentences, models_folder=models_folder), parts)))
    result = np.empty_like(embedded)
    result[order] = embedded
    return result


def embed_remembered_sentences(texts: list[str], models_folder: Path) -> np.ndarray:
    """`embed_sentences`, with the embeddings that this process computed last, as `embed_remembered` says.

    Raises:
        ModelError: the model cannot be found or loaded.
    """
    with _limit_to_one_thread():
        return _load_embedder(models_folder).embed_remembered(texts)


@lru_cache(maxsize=4)
def _embed_cached(models_folder: Path, texts: tuple[str, ...]) -> np.ndarray:
    """The cache is for the few-shot pool, which every slice needs again."""
    return embed_sentences(list(texts), models_folder)


@lru_cache(maxsize=1)
def _load_embedder(models_folder: Path) -> SentenceEmbedder:
    return SentenceEmbedder(models_folder)


@contextmanager
def _limit_to_one_thread() -> Iterator[None]:
    """Run torch in one thread within this block.

    The embedded teacher uses the same OpenMP library. If all threads together outnumber the cores, OpenMP makes them
    sleep between steps.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
