"""A stage that trains goes on where it was stopped, and says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distill_dagster.core import progress
from distill_dagster.pipeline.stages.students import make_student_adapter
from distill_dagster.tables.lake import ArtifactRecord
from tests.pipeline.test_student_data import build_dataset
from tests.support.task import build_stage_context, write_small_task
from tests.support.tiny_model import write_tiny_model


class StoppedError(Exception):
    """Stands for the end of the process."""


def test_a_stopped_stage_goes_on(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", size=32)
    student = {"model": str(model), "architecture": "causal_lm", "prompt": "plain", "epochs": 1, "batch_size": 8}
    folder = write_small_task(tmp_path, students={"tiny": student | {"checkpoint": {"every_steps": 2}}})
    env = replace(build_stage_context(folder, tmp_path / "home"), models=tmp_path / "models")
    env.lake.write(env.task_name, build_dataset(), ArtifactRecord("filtered_dataset", None, "v", "4", {}))
    work = env.get_training_folder("student_adapter", "tiny")
    assert work == tmp_path / "home" / "training" / folder.name / "student_adapter" / "tiny"

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
    env.store.close()
