"""A student that learns its teacher's probabilities token by token, through the stages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from distill_dagster.pipeline.stages.assistants import make_assistant_labels
from distill_dagster.pipeline.stages.students import make_assistant_adapter, make_student_adapter
from distill_dagster.tables.lake import ArtifactRecord
from distill_dagster.tables.schemas import DATASET, build_frame
from tests.support.task import TEXTS, build_stage_context, write_small_task
from tests.support.tiny_model import write_tiny_model


def build_dataset() -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    for label, texts in TEXTS.items():
        for number, text in enumerate(texts):
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": label}]
            columns = {"prompt_id": f"{label}{number}", "slice": "shop", "answer": f'"{label}"', "messages": turns}
            columns |= {"weight": 1.0, "split": "train", "teacher": "t", "completion_ids": [f"c-{label}{number}"]}
            rows.append(dict.fromkeys(DATASET) | columns)
    return build_frame(rows, DATASET, ("prompt_id",))


def test_a_student_reads_the_weights_of_the_student_that_teaches_it(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    large: dict[str, Any] = {"model": str(model), "architecture": "causal_lm", "prompt": "plain", "epochs": 1}
    small = large | {"teacher": "student:large", "objective": "token_kd"}
    hard = large | {"teacher": "student:large", "objective": "answer"}
    students = {"large": large, "small": small, "hard": hard}
    folder = write_small_task(tmp_path, students=students)
    env = replace(build_stage_context(folder, tmp_path / "home"), models=tmp_path / "models")
    env.lake.write(env.task_name, build_dataset(), ArtifactRecord("filtered_dataset", None, "v", "5", {}))
    make_assistant_adapter(env, "large")
    make_assistant_labels(env, "large")
    learned, read = (make_student_adapter(env, name).record for name in ("small", "hard"))
    env.store.close()
    assert {"assistant_labels[large]", "assistant_adapter[large]"} <= set(learned.inputs)
    assert "assistant_adapter[large]" not in read.inputs, "its answers are enough"
    log = json.loads((env.lake.get_folder(env.task_name, "student_adapter", "small") / "training_log.json").read_text())
    assert (log["rows_captured"], log["objective"]["kind"]) == (12, "token_kd")
    assert set(log["loss_parts"]) == {"answer", "token_kd"}
    [file] = (tmp_path / "models" / "token_log_probs").glob("*.parquet")
    assert pl.read_parquet(file).height == 12
