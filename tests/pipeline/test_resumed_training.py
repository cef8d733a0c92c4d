"""A stage that trains goes on where it was stopped, and says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from distill_dagster.core import progress
from distill_dagster.pipeline.stages.context import StageContext
from distill_dagster.pipeline.stages.students import make_student_adapter
from distill_dagster.tables import lake
from distill_dagster.tables.lake import ArtifactRecord
from tests.pipeline.test_student_data import build_dataset
from tests.support.task import build_stage_context, write_small_task
from tests.support.tiny_model import write_tiny_model


class StoppedError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def env(tmp_path: Path) -> Iterator[StageContext]:
    model = write_tiny_model(tmp_path / "model", size=32)
    student = {"model": str(model), "architecture": "causal_lm", "prompt": "plain", "epochs": 1, "batch_size": 8}
    folder = write_small_task(tmp_path, students={"tiny": student | {"checkpoint": {"every_steps": 2}}})
    env = replace(build_stage_context(folder, tmp_path / "home"), models=tmp_path / "models")
    env.lake.write(env.task_name, build_dataset(), ArtifactRecord("filtered_dataset", None, "v", "4", {}))
    yield env
    env.store.close()


def test_a_stopped_stage_goes_on(env: StageContext, tmp_path: Path) -> None:
    work = env.get_training_folder("student_adapter", "tiny")
    assert work == tmp_path / "home" / "training" / env.task_name / "student_adapter" / "tiny"

    def stop(made: progress.Progress) -> None:
        if made.done == 4:
            raise StoppedError

    with progress.listen_to_progress(stop), pytest.raises(StoppedError):
        make_student_adapter(env, "tiny")
    made = make_student_adapter(env, "tiny")
    assert made.shown["resumed_at"] == "2"
    assert not (work / "checkpoints").exists()
    assert list(work.glob("tensorboard/*/events.*"))
    again = make_student_adapter(env, "tiny")
    assert "resumed_at" not in again.shown
    assert again.record.data_version == made.record.data_version


def test_a_stage_that_ends_before_its_folder_is_stored_trains_little_again(
    env: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Path) -> None:
        raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr(lake, "swap_folder", stop)
        with pytest.raises(StoppedError):
            make_student_adapter(env, "tiny")
    work = env.get_training_folder("student_adapter", "tiny")
    assert work is not None
    steps = [int(path.name.removeprefix("checkpoint-")) for path in work.glob("checkpoints/*/checkpoint-*")]
    # The machine was slow before it ended: these seconds are part of what the training cost.
    for path in work.glob("checkpoints/*/checkpoint-*/progress.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 1000.0}))
    made = make_student_adapter(env, "tiny")
    assert made.shown["resumed_at"] == str(max(steps))
    assert 1000 < made.record.extra["model_s"] < 1500
    assert not (work / "checkpoints").exists()
