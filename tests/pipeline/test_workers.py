"""What workers compute is what the process of a stage computes, in the same parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from distill_dagster.config import CurationSpec, LabelSpec, StudentSpec
from distill_dagster.config.deployment import RaySpec
from distill_dagster.core.ray_workers import RayWorkers
from distill_dagster.core.workers import IN_PROCESS, find_part_bounds
from distill_dagster.curation.dataset.curate import curate_dataset
from distill_dagster.curation.dedup import semantic
from distill_dagster.curation.filters import run as filters
from distill_dagster.curation.scores import add_scores
from distill_dagster.curation.scores import run as scores
from distill_dagster.curation.scores.personal_data import PERSONAL_DATA_SCORER
from distill_dagster.curation.scores.prose import PROSE_SCORER
from distill_dagster.curation.task_view import TaskView
from distill_dagster.pipeline import worker_predictions
from distill_dagster.pipeline.worker_predictions import StudentSource, WorkerPredictor
from distill_dagster.student import sentences
from distill_dagster.student.predict import StudentPredictor, load_predictor
from distill_dagster.student.ray_ranks import RayRanks
from distill_dagster.student.sentences import embed_sentences
from distill_dagster.student.types import StudentPrompt, TaskSettings
from distill_dagster.tables.schemas import SCORED, build_frame
from resources.workers import build_workers
from tests.curation.test_steps import LABELS, LONG, NEARLY, OTHER, items, row
from tests.support.tiny_model import write_tiny_model
from tests.support.workers import FakeWorkers

TEXTS = [LONG, NEARLY, OTHER, "Where is my parcel?", "Call me: +49 30 901820", "Write to jane.doe@example.org."]


def make_rows() -> pl.DataFrame:
    rows = [row(text, confidence=0.5 + n / 10) for n, text in enumerate(TEXTS)]
    return build_frame(rows, SCORED, ("prompt_id",))


def test_parts_cover_all_rows_once() -> None:
    assert find_part_bounds(5, 2) == [(0, 2), (2, 4), (4, 5)]
    assert find_part_bounds(4, 2) == [(0, 2), (2, 4)]
    assert find_part_bounds(0, 2) == []


def test_scores_of_workers_are_those_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    scorers, about, workers = [PROSE_SCORER, PERSONAL_DATA_SCORER], TaskView("generation"), FakeWorkers()
    alone = add_scores(make_rows(), scorers, about)
    assert add_scores(make_rows(), scorers, about, workers=workers).equals(alone)
    assert workers.parts == 0, "one batch stays here"
    monkeypatch.setattr(scores, "SCORING_BATCH_ROWS", 4)
    assert add_scores(make_rows(), scorers, about, workers=workers).equals(alone)
    assert workers.parts == 2


def test_embeddings_of_workers_are_those_of_one_process(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit: each batch has the same texts."""
    monkeypatch.setattr(sentences, "PART_TEXTS", 2)
    monkeypatch.setattr(sentences.SentenceEmbedder.embed, "__defaults__", (2,))
    workers = FakeWorkers()
    assert (embed_sentences(TEXTS, models_folder, workers) == embed_sentences(TEXTS, models_folder)).all()
    assert workers.parts == 3


def test_close_pairs_of_workers_are_those_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = np.random.default_rng(3).normal(size=(9, 4)).astype(np.float32)
    vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    alone = [set(zip(*pairs, strict=True)) for pairs in [semantic.find_close_pairs(vectors, 0.5)]]
    monkeypatch.setattr(semantic, "BLOCK_ROWS", 4)
    workers = FakeWorkers()
    assert [set(zip(*semantic.find_close_pairs(vectors, 0.5, workers), strict=True))] == alone
    assert alone[0]
    assert workers.parts == 3


def test_a_cut_by_workers_is_that_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters.map_in_batches, "__defaults__", (2, IN_PROCESS))
    spec = CurationSpec.model_validate({"validation_share": 0, "filters": {"min_confidence": 0.65}})
    golden, workers = items(TEXTS[3]), FakeWorkers()

    def cut(**more: Any) -> Any:
        return curate_dataset(make_rows(), set(), LABELS, spec, items=golden, **more)

    alone, spread = cut(), cut(workers=workers)
    assert spread.dataset.equals(alone.dataset)
    assert spread.rejected.equals(alone.rejected)
    assert spread.leaks.equals(alone.leaks)
    assert alone.count_reasons()["contaminated"] == 1
    assert workers.parts == 6, "three batches, for filters and for leaks"


def test_predictions_of_workers_are_those_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_tiny_model(tmp_path / "tiny", size=32)
    labels = [LabelSpec(name=name, description=name) for name in ("red", "blue")]
    spec, settings = StudentSpec(model=str(model), architecture="causal_lm"), TaskSettings(item="Ticket")
    asked = [StudentPrompt.from_text(text) for text in TEXTS]
    monkeypatch.setattr(StudentPredictor.predict, "__defaults__", (2,))
    monkeypatch.setattr(worker_predictions, "PART_PROMPTS", 2)
    loaded: list[tuple[Any, ...]] = []

    def load(*given: Any) -> Any:
        loaded.append(given)
        return load_predictor(*given)

    monkeypatch.setattr(worker_predictions, "load_predictor", load)
    workers = FakeWorkers()
    predictor = WorkerPredictor(StudentSource(spec, labels, settings, tmp_path, None), workers)
    assert predictor.predict(asked) == load_predictor(spec, labels, settings, tmp_path).predict(asked)
    assert (workers.parts, len(loaded)) == (3, 1)
    assert predictor.seconds > 0


def test_the_deployment_says_where_stages_compute_and_train() -> None:
    one_machine = build_workers(None)
    assert one_machine.get_workers() is IN_PROCESS
    assert one_machine.get_launcher() is None
    only_runs = build_workers(RaySpec(runs=True))
    assert only_runs.get_workers() is IN_PROCESS
    assert only_runs.get_launcher() is None
    all_of_it = build_workers(RaySpec(address="10.0.0.1:6379", stages=True, train_processes=4))
    assert all_of_it.get_workers() == RayWorkers("10.0.0.1:6379")
    assert all_of_it.get_launcher() == RayRanks(RayWorkers("10.0.0.1:6379"), 4)
