"""A student that learns its teacher's probabilities token by token, through the stages."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distill_dagster.config import StudentSpec
from distill_dagster.config.objective import TokenKdObjectiveSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.core.memory import Memory
from distill_dagster.pipeline.stages.assistants import make_assistant_labels
from distill_dagster.pipeline.stages.students import make_assistant_adapter, make_student_adapter
from distill_dagster.student import memory
from distill_dagster.student import train as training
from distill_dagster.student.batches import WHOLE_STEP
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainRow
from distill_dagster.tables.lake import ArtifactRecord
from distill_dagster.tables.schemas import DATASET, build_frame
from tests.support.task import TEXTS, build_stage_context, write_small_task
from tests.support.tiny_model import write_tiny_model


def build_dataset() -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    for label, texts in TEXTS.items():
        for number, text in enumerate(texts):
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": label}]
            columns: dict[str, Any] = {"prompt_id": f"{label}{number}", "slice": "shop", "answer": f'"{label}"'}
            columns |= {"messages": turns, "weight": 1.0, "split": "train", "teacher": "t"}
            columns |= {"completion_ids": [f"c-{label}{number}"]}
            rows.append(dict.fromkeys(DATASET) | columns)
    return build_frame(rows, DATASET, ("prompt_id",))


def test_a_teacher_that_does_not_fit_in_memory_is_named_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has read before is enough: then it is not loaded, and need not fit."""
    model = write_tiny_model(tmp_path / "model")
    teacher = write_tiny_model(tmp_path / "teacher", seed=1)
    objective = TokenKdObjectiveSpec(kind="token_kd", teacher=str(teacher))
    spec = StudentSpec(model=str(model), architecture="causal_lm", prompt="plain", epochs=1, objective=objective)
    rows = [TrainRow(text, StudentPrompt.from_text(text), text) for text in ("abc", "defg")]
    train = partial(train_adapter, spec, [], TaskSettings(), rows, [], models_folder=tmp_path, captured=tmp_path)
    train(tmp_path / "before")
    monkeypatch.setattr(memory, "measure_training_memory", lambda: Memory(10**9, 10**9))
    monkeypatch.setattr(memory, "SHARE_OF_FREE", 1e-6)
    monkeypatch.setattr(training, "check_model_fits", lambda *_, **__: None)
    monkeypatch.setattr(training, "choose_micro_batches", lambda *_, **__: WHOLE_STEP)
    train(tmp_path / "again")
    rows.append(TrainRow("new", StudentPrompt.from_text("new"), "new"))
    with pytest.raises(DistillError, match=r"The teacher .*teacher needs about .* next to the student"):
        train(tmp_path / "new")


def test_a_student_that_teaches_must_fit_in_memory_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_tiny_model(tmp_path / "model")
    settings = {"model": str(model), "architecture": "causal_lm", "prompt": "plain", "epochs": 1}
    large = StudentSpec.model_validate(settings)
    small = StudentSpec.model_validate(settings | {"objective": "token_kd"})
    rows = [TrainRow(text, StudentPrompt.from_text(text), text) for text in ("abc", "defg")]
    train_adapter(large, [], TaskSettings(), rows, [], tmp_path / "large", tmp_path)
    train = partial(train_adapter, small, [], TaskSettings(), rows, [], tmp_path / "small", tmp_path)
    monkeypatch.setattr(memory, "measure_training_memory", lambda: Memory(10**9, 10**4))
    monkeypatch.setattr(training, "check_model_fits", lambda *_, **__: None)
    with pytest.raises(DistillError, match=r"The teacher .*model needs about .* next to the student"):
        train(captured=tmp_path, assistant=(large, tmp_path / "large"))


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
    made, other = (make_student_adapter(env, name) for name in ("small", "hard"))
    learned, read = made.record, other.record
    env.store.close()
    assert {"assistant_labels[large]", "assistant_adapter[large]"} <= set(learned.inputs)
    assert "assistant_adapter[large]" not in read.inputs, "its answers are enough"
    log = json.loads((env.lake.get_folder(env.task_name, "student_adapter", "small") / "training_log.json").read_text())
    assert (log["rows_captured"], log["objective"]["kind"]) == (12, "token_kd")
    assert set(log["loss_parts"]) == {"answer", "token_kd"}
    assert made.shown["rows_captured"] == 12
    assert made.shown["objective"] == "token_kd (top_k 32, weight 0.5, temperature 1.0)"
    [file] = (tmp_path / "models" / "token_log_probs").glob("*.parquet")
    assert pl.read_parquet(file).height == 12
