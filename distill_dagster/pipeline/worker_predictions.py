"""A student's answers to many prompts, from workers that each load the student once."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from distill_dagster.config import StudentSpec
from distill_dagster.core import progress
from distill_dagster.core.workers import Workers, find_part_bounds
from distill_dagster.student.predict import BATCH_PROMPTS, load_predictor
from distill_dagster.student.types import Prediction, Predictor, StudentPrompt, TaskSettings

if TYPE_CHECKING:
    from distill_dagster.config import LabelSpec

PART_PROMPTS = 8 * BATCH_PROMPTS
"""Prompts that one worker answers at a time: whole batches, so that each batch has the same prompts on any engine."""


@dataclass(frozen=True)
class StudentSource:
    """What a worker needs to load a student: the arguments of `load_predictor`. Its folders are the same everywhere."""

    spec: StudentSpec
    labels: list[LabelSpec]
    settings: TaskSettings
    models: Path
    adapter: Path | None
    key: str = field(default_factory=lambda: uuid4().hex)

    def load(self) -> Predictor:
        """Load the student, or take it from memory if it is the last one that this process loaded."""
        if self.key not in _loaded:
            _loaded.clear()
            _loaded[self.key] = load_predictor(self.spec, self.labels, self.settings, self.models, self.adapter)
        return _loaded[self.key]


_loaded: dict[str, Predictor] = {}


class WorkerPredictor:
    """Predicts on workers. `seconds` is the time that the workers took together, without loading the student."""

    def __init__(self, source: StudentSource, workers: Workers) -> None:
        self._source, self._workers = source, workers
        self.seconds = 0.0

    def predict(self, asked: list[StudentPrompt]) -> list[Prediction]:
        """Return one prediction per prompt, in order. Batches are those of `StudentPredictor.predict`."""
        order = sorted(range(len(asked)), key=lambda n: len(asked[n].text))
        bounds = find_part_bounds(len(order), PART_PROMPTS)
        parts = ([asked[n] for n in order[start:end]] for start, end in bounds)
        found: dict[int, Prediction] = {}
        for (start, end), (predictions, seconds) in zip(
            bounds, self._workers.map(partial(_predict_part, self._source), parts), strict=True
        ):
            found |= zip(order[start:end], predictions, strict=True)
            self.seconds += seconds
            progress.report_progress("predicting answers", end, len(order))
        return [found[n] for n in range(len(asked))]


def _predict_part(source: StudentSource, prompts: list[StudentPrompt]) -> tuple[list[Prediction], float]:
    predictor = source.load()
    started = time.perf_counter()
    return predictor.predict(prompts), time.perf_counter() - started
