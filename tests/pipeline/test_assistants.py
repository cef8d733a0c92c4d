"""A student's answers as the labels of a smaller student."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distill_dagster.core.errors import DistillError, InputError
from distill_dagster.core.files import link_files
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.stages.assistants import answer_as_assistant, make_assistant_labels
from distill_dagster.pipeline.stages.context import StageContext
from distill_dagster.pipeline.stages.students import make_assistant_adapter, make_student_adapter
from distill_dagster.pipeline.stages.training_summary import describe_rows
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.types import Prediction, StudentPrompt, TaskSettings
from distill_dagster.tables.lake import ArtifactRecord
from distill_dagster.tables.schemas import DATASET, build_frame
from tests.support.kind_folder import write_kind_folder
from tests.support.task import TEXTS, build_stage_context, write_small_task

ENCODER: dict[str, Any] = {"model": "all-minilm-l6-v2", "architecture": "encoder", "epochs": 3, "learning_rate": 2e-3}
SMALL = ENCODER | {"teacher": "student:tiny"}
PLACES = ("today {}", "since monday {}", "as I wrote, {}", "please help: {}")


def build_dataset() -> pl.DataFrame:
    """Texts of three labels, of which the teacher gets one place in four wrong, and one answer of a person."""
    answers: list[tuple[str, str, str | None]] = [
        (place.format(text), "login" if place == PLACES[3] and label == "refund" else label, "large")
        for label, texts in TEXTS.items()
        for text in texts
        for place in PLACES
    ]
    answers.append(("no idea whom to ask", "delivery", None))
    rows: list[dict[str, Any]] = []
    for number, (text, label, teacher) in enumerate(answers):
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": label}]
        columns: dict[str, Any] = {"prompt_id": f"p{number:02}", "answer": f'"{label}"', "messages": turns}
        columns |= {"slice": "shop" if teacher else "(human)", "split": "validation" if number % 9 == 8 else "train"}
        columns |= {"weight": 1.0, "soft_labels": [{"label": label, "prob": 1.0}] if teacher else None}
        columns |= {"teacher": teacher, "completion_ids": ["c1"] if teacher else []}
        rows.append(dict.fromkeys(DATASET) | columns)
    return build_frame(rows, DATASET, ("prompt_id",))


@pytest.fixture
def env(tmp_path: Path, models_folder: Path) -> Iterator[StageContext]:
    folder = write_small_task(tmp_path, students={"tiny": ENCODER, "small": SMALL, "plain": ENCODER})
    env = replace(build_stage_context(folder, tmp_path / "home"), models=models_folder)
    env.lake.write(env.task_name, build_dataset(), ArtifactRecord("filtered_dataset", None, "v", "4", {}))
    yield env
    env.store.close()


def ask(env: StageContext, asset: str, student: str, texts: list[str]) -> list[str]:
    task = env.folder.task
    adapter = env.lake.get_folder(env.task_name, asset, student)
    predictor = load_predictor(task.students[student], task.labels, TaskSettings.from_task(task), env.models, adapter)
    return [p.label for p in predictor.predict([StudentPrompt.from_text(text) for text in texts])]


def test_the_small_student_learns_the_answers_of_the_larger_one(env: StageContext) -> None:
    trained = make_assistant_adapter(env, "tiny")
    made = make_assistant_labels(env, "tiny")
    labels, _ = env.lake.read(env.task_name, "assistant_labels", "tiny", DATASET)
    dataset = build_dataset()
    assert labels.select("prompt_id", "slice", "split").equals(dataset.select("prompt_id", "slice", "split"))
    taught, people = labels.filter(pl.col("teacher").is_not_null()), labels.filter(pl.col("teacher").is_null())
    assert people.equals(dataset.filter(pl.col("teacher").is_null())), "an answer of a person stays"
    assert taught["teacher"].unique().to_list() == ["student:tiny"]
    asked = [turns[0]["content"] for turns in taught["messages"].to_list()]
    answers = [json.loads(answer) for answer in taught["answer"]]
    assert answers == ask(env, "assistant_adapter", "tiny", asked)
    assert [turns[-1]["content"] for turns in taught["messages"].to_list()] == answers
    soft = taught["soft_labels"].to_list()
    assert all(sum(entry["prob"] for entry in row) == pytest.approx(1, abs=1e-5) for row in soft)
    assert [max(row, key=lambda entry: entry["prob"])["label"] for row in soft] == answers
    teacher = dataset.filter(pl.col("teacher").is_not_null())["answer"].to_list()
    train = [split == "train" for split in taught["split"]]
    same = [json.loads(a) == b for a, b, is_train in zip(teacher, answers, train, strict=True) if is_train]
    assert made.record.extra["agreement"]["train"] == pytest.approx(sum(same) / len(same))

    make_student_adapter(env, "small")
    learned = ask(env, "student_adapter", "small", asked)
    agreement = sum(a == b for a, b in zip(learned, answers, strict=True)) / len(answers)
    assert agreement > 0.9
    copied = make_student_adapter(env, "tiny")
    assert copied.record.data_version == trained.record.data_version
    assert copied.record.rows == trained.record.rows
    assert copied.shown["trainable_parameters"] == trained.shown["trainable_parameters"]
    taught_s, extra = made.record.extra, copied.record.extra
    small = env.lake.read_record(env.task_name, "student_adapter", "small")
    assert small is not None
    assert small.extra["assistant"] == "tiny"
    folder = env.lake.get_folder(env.task_name, "student_adapter", "small")
    words = f"Its answers: {train.count(True)} of the assistant tiny, 1 of people"
    assert describe_rows(folder).startswith(words)
    assert small.extra["assistant_s"] == pytest.approx(taught_s["model_s"] + taught_s["assistant_s"])
    assert extra["assistant_s"] == trained.record.extra["model_s"]


def test_a_student_needs_only_its_own_chain(env: StageContext) -> None:
    state = TaskState(env.folder, env.lake)

    def list_needed(*students: str) -> set[str]:
        return {s.name for s in state.list_statuses(list(students), []) if s.asset.startswith(("assist", "student_"))}

    chain = {"assistant_adapter[tiny]", "assistant_labels[tiny]"}
    assert list_needed("small") == chain | {"student_adapter[small]"}
    assert list_needed("tiny") == {"assistant_adapter[tiny]", "student_adapter[tiny]"}
    assert list_needed("plain") == {"student_adapter[plain]"}
    stage = state.stages["student_adapter"]
    assert state.find_inputs(stage, "tiny").keys() == {"assistant_adapter[tiny]"}
    assert state.find_inputs(stage, "small").keys() == {"assistant_labels[tiny]", "student_settings[small]"}
    assert state.find_inputs(stage, "plain").keys() == {"filtered_dataset", "student_settings[plain]"}
    predictions = state.stages["predictions"]
    assert "assistant_adapter[tiny]" not in state.find_inputs(predictions, "plain")
    assert {"assistant_adapter[tiny]", "student_settings[tiny]"} <= state.find_inputs(predictions, "small").keys()


class Writer:
    """A student that writes its answers: the given texts, in their order."""

    parameters = bytes = 1

    def __init__(self, *texts: str, cut: str = "") -> None:
        self.texts, self.cut = texts, cut

    def predict(self, asked: list[StudentPrompt], batch_size: int = 32) -> list[Prediction]:
        return [Prediction(text, {}, text, text == self.cut) for text in self.texts[: len(asked)]]


def test_written_answers_are_read_with_their_reasoning(tmp_path: Path) -> None:
    writer = {"model": "smollm2-135m-instruct", "architecture": "causal_lm"}
    folder = write_kind_folder(tmp_path, "math", "http://unused", reasoning=True, students={"tiny": writer})
    env = build_stage_context(folder, tmp_path / "home")
    turns = [
        [{"role": "user", "content": f"{n} + 1?"}, {"role": "assistant", "content": "Answer: 9"}] for n in range(3)
    ]
    columns = {"slice": "shop", "answer": "9", "weight": 1.0, "split": "train", "teacher": "large"}
    rows = [dict.fromkeys(DATASET) | columns | {"prompt_id": f"p{n}", "messages": turns[n]} for n in range(3)]
    dataset = build_frame(rows, DATASET, ("prompt_id",))
    writes = Writer("Reasoning: one more than 0.\nAnswer: 1", "I cannot tell", "Reasoning: 2 and 1.\nAnswer: 3")
    frame = answer_as_assistant(env, dataset, writes, "tiny")
    assert frame.select("prompt_id", "answer", "reasoning").rows() == [
        ("p0", "1", "one more than 0."),
        ("p2", "3", "2 and 1."),
    ]
    assert frame["messages"][0].to_list()[-1]["content"] == "Reasoning: one more than 0.\nAnswer: 1"
    assert frame["soft_labels"].to_list() == [None, None]
    last = writes.texts[2]
    broken = answer_as_assistant(env, dataset, Writer(*writes.texts, cut=last), "tiny")
    assert broken["prompt_id"].to_list() == ["p0"], "an answer that was cut before its end is not learned"
    with pytest.raises(DistillError, match="No answer of the student 'tiny' can be read"):
        answer_as_assistant(env, dataset, Writer("?", "?", "?"), "tiny")
    people = dataset.with_columns(teacher=pl.lit(None, dtype=pl.String))
    assert answer_as_assistant(env, people, Writer(), "tiny").equals(people), "nothing was asked"
    env.store.close()


@pytest.mark.parametrize(
    ("students", "message"),
    [
        (
            {"small": ENCODER | {"teacher": "student:tinny"}},
            "there is no such student. Students that the task's teacher ",
        ),
        ({"small": ENCODER | {"teacher": "student:small"}}, "a student cannot teach itself"),
        ({"small": SMALL, "least": ENCODER | {"teacher": "student:small"}}, "One student can be between"),
        ({"small": ENCODER | {"teacher": "tiny"}}, "write `student:tiny` for a student of this task"),
        (
            {
                "tiny": {"model": "smollm2-135m-instruct", "architecture": "causal_lm"},
                "small": {
                    "model": "smollm2-135m-instruct",
                    "architecture": "causal_lm",
                    "objective": "reasoning",
                    "teacher": "student:tiny",
                },
            },
            "learns its reasoning, which that student does not write",
        ),
    ],
)
def test_a_chain_that_cannot_be_is_named(tmp_path: Path, students: dict[str, Any], message: str) -> None:
    folder = write_small_task(tmp_path, reasoning=True, students=students)
    with pytest.raises(InputError, match=message):
        _ = folder.task


def test_linked_files_share_their_content_and_leave_the_record_out(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "inner").mkdir(parents=True)
    target.mkdir()
    for name in ("weights", "inner/more", "artifact.json"):
        (source / name).write_text(name)
    link_files(source, target, leave_out=("artifact.json",))
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*")) == ["inner", "inner/more", "weights"]
    assert (target / "weights").samefile(source / "weights")
