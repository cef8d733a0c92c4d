"""Parts of a stage as tasks of a Ray cluster, the comparison of texts as a Ray Data job, training through Ray Train."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import ray
import torch
from safetensors.torch import load_file

from distill_dagster.config import CurationSpec, LabelSpec, LoraSpec, StudentSpec
from distill_dagster.core import progress
from distill_dagster.core.errors import DistillError
from distill_dagster.core.ray_workers import RayWorkers
from distill_dagster.curation.dataset import comparison_cache
from distill_dagster.curation.dataset.comparison_cache import ComparisonCache
from distill_dagster.curation.dataset.curate import CuratedDataset, curate_dataset
from distill_dagster.curation.dedup import ray_duplicates
from distill_dagster.student.ray_ranks import RayRanks
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainRow
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.schemas import SCORED, build_frame
from tests.curation.test_steps import LABELS, items, row
from tests.support.ray_cluster import RayCluster
from tests.support.tiny_model import write_tiny_model

pytestmark = [pytest.mark.scale, pytest.mark.slow]
SENTENCE = "the order came late and its box was wet so now we ask for a new one or our money"


@pytest.fixture(scope="module")
def workers(cluster: RayCluster) -> Iterator[RayWorkers]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        yield RayWorkers(cluster.address)
        ray.shutdown()


def make_candidates() -> pl.DataFrame:
    """Texts in groups of near-duplicates: one word of each is another, and each third is repeated exactly."""
    rows = []
    for group in range(40):
        words = [f"{word}{group}" for word in SENTENCE.split()]
        for n in range(4):
            text = " ".join([*words[:n], *(["other"] if n else []), *words[n + 1 :]])
            rows.append(row(text, confidence=0.5 + n / 10))
            if group % 3 == 0 and n == 1:
                rows.append(row(text, slice="web", confidence=0.95))
    return build_frame(rows, SCORED, ("prompt_id", "slice"))


def test_a_cut_on_ray_is_that_of_one_process(
    workers: RayWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates, golden = make_candidates(), items(" ".join(f"{word}7" for word in SENTENCE.split()))
    spec = CurationSpec.model_validate({"validation_share": 0.2, "filters": {"min_confidence": 0.55}})
    monkeypatch.setattr(comparison_cache, "RAY_MIN_ROWS", 10)
    monkeypatch.setattr(ray_duplicates, "PART_ROWS", 20)

    def cut(**more: Any) -> CuratedDataset:
        return curate_dataset(candidates, set(), LABELS, spec, items=golden, **more)

    cache = ComparisonCache(tmp_path / "kept")
    alone, spread = cut(), cut(workers=workers, cache=cache)
    assert alone.count_reasons()["near_duplicate"] > 60
    assert alone.count_reasons()["contaminated"] > 0
    assert alone.count_reasons()["duplicate"] > 0
    for one, other in ((alone.dataset, spread.dataset), (alone.rejected, spread.rejected)):
        assert compute_data_version(one) == compute_data_version(other)
        assert one.equals(other)
    monkeypatch.setattr(ray_duplicates, "find_duplicates_on_ray", None)
    assert cut(workers=workers, cache=cache).dataset.equals(alone.dataset), "the pairs were kept"


def die_once(marker: Path, part: int) -> int:
    if part == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return part * 10


def refuse(part: int) -> int:
    raise DistillError(f"Part {part} cannot be used. Remove it.")


def test_a_part_whose_worker_dies_is_computed_again(workers: RayWorkers, tmp_path: Path) -> None:
    assert list(workers.map(partial(die_once, tmp_path / "died"), range(4))) == [0, 10, 20, 30]
    assert (tmp_path / "died").exists()


def test_an_error_of_a_part_is_the_error_of_the_stage(workers: RayWorkers) -> None:
    with pytest.raises(DistillError, match=r"^Part 0 cannot be used\. Remove it\.$"):
        list(workers.map(refuse, [0]))


def test_two_workers_train_what_one_process_trains(workers: RayWorkers, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny", size=32)
    labels = [LabelSpec(name=name, description=name) for name in ("red", "blue")]
    texts = ["rye bread", "a flat tyre", "rolls", "my chain is rusty again", "a plum cake", "a bell", "sour loaf"]
    rows = [TrainRow(str(n), StudentPrompt.from_text(text), ("red", "blue")[n % 2]) for n, text in enumerate(texts)]
    spec = StudentSpec(
        model=str(model), architecture="causal_lm", lora=LoraSpec(rank=4), batch_size=3, learning_rate=1e-2, epochs=2
    )

    def train(name: str, **more: Any) -> Any:
        return train_adapter(
            spec, labels, TaskSettings(item="Ticket"), rows, rows[:3], tmp_path / name, tmp_path, **more
        )

    alone = train("alone")
    made: list[progress.Progress] = []
    with progress.listen_to_progress(made.append):
        spread = train("spread", launch=RayRanks(workers, 2), work=tmp_path / "work" / "spread")
    assert [loss for *_, loss in spread.losses] == pytest.approx([loss for *_, loss in alone.losses], abs=1e-4)
    weights = load_file(tmp_path / "spread" / "adapter_model.safetensors")
    for name, weight in load_file(tmp_path / "alone" / "adapter_model.safetensors").items():
        torch.testing.assert_close(weights[name], weight, atol=1e-4, rtol=0)
    assert {path.name for path in (tmp_path / "spread").iterdir()} == {p.name for p in (tmp_path / "alone").iterdir()}
    assert list((tmp_path / "work").iterdir()) == [tmp_path / "work" / "spread"], "what Ray Train wrote is gone"


def test_an_error_of_a_rank_is_the_error_of_the_training(workers: RayWorkers, tmp_path: Path) -> None:
    spec = StudentSpec(model=str(tmp_path / "nowhere"), architecture="causal_lm")
    rows = [TrainRow("0", StudentPrompt.from_text("rye bread"), "red")]
    labels = [LabelSpec(name=name, description=name) for name in ("red", "blue")]
    with pytest.raises(DistillError, match="nowhere"):
        train_adapter(
            spec, labels, TaskSettings(item="Ticket"), rows, [], tmp_path / "out", tmp_path, launch=RayRanks(workers, 2)
        )
    with pytest.raises(DistillError, match=r"train_processes.* is 64"):
        RayRanks(workers, 64)(((None,) * 5 + (tmp_path / "out",)), {})
