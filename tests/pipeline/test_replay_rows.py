"""Rows of an earlier dataset, which students replay next to the dataset of today."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from distill_dagster.cli import app
from distill_dagster.core.errors import DistillError, InputError
from distill_dagster.curation.dataset.data_mix import choose_replayed_rows
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.source_versions import compute_source_version
from distill_dagster.pipeline.stages.context import StageContext
from distill_dagster.pipeline.stages.replay_rows import make_replay_rows
from distill_dagster.pipeline.stages.students import build_train_rows, make_student_adapter
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.student.losses import build_soft_targets
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.types import StudentPrompt, TaskSettings
from distill_dagster.tables.lake import ArtifactRecord
from distill_dagster.tables.schemas import DATASET, REPLAY_ROWS, build_frame
from distill_dagster.tasks import TaskFolder
from distill_dagster.tasks.kept_datasets import get_kept_path, write_kept_dataset
from tests.support.kind_folder import write_kind_folder
from tests.support.task import TEXTS, build_stage_context, reload_folder, write_small_task

PLANTS = ["roses and tulips", "an old oak tree", "moss on the wall", "poppy seeds", "ferns in a pot", "a birch wood"]
"""What a slice was about that the dataset of today lacks. Its label is misleading, so only its rows can teach it."""


def build_rows(texts: list[tuple[str, str]], split: str = "train") -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    for text, label in texts:
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": label}]
        columns: dict[str, Any] = {"prompt_id": f"id of {text}", "slice": "shop", "answer": f'"{label}"'}
        columns |= {"messages": turns, "weight": 1.0, "split": split, "teacher": "large", "completion_ids": []}
        rows.append(dict.fromkeys(DATASET) | columns)
    return build_frame(rows, DATASET, ("prompt_id",))


TODAY = build_rows([(f"today {text}", label) for label, texts in TEXTS.items() for text in texts])
EARLIER = pl.concat(
    [
        build_rows([(text, "login") for text in PLANTS]),
        build_rows([("today please refund me", "refund")]),  # it is in the dataset of today
        build_rows([("TODAY a refund  is due", "refund")]),  # likewise, with other letters
        build_rows([("held out: please refund me", "refund")]),  # a row of golden
        build_rows([("well, held out: the delivery is late, I say", "delivery")]),  # nearly one
        build_rows([("a red one", "colour")]),  # the label is gone
        build_rows([("unseen", "login")], split="validation"),
    ]
)


REPLAYING = {"data": {"replay": {"dataset": "march", "share": 0.4}}}


def replay(folder: TaskFolder, kept: pl.DataFrame, tmp_path: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The rows of a kept dataset that a task replays, and what the stage counts."""
    write_kept_dataset(folder.path, "march", kept)
    env = build_stage_context(folder, tmp_path / "home")
    env.lake.write(env.task_name, TODAY, ArtifactRecord("filtered_dataset", None, "v", "4", {}))
    made = make_replay_rows(env, None)
    rows, _ = env.lake.read(env.task_name, "replay_rows", None, REPLAY_ROWS)
    env.store.close()
    return rows, made.shown["datasets"].rows[0]  # type: ignore[union-attr]


@pytest.fixture
def env(tmp_path: Path, models_folder: Path) -> Iterator[StageContext]:
    student = {"model": "all-minilm-l6-v2", "architecture": "encoder", "epochs": 3}
    folder = write_small_task(tmp_path, students={"tiny": student | REPLAYING, "plain": student})
    write_kept_dataset(folder.path, "march", EARLIER)
    env = replace(build_stage_context(folder, tmp_path / "home"), models=models_folder)
    env.lake.write(env.task_name, TODAY, ArtifactRecord("filtered_dataset", None, "v", "4", {}))
    yield env
    env.store.close()


def test_what_today_has_or_golden_has_is_not_replayed(env: StageContext) -> None:
    made = make_replay_rows(env, None)
    rows, _ = env.lake.read(env.task_name, "replay_rows", None, REPLAY_ROWS)
    assert rows["prompt_id"].to_list() == sorted(f"id of {text}" for text in PLANTS)
    assert rows["dataset"].unique().to_list() == ["march"]
    assert made.shown["datasets"].rows == [  # type: ignore[union-attr]
        {
            "dataset": "march",
            "rows": 11,
            "replayable": 6,
            "in_the_dataset": 2,
            "repeats_golden_or_dev": 2,
            "label_is_gone": 1,
            "private_data": 0,
        }
    ]
    assert all(check.passed for check in made.checks)


def test_probabilities_of_a_label_that_is_gone_are_not_replayed(tmp_path: Path) -> None:
    """A student cannot learn them, and the row's answer is one of the labels of today."""
    folder = write_small_task(tmp_path, students={"tiny": REPLAYING})
    named = [["login", "refund"], ["login", "colour"], None]
    soft = [None if names is None else [{"label": name, "prob": 0.5} for name in names] for names in named]
    rows = build_rows([(text, "login") for text in ("a fern", "b moss", "c oak")])
    kept = rows.with_columns(pl.Series("soft_labels", soft, dtype=DATASET["soft_labels"]))
    replayed, _ = replay(folder, kept, tmp_path)
    assert replayed["soft_labels"].to_list() == [soft[0], None, None]
    learned = build_train_rows(replayed, "train")
    assert build_soft_targets(learned, folder.task.label_names, 1.0)[:, 2].tolist() == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("action", ["drop", "mask"])
