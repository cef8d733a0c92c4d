"""Which values of a student's settings are tried, and how they are written into its block of task.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill_dagster.config import LoraSpec, StudentSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.tuning.search_space import (
    SearchSetting,
    build_default_space,
    build_spec,
    check_space,
    list_edits,
    parse_search,
    read_current,
    round_value,
)
from tests.support.task import write_small_task

ENCODER: dict[str, Any] = {"model": "all-minilm-l6-v2", "architecture": "encoder"}
DEFAULT = build_default_space(StudentSpec(**ENCODER), has_soft_labels=True)


def names(space: list[SearchSetting]) -> list[str]:
    return [setting.name for setting in space]


def test_only_settings_that_do_something_are_tuned() -> None:
    assert names(DEFAULT) == ["learning_rate", "batch_size", "epochs", "lora.rank", "soft_weight"]
    full = build_default_space(StudentSpec(**ENCODER, method="full"), has_soft_labels=False)
    assert names(full) == ["learning_rate", "batch_size", "epochs"]
    assert full[0].high < DEFAULT[0].high  # all weights need smaller steps
    chosen = StudentSpec.model_validate(ENCODER | {"objective": {"kind": "soft_label", "weight": 0.7}})
    assert names(build_default_space(chosen, has_soft_labels=True))[-1] == "objective.weight"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("lora.rank", DEFAULT[3]),
        ("lora.rank=2, 4", SearchSetting("lora.rank", (2, 4))),
        ("learning_rate=1e-4..1e-2", SearchSetting("learning_rate", low=1e-4, high=1e-2)),
        ("epochs=2..6", SearchSetting("epochs", low=2, high=6)),
        ("lora.last_layers=null,2", SearchSetting("lora.last_layers", (None, 2))),
        ("dtype=float32,bfloat16", SearchSetting("dtype", ("float32", "bfloat16"))),
    ],
)
def test_search_options(option: str, expected: SearchSetting) -> None:
    assert parse_search([option], DEFAULT) == [expected]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("warmup_ratio", "values are missing. Tuned by default: learning_rate, batch_size"),
        ("=4", "values are missing"),
        ("micro_batch_size=1,2", "micro_batch_size does not change what a student learns"),
        ("checkpoint.every_steps=1,2", "does not change what a student learns"),
        ("epochs=6..2", "a range goes from a number to a larger one"),
        ("dtype=a..b", "a range goes from a number to a larger one"),
    ],
)
def test_search_options_with_a_mistake(option: str, message: str) -> None:
    with pytest.raises(DistillError, match=message):
        parse_search([option], DEFAULT)


def test_the_current_settings() -> None:
    spec = StudentSpec(**ENCODER, lora=LoraSpec(rank=24), learning_rate=0.02)
    current = read_current(spec, names(DEFAULT))
    assert current == {"learning_rate": 0.02, "batch_size": 16, "epochs": 2, "lora.rank": 24, "soft_weight": 0.5}
    space = {setting.name: setting.include(current[setting.name]) for setting in DEFAULT}
    assert space["lora.rank"].choices == (4, 8, 16, 24, 32)
    assert (space["learning_rate"].low, space["learning_rate"].high) == (1e-4, 0.02)
    with pytest.raises(DistillError, match="a student has no such setting"):
        read_current(spec, ["lora.size"])
    with pytest.raises(DistillError, match="this is a block"):
        read_current(spec, ["lora"])


@pytest.mark.parametrize(
    ("block", "settings", "expected"),
    [
        ({}, {"lora.rank": 8}, [(("lora", "rank"), 8), (("lora", "alpha"), 16.0)]),
        ({"lora": {"rank": 4, "alpha": 4}}, {"lora.rank": 8}, [(("lora", "rank"), 8), (("lora", "alpha"), 8.0)]),
        ({"lora": {"rank": 8, "alpha": 16}}, {"lora.rank": 8}, []),
        ({"method": "rslora"}, {"lora.rank": 8}, [(("lora", "rank"), 8)]),
        ({"epochs": 3}, {"epochs": 3, "batch_size": 8}, [(("batch_size",), 8)]),
        (
            {"objective": "soft_label"},
            {"objective.weight": 1.0, "objective.temperature": 2.0},
            [(("objective",), {"kind": "soft_label", "weight": 1.0}), (("objective", "temperature"), 2.0)],
        ),
    ],
)
def test_edits_of_a_block(block: dict[str, Any], settings: dict[str, Any], expected: list[Any]) -> None:
    assert list_edits(ENCODER | block, settings) == expected


def test_every_value_is_checked_before_the_first_trial(tmp_path: Path) -> None:
    task = write_small_task(tmp_path).task
    check_space(task, "tiny", ENCODER, DEFAULT)
    assert build_spec(task, "tiny", ENCODER, {"lora.rank": 8}).lora.alpha == 16
    with pytest.raises(DistillError, match=r"batch_size: Input should be greater than or equal to 1 \(batch_size 0\)"):
        check_space(task, "tiny", ENCODER, [SearchSetting("batch_size", low=0, high=4)])
    with pytest.raises(DistillError, match="needs reasoning that the teacher is not asked for"):
        check_space(task, "tiny", ENCODER, [SearchSetting("objective", ("answer", "reasoning"))])


def test_a_value_has_the_digits_that_a_person_would_write() -> None:
    assert [round_value(value) for value in (0.00123456, 12, True, None)] == [0.00123, 12, True, None]
