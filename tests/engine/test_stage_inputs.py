"""A stage reads what the stage table declares for it, all of it and nothing else, and its record says what it read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from distill_dagster.config import BudgetSpec
from distill_dagster.pipeline import retry_backoff
from distill_dagster.pipeline.stage_table import STAGES
from distill_dagster.pipeline.stages.context import StageContext, StageInputs
from distill_dagster.tables.lake import ArtifactRecord
from distill_dagster.tables.schemas import PROMPTS
from distill_dagster.teacher.completions.usage import Usage
from tests.support.task import env_of, small_task

ASKING = [name for name, stage in STAGES.items() if stage.purpose is not None]


@pytest.fixture
def env(tmp_path: Path) -> Iterator[StageContext]:
    env = env_of(small_task(tmp_path), tmp_path / "home")
    yield env
    env.store.close()


def test_an_input_that_the_table_does_not_declare_cannot_be_read(env: StageContext) -> None:
    inputs = StageInputs(env, "seed_prompts", "shop")
    with pytest.raises(AssertionError, match="seed_prompts reads golden_set, which the stage table does not declare"):
        inputs.note_source("golden_set")


def test_a_declared_input_has_to_be_read(env: StageContext) -> None:
    inputs = StageInputs(env, "seed_prompts", "shop")
    inputs.note_source("teacher_settings")
    with pytest.raises(AssertionError, match=r"declares the input slice_files\[shop\] and does not read it"):
        inputs.build_record("v", 0)


def test_inputs_follow_the_features_of_the_task(tmp_path: Path, env: StageContext) -> None:
    assert "slice_label_adapter" not in StageInputs(env, "predictions", "tiny").upstream
    assert "imagine_settings" not in StageInputs(env, "seed_prompts", "shop").upstream
    folder = small_task(tmp_path / "other", imagine={"per_request": 2})
    (folder.path / "slices" / "shop.yaml").rename(folder.path / "slices" / "refund.yaml")
    (folder.path / "slices" / "web.yaml").rename(folder.path / "slices" / "login.yaml")
    other = replace(env, folder=folder)
    assert "slice_label_adapter" in StageInputs(other, "predictions", "tiny").upstream
    assert "imagine_settings" in StageInputs(other, "seed_prompts", "refund").upstream


def test_an_artifact_that_the_graph_no_longer_has_is_no_input(env: StageContext) -> None:
    """All slices were named like labels once, so the lake still has that adapter."""
    stage = STAGES["slice_label_adapter"]
    record = ArtifactRecord("slice_label_adapter", "tiny", "v", stage.code_version, {})
    env.lake.write(env.task_name, PROMPTS.to_frame(), record)
    with pytest.raises(AssertionError, match="predictions reads slice_label_adapter"):
        StageInputs(env, "predictions", "tiny").read_table("slice_label_adapter", PROMPTS, "tiny")


@pytest.mark.parametrize("asset", ASKING)
@pytest.mark.parametrize("stopped", [None, "budget.usd is reached"], ids=["failed", "budget stop"])
def test_every_stage_that_asks_notes_when_it_asks_again(
    env: StageContext, asset: str, stopped: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StageInputs, "_check_complete", lambda _: None)
    env = replace(env, cap=BudgetSpec(usd=1.0))
    partition = "shop" if STAGES[asset].partition == "slice" else None
    for tries in (1, 2):
        inputs = StageInputs(env, asset, partition)
        record = inputs.write_table(pl.DataFrame(schema=PROMPTS), [], 3, Usage(stopped=stopped))
        assert record.extra["missing"]["tries"] == tries
    now = record.extra["missing"]["at"]
    assert retry_backoff.explain_wait(record, env.budget, now) is not None
    assert (retry_backoff.explain_wait(record, BudgetSpec(usd=2.0), now) is None) is (stopped is not None)
    fixed = StageInputs(env, asset, partition).write_table(pl.DataFrame(schema=PROMPTS), [], 0, Usage())
    assert "missing" not in fixed.extra