def test_a_filter_of_private_data_of_today_applies_to_earlier_rows(tmp_path: Path, action: str) -> None:
    filters = {"curation": {"filters": {"pii": action}}}
    folder = write_kind_folder(tmp_path, "qa", "http://unused", reasoning=True, students={"tiny": REPLAYING}, **filters)
    thought = "jane.doe@example.org is on the page."
    rows = build_rows([("a: whom to ask?", "Jane"), ("b: who?", "jane.doe@example.org"), ("c: where?", "Lisbon")])
    rows = rows.with_columns(reasoning=pl.when(pl.col("prompt_id") == "id of a: whom to ask?").then(pl.lit(thought)))
    replayed, line = replay(folder, rows, tmp_path)
    if action == "drop":
        assert replayed["answer"].to_list() == ['"Lisbon"']
    else:
        assert replayed["answer"].to_list() == ['"Jane"', '"<EMAIL>"', '"Lisbon"']
        assert replayed["reasoning"].to_list() == ["<EMAIL> is on the page.", None, None]
        targets = [turns[-1]["content"] for turns in replayed["messages"].to_list()]
        assert targets == ["Reasoning: <EMAIL> is on the page.\nAnswer: Jane", "<EMAIL>", "Lisbon"]
        assert [len(turns) for turns in replayed["messages"].to_list()] == [2, 2, 2]
    assert line["private_data"] == (2 if action == "drop" else 0)


def test_an_answer_of_another_form_is_not_replayed(tmp_path: Path) -> None:
    folder = write_kind_folder(tmp_path, "math", "http://unused", students={"tiny": REPLAYING})
    rows = build_rows([("one and one", "two"), ("two and two", "4")])
    rows = rows.with_columns(answer=pl.col("answer").replace({'"4"': "4"}))
    replayed, line = replay(folder, rows, tmp_path)
    assert replayed["answer"].to_list() == ["4"]
    assert (line["answer_is_invalid"], line["replayable"]) == (1, 1)


def test_a_student_remembers_what_only_the_earlier_dataset_teaches(env: StageContext) -> None:
    make_replay_rows(env, None)
    plants = [StudentPrompt.from_text(f"now {text}") for text in PLANTS]

    def train(student: str) -> tuple[int, dict[str, Any]]:
        record = make_student_adapter(env, student).record
        task, adapter = env.folder.task, env.lake.get_folder(env.task_name, "student_adapter", student)
        settings = TaskSettings.from_task(task)
        predictor = load_predictor(task.students[student], task.labels, settings, env.models, adapter)
        assert record.rows == TODAY.height + record.extra["data"]["replayed"]
        assert ("replay_rows" in record.inputs) == (student == "tiny")
        return sum(p.label == "login" for p in predictor.predict(plants)), record.extra["data"]

    remembered, data = train("tiny")
    forgotten, without = train("plain")
    assert (data["replayed"], without["replayed"]) == (6, 0)
    assert remembered >= 5
    assert forgotten <= 3
    status = TaskState(env.folder, env.lake).get_status("student_adapter", "tiny")
    assert [why for why in status.why if "replay_rows" in why] == []


def test_the_share_is_of_all_rows_and_the_choice_is_fixed_by_the_seed() -> None:
    rows = build_rows([(f"text {n}", "login") for n in range(100)])
    assert choose_replayed_rows(rows, 0.2, 80, seed=0).height == 20
    assert choose_replayed_rows(rows, 0.5, 1000, seed=0).height == 100, "there are not more"
    first, again, other = (choose_replayed_rows(rows, 0.1, 90, seed) for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first.equals(other)
    assert first["prompt_id"].is_sorted()


def test_the_source_is_its_rows_and_a_missing_dataset_is_named(env: StageContext) -> None:
    folder = env.folder
    before = compute_source_version(folder, "kept_datasets")
    path = get_kept_path(folder.path, "march")
    path.unlink()
    with pytest.raises(InputError, match=r"not kept\. Kept: none\. `distill keep shop_mail march` keeps"):
        compute_source_version(reload_folder(folder), "kept_datasets")
    (problem,) = [p for p in check_task_folder(reload_folder(folder)) if p.severity == "error"]
    assert (problem.file, problem.message) == (path, "this dataset was not kept.")
    path.write_text("text")
    with pytest.raises(InputError, match="the file is not a Parquet file"):
        compute_source_version(reload_folder(folder), "kept_datasets")
    TODAY.drop("weight").write_parquet(path)
    with pytest.raises(InputError, match="does not have the columns of a dataset"):
        compute_source_version(reload_folder(folder), "kept_datasets")
    EARLIER.write_parquet(path, compression="uncompressed")
    assert compute_source_version(reload_folder(folder), "kept_datasets") == before
    TODAY.write_parquet(path)
    assert compute_source_version(reload_folder(folder), "kept_datasets") != before


def test_the_command_keeps_the_dataset_of_today(env: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_HOME", str(env.lake.root.parent))
    monkeypatch.setenv("DISTILL_TASKS", str(env.folder.path.parent))
    kept = CliRunner().invoke(app, ["keep", "shop_mail", "april", "--json"])
    assert kept.exit_code == 0, kept.output
    path = get_kept_path(env.folder.path, "april")
    assert json.loads(kept.stdout) == {"task": "shop_mail", "dataset": "april", "rows": 0, "path": str(path)}
    assert pl.read_parquet(path).equals(TODAY)
    again = CliRunner().invoke(app, ["keep", "shop_mail", "april"])
    assert again.exit_code != 0
    assert "A kept dataset is never replaced" in again.output.replace("\n", " ")
    with pytest.raises(DistillError, match="cannot be the name of a dataset"):
        write_kept_dataset(env.folder.path, "../april", TODAY)
