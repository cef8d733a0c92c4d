"""An optimizer step is the same however it is computed: in one piece or in several, on one rank or on two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from distill_dagster.config import LoraSpec, StudentSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.student import losses
from distill_dagster.student.batches import LengthBatchSampler, MicroBatches
from distill_dagster.student.causal import CausalStudent
from distill_dagster.student.checkpoints import list_trained_weights
from distill_dagster.student.train import train_adapter
from tests.student.test_training import LABELS, ROWS, SETTINGS
from tests.support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from distill_dagster.student.trainer import StudentTrainer

WEIGHTED = [replace(row, weight=0.5 + number % 3) for number, row in enumerate(ROWS[:24])]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> StudentSpec:
    model = write_tiny_model(tmp_path_factory.mktemp("tiny"), size=32)
    return StudentSpec(
        model=str(model), architecture="causal_lm", lora=LoraSpec(rank=4), batch_size=16, learning_rate=1e-2
    )


def build_trainer(spec: StudentSpec, folder: Path, micro_batch_size: int) -> StudentTrainer:
    """For three epochs of two steps, the second with 8 rows."""
    from distill_dagster.student.trainer import StudentTrainer, build_arguments

    student = CausalStudent(spec, LABELS, SETTINGS, folder)
    student.add_adapter()
    items = student.encode(WEIGHTED)
    batches = LengthBatchSampler([item["length"] for item in items], spec.batch_size, spec.seed)
    arguments = build_arguments(spec, folder, 3, len(batches))
    return StudentTrainer(student, items, batches, MicroBatches(micro_batch_size), arguments, [])


def fit(spec: StudentSpec, folder: Path, micro_batch_size: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Trained weights and logged losses."""
    trainer = build_trainer(spec, folder, micro_batch_size)
    trainer.train()
    weights = {name: weight.detach() for name, weight in list_trained_weights(trainer.student.trained_module).items()}
    return weights, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_sixteen_rows_at_once_equal_four_times_four(spec: StudentSpec, tmp_path: Path) -> None:
    whole, losses_of_whole = fit(spec, tmp_path, 16)
    for size in (4, 3):  # 3: the last part of a step is smaller
        cut, losses_of_cut = fit(spec, tmp_path, size)
        assert losses_of_cut == pytest.approx(losses_of_whole, abs=1e-5)
        for name, weight in whole.items():
            torch.testing.assert_close(cut[name], weight, atol=1e-5, rtol=0)
    assert len(losses_of_whole) == 6
    assert losses_of_whole[-1] < losses_of_whole[0]


def test_a_logged_loss_is_the_weighted_mean_over_the_rows(spec: StudentSpec, tmp_path: Path) -> None:
    """The first step starts from an untrained adapter, so its loss can be computed from the base alone."""
    _, logged = fit(spec, tmp_path, 4)
    student = CausalStudent(spec, LABELS, SETTINGS, tmp_path)
    items = student.encode(WEIGHTED)
    first = next(iter(LengthBatchSampler([item["length"] for item in items], spec.batch_size, spec.seed)))
    batch = student.collate([items[row] for row in first])
    with torch.no_grad():
        expected = (losses.sum_parts(student.compute_loss(batch)) * batch["weight"]).mean()
    assert logged[0] == pytest.approx(float(expected), abs=1e-5)


def test_a_rank_without_rows_in_the_first_step_has_a_scale_of_the_loss(spec: StudentSpec, tmp_path: Path) -> None:
    """The scaler of float16 gets its scale in a backward pass, and its optimizer cannot make a step before."""
    trainer = build_trainer(spec, tmp_path, 4)
    scaler = torch.amp.GradScaler("cpu")
    trainer.accelerator.scaler = scaler
    assert trainer.training_step(trainer.model, []) == 0
    optimizer = trainer.create_optimizer()
    for weight in trainer.model.parameters():
        if weight.requires_grad:  # what the other ranks gave
            weight.grad = torch.ones_like(weight)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert all(
        (weight.grad == 1 / scaler.get_scale()).all()
        for weight in trainer.model.parameters()
        if weight.grad is not None
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU trains in float16, with a scaled loss")
def test_float16_is_refused_without_a_gpu(spec: StudentSpec, tmp_path: Path) -> None:
    half = spec.model_copy(update={"dtype": "float16"})
    with pytest.raises(DistillError, match="`dtype: float16` trains on a GPU only"):
        train_adapter(half, LABELS, SETTINGS, ROWS, [], tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
