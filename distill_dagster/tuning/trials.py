"""One trial: train a student with some settings on the rows of its dataset, and let it answer dev."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distill_dagster.config import StudentSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.kinds import Kind, get_kind
from distill_dagster.pipeline.stages.context import StageContext, StageInputs
from distill_dagster.pipeline.stages.predictions import (
    EvaluationItem,
    build_held_out_items,
    build_validation_items,
    predict_rows,
)
from distill_dagster.pipeline.stages.students import TOKEN_LOG_PROBS, TrainingData, read_training_data
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import TaskSettings, ValidationListener
from distill_dagster.tables.schemas import DATASET
from distill_dagster.tasks import TaskFolder


class TrialsChangedError(DistillError):
    """What trials learn from has changed: a further trial cannot be compared with those before."""


@dataclass(frozen=True)
class TrialResult:
    """What a trial gave. `scores` has the score of each item, in the order of the file. `loss` is on validation."""

    scores: list[float]
    loss: float | None
    epochs: int
    best_epoch: int | None
    seconds: float
    trainable_parameters: int

    @property
    def score(self) -> float:
        """The mean score."""
        return sum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class Trials:
    """Runs trials of one student: trainings like those of its stage, with other settings.

    Phases of `then` are left out. They begin with what is tuned here.

    Attributes:
        versions: the version of each artifact when it was first read.
    """

    env: StageContext
    student: str
    versions: dict[str, str] = field(default_factory=dict)

    def read_data(self, spec: StudentSpec) -> tuple[TrainingData, dict[str, str]]:
        """What the student learns from with these settings, and the versions of the artifacts that were read.

        Raises:
            DistillError: an artifact was not made, or did not pass a blocking check.
            TrialsChangedError: an artifact was made again after it was first read.
        """
        task = self.env.folder.task
        asset = "assistant_adapter" if self.student in task.list_assistants() else "student_adapter"
        env = replace(self.env, folder=_change_student(self.env.folder, self.student, _leave_out_phases(spec)))
        inputs = StageInputs(env, asset, self.student)
        data = read_training_data(inputs)
        for name, version in inputs.versions.items():
            if self.versions.setdefault(name, version) != version:
                raise TrialsChangedError(
                    f"{name} of {self.env.folder.name} was made again while {self.student} was tuned. Run the command "
                    f"again: it begins a study on the new rows."
                )
        return data, inputs.versions

    def read_items(self) -> list[EvaluationItem]:
        """What settings are chosen on: dev with its human answers or, if it has no rows, validation.

        Raises:
            DistillError: there are neither.
        """
        folder = self.env.folder
        items = build_held_out_items("dev", folder.dev)
        if not items:
            dataset, _ = self.env.lake.read(folder.name, "filtered_dataset", None, DATASET)
            items = build_validation_items(dataset)
        if not items:
            raise DistillError(
                f"{folder.name} has no rows to choose settings on. Add human answers to dev.jsonl, or set "
                f"`curation.validation_share` above 0."
            )
        return items

    def run(
        self, spec: StudentSpec, items: list[EvaluationItem], scratch: Path, on_validation: ValidationListener
    ) -> TrialResult:
        """Train with these settings, and answer the items. What was trained is deleted.

        Args:
            scratch: where what was trained is kept until it has answered.
            on_validation: may raise an exception, which ends the trial.
        """
        task, models = self.env.folder.task, self.env.models
        settings, kind = TaskSettings.from_task(task), get_kind(task)
        data, _ = self.read_data(spec)
        with TemporaryDirectory(dir=scratch) as folder:
            trained = Path(folder)
            log = train_adapter(
                _leave_out_phases(spec),
                task.labels,
                settings,
                data.train,
                data.validation,
                trained,
                models,
                what=self.student,
                assistant=data.assistant,
                captured=models / TOKEN_LOG_PROBS,
                on_validation=on_validation,
            )
            predictor = load_predictor(spec, task.labels, settings, models, trained)
            answers = predict_rows(kind, "distilled", predictor, items)
        losses = {entry["epoch"]: entry["loss"] for entry in log.validation}
        return TrialResult(
            scores=[_score_row(kind, row) for row in answers],
            loss=losses.get(log.epochs if log.best_epoch is None else log.best_epoch),
            epochs=log.epochs,
            best_epoch=log.best_epoch,
            seconds=round(log.seconds + log.probe_seconds, 1),
            trainable_parameters=log.trainable_parameters,
        )


def _leave_out_phases(spec: StudentSpec) -> StudentSpec:
    return spec.model_copy(update={"then": []})


def _change_student(folder: TaskFolder, student: str, spec: StudentSpec) -> TaskFolder:
    """The same task folder, in which a student has other settings."""
    changed = TaskFolder(folder.path, folder.accepted, folder.find_problems)
    # A cached property that is set is not read from the file.
    vars(changed)["task"] = folder.task.model_copy(update={"students": {**folder.task.students, student: spec}})
    return changed


def _score_row(kind: Kind, row: dict[str, Any]) -> float:
    """The score of one answer, as the report computes it."""
    return kind.score(None if row["answer"] is None else json.loads(row["answer"]), json.loads(row["reference"]))
