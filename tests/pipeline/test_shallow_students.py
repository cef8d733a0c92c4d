"""A shallower student of a task: it imitates the layers of the student that teaches it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.stages.assistants import make_assistant_labels
from distill_dagster.pipeline.stages.students import make_assistant_adapter, make_student_adapter
from distill_dagster.tables.lake import ArtifactRecord
from tests.pipeline.test_assistants import ENCODER, SMALL, ask, build_dataset
from tests.support.task import TEXTS, build_stage_context, write_small_task

SHALLOW = SMALL | {"shrink": {"layers": 3}, "objective": {"kind": "hidden_state", "match_weight": 3}}


STARTED = {name: value for name, value in SMALL.items() if name != "lora"} | {
    "method": "full",
    "learning_rate": 1.0e-4,
    "shrink": {"layers": 3, "start": "teacher"},
    "objective": "soft_label",
}


@pytest.mark.parametrize("shallow", [SHALLOW, STARTED], ids=["imitates", "begins with"])
def test_a_shallow_student_learns_the_labels_and_layers_of_its_assistant(
    shallow: dict[str, Any], tmp_path: Path, models_folder: Path
) -> None:
    folder = write_small_task(tmp_path, students={"tiny": ENCODER, "shallow": shallow})
    env = replace(build_stage_context(folder, tmp_path / "home"), models=models_folder)
    env.lake.write(env.task_name, build_dataset(), ArtifactRecord("filtered_dataset", None, "v", "4", {}))
    state = TaskState(env.folder, env.lake)
    wanted = {"assistant_adapter[tiny]", "assistant_labels[tiny]", "student_settings[shallow]"}
    assert state.find_inputs(state.stages["student_adapter"], "shallow").keys() == wanted

    trained = make_assistant_adapter(env, "tiny")
    make_assistant_labels(env, "tiny")
    made = make_student_adapter(env, "shallow")
    env.store.close()
    assert made.record.inputs["assistant_adapter[tiny]"] == trained.record.data_version
    assert int(str(made.shown["total_parameters"])) < int(str(trained.shown["total_parameters"])) - 5_000_000
    asked = [text for texts in TEXTS.values() for text in texts]
    answers = [
        ask(env, asset, student, asked)
        for asset, student in (("student_adapter", "shallow"), ("assistant_adapter", "tiny"))
    ]
    assert sum(a == b for a, b in zip(*answers, strict=True)) >= 0.8 * len(asked)
