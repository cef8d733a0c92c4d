"""What begins a new study: all that decides what a trial gives, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill_dagster.config import Task
from distill_dagster.tuning.search_space import SearchSetting
from distill_dagster.tuning.tune import compute_study_name
from tests.support.task import write_small_task

RANKS = SearchSetting("lora.rank", (4, 8))
EPOCHS = SearchSetting("epochs", (1, 2))
STUDENT: dict[str, Any] = {
    "model": "smollm2-135m-instruct",
    "architecture": "causal_lm",
    "lora": {"rank": 8, "alpha": 32},
}
PHASE = {"kind": "preference"}


def compute_name(task: Task, *space: SearchSetting, weights: str = "w") -> str:
    return compute_study_name(task, "s", {"filtered_dataset": "v"}, [], space or (EPOCHS,), lambda _: weights)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return write_small_task(tmp_path, students={"s": STUDENT}).task


def change(task: Task, **settings: Any) -> Task:
    spec = type(task.students["s"]).model_validate(STUDENT | settings)
    return task.model_copy(update={"students": {"s": spec}})


def test_the_prompt_and_the_weights_begin_a_new_study(task: Task) -> None:
    name = compute_name(task)
    assert compute_name(task, weights="other") != name
    for settings in ({"instructions": "Sort with care."}, {"item": "Letter"}, {"labels": task.labels[:2]}):
        assert compute_name(task.model_copy(update=settings)) != name
    assert compute_name(change(task, seed=5)) != name


def test_what_no_trial_reads_keeps_the_study(task: Task) -> None:
    name = compute_name(task)
    assert compute_name(change(task, epochs=2)) == name  # tuned
    assert compute_name(change(task, micro_batch_size=1)) == name
    spec = task.students["s"].model_copy(update={"then": [PHASE]})
    assert compute_name(task.model_copy(update={"students": {"s": spec}})) == name


def test_alpha_follows_the_rank_and_its_ratio_is_not_tuned(task: Task) -> None:
    name = compute_name(task, RANKS)
    assert compute_name(change(task, lora={"rank": 4, "alpha": 16}), RANKS) == name  # as `--apply` writes it
    assert compute_name(change(task, lora={"rank": 8, "alpha": 16}), RANKS) != name
    alphas = SearchSetting("lora.alpha", (16, 32))
    both = compute_name(task, RANKS, alphas)
    assert compute_name(change(task, lora={"rank": 8, "alpha": 16}), RANKS, alphas) == both
    root = compute_name(change(task, method="rslora"), RANKS)
    assert compute_name(change(task, method="rslora", lora={"rank": 4, "alpha": 32}), RANKS) == root
    assert compute_name(change(task, method="rslora", lora={"rank": 4, "alpha": 16}), RANKS) != root
