"""What a report says of a training, from the log in the adapter's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.pipeline.stages.training_summary import (
    build_loss_curves,
    describe_kept_epoch,
    describe_training,
)
from distill_dagster.student.types import TRAINING_LOG_FILE, PhaseLog, TrainingLog


def write_log(folder: Path, first_epoch: int, losses: list[float], **values: Any) -> Path:
    validation = [{"epoch": float(first_epoch + n), "loss": loss} for n, loss in enumerate(losses)]
    epochs = first_epoch + len(losses) - 1
    log = TrainingLog([(10, 1.0, 0.5)], validation=validation, epochs=epochs, steps=10 * epochs, **values)
    (folder / TRAINING_LOG_FILE).write_text(json.dumps(log.to_dict()))
    return folder


@pytest.mark.parametrize(
    ("first_epoch", "losses", "values", "text"),
    [
        (1, [0.5, 0.3, 0.4], {"best_epoch": 2}, "Epoch 2 of 3 is kept: its validation loss is 0.300, the lowest."),
        (
            0,
            [0.5, 0.4, 0.45],
            {"best_epoch": 1, "kept": "fine-tuned"},
            "The fine-tuned student of epoch 1 of 2 is kept: its validation loss is 0.400, "
            "that of its linear probe 0.500.",
        ),
        (
            0,
            [0.5, 0.7, 0.6],
            {"best_epoch": 0, "kept": "linear probe"},
            "The linear probe is kept: its validation loss is 0.500, and fine-tuning came to 0.600 at best.",
        ),
        (1, [0.5, 0.6], {}, ""),
    ],
)
def test_the_kept_epoch_in_words(
    tmp_path: Path, first_epoch: int, losses: list[float], values: dict[str, Any], text: str
) -> None:
    assert describe_kept_epoch(write_log(tmp_path, first_epoch, losses, **values)) == text


def test_the_probe_of_an_encoder_is_the_start_of_the_curve(tmp_path: Path) -> None:
    curves = build_loss_curves(write_log(tmp_path, 0, [0.5, 0.4], best_epoch=1, kept="fine-tuned"))
    assert curves == {"training": [(10.0, 0.5)], "validation": [(0.0, 0.5), (10.0, 0.4)]}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"objective": {"kind": "soft_label", "weight": 0.5, "temperature": 2.0}, "prompt": "plain", "rows": 1261},
            "The student learned the objective soft_label (weight 0.5, temperature 2.0) with plain prompts, by lora on "
            "1,261 rows.",
        ),
        (
            {
                "objective": {"kind": "reasoning", "max_reasoning_tokens": None},
                "method": "full",
                "rows": 4,
                "trainable_parameters": 1200,
                "total_parameters": 1300,
                "phases": [PhaseLog("preference")],
            },
            "The student learned the objective reasoning, by full on 4 rows, which trained 1,200 of 1,300 weights, "
            "then preference.",
        ),
        ({}, ""),
    ],
)
def test_the_objective_in_words(tmp_path: Path, values: dict[str, Any], text: str) -> None:
    assert describe_training(write_log(tmp_path, 1, [0.5, 0.4], **values)) == text


def test_without_a_log_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert (describe_kept_epoch(tmp_path), build_loss_curves(tmp_path)) == ("", {})
