"""Sentence embeddings for the teacher's stage: the pinned MiniLM, loaded once in a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from distill_dagster.config import TeacherSpec
from distill_dagster.core.embedding import EmbedFunction

if TYPE_CHECKING:
    import numpy as np

    from distill_dagster.student.predict import Embedder


def make_sentence_embedder(spec: TeacherSpec, models_folder: Path) -> EmbedFunction | None:
    """What `few_shot.nearest` finds examples with, or None where the task does not ask for it. Loads nothing yet.

    Calling it raises `ModelError` where the model cannot be found or loaded.
    """
    if not spec.few_shot.nearest:
        return None

    def embed(texts: list[str]) -> np.ndarray:
        return _embed_cached(models_folder, tuple(texts))

    return embed


def embed_sentences(texts: list[str], models_folder: Path) -> np.ndarray:
    """float32 (texts, 384), each row of length 1.

    Raises:
        ModelError: the model cannot be found or loaded.
    """
    with _limit_to_one_thread():
        return _load_embedder(models_folder).embed(texts)


@lru_cache(maxsize=4)
def _embed_cached(models_folder: Path, texts: tuple[str, ...]) -> np.ndarray:
    """Kept for the few-shot pool, which every slice looks up anew."""
    with _limit_to_one_thread():
        return _load_embedder(models_folder).embed(list(texts))


@lru_cache(maxsize=1)
def _load_embedder(models_folder: Path) -> Embedder:
    from distill_dagster.student.predict import SENTENCE_MODEL, Embedder

    return Embedder(SENTENCE_MODEL, models_folder)


@contextmanager
def _limit_to_one_thread() -> Iterator[None]:
    """One thread: a second one would count against the embedded teacher's in the OpenMP library that both share,
    which lets threads sleep between any two steps as soon as all of them outnumber the cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
