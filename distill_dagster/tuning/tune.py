"""Tune one student: run trials, write the page about them, and propose the best settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from distill_dagster.config import StudentSpec, Task, TeacherSpec
from distill_dagster.config.student import RUN_SETTINGS
from distill_dagster.core import progress
from distill_dagster.core.database_urls import get_store_url
from distill_dagster.core.errors import DistillError
from distill_dagster.core.files import lock_file
from distill_dagster.core.formatting import format_seconds
from distill_dagster.core.hashing import hash_content
from distill_dagster.core.models import resolve_model
from distill_dagster.core.paths import Home, get_tuning_folder
from distill_dagster.kinds import get_kind
from distill_dagster.pipeline.open_lake import open_lake
from distill_dagster.pipeline.stages.context import StageContext
from distill_dagster.pipeline.stages.predictions import EvaluationItem
from distill_dagster.student.types import ValidationListener
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.completions.store import open_store
from distill_dagster.tuning.page import TuningResult, write_page
from distill_dagster.tuning.proposal import Proposal, compare_trials, propose, read_student_block
from distill_dagster.tuning.search_space import (
    SearchSetting,
    Settings,
    build_default_space,
    build_spec,
    check_space,
    format_settings,
    format_value,
    parse_search,
    read_current,
)
from distill_dagster.tuning.study import FinishedTrial, TrialListener, TuningStudy, list_spaces, require_optuna
from distill_dagster.tuning.trials import TrialResult, Trials

VERSION = 1
"""Part of a study's name. Raise it if a trial means something else."""


def tune_student(
    home: Home, folder: TaskFolder, student: str, searches: Sequence[str], count: int | None, listener: TrialListener
) -> TuningResult:
    """Run trials of a student until `count` are finished, those of earlier commands included.

    Args:
        searches: the settings to tune, as `parse_search` reads them; by default those of `build_default_space`.
        count: None runs no trial. The result is that of the study that was opened last, whatever it searched.
        listener: gets each trial when it is finished.

    Raises:
        DistillError: there is no dataset, optuna is not installed, a setting cannot have a value, another process
            tunes this student, no trial should run and there is no study, or task.yaml cannot be changed to the best
            settings. The page is written in this last case.
    """
    require_optuna()
    busy = f"Another process tunes {folder.name}/{student}. Wait for it, or stop it."
    with (
        lock_file(home.locks / f"tune-{folder.name}-{student}.lock", timeout_s=0, busy=busy),
        open_store(home.store, get_store_url()) as store,
    ):
        task, block = folder.task, read_student_block(folder, student)
        lake = open_lake(home)
        trials = Trials(StageContext(folder, lake, store, home.models, home.reports, _refuse_teacher), student)
        spec, items = task.students[student], trials.read_items()
        data, versions = trials.read_data(spec)

        @cache
        def hash_weights(model: str) -> str | None:
            return resolve_model(model, home.models, spec.revision).sha256

        def name_study(space: Sequence[SearchSetting]) -> str:
            return compute_study_name(task, student, versions, items, space, hash_weights)

        place = home.tuning / folder.name
        journal = place / f"{student}.journal"
        if count is None:
            space = _find_last_space(journal, spec, name_study)
            if not space:
                raise DistillError(
                    f"{folder.name}/{student} has no trials on this dataset, this dev set, this prompt and the other "
                    f"settings of the student. Run `distill tune {folder.name} {student}` first."
                )
        else:
            has_soft_labels = any(row.soft for row in data.train)
            space = build_default_space(spec, has_soft_labels and task.resolve_objective(student).kind == "soft_label")
            space = parse_search(searches, space) if searches else space
        current = read_current(spec, [setting.name for setting in space])
        check_space(task, student, block, space)
        scratch = place / f"{student}.trained"
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed process left
        scratch.mkdir(parents=True)
        study = TuningStudy(journal, name_study(space), space, current, runs_trials=count is not None)
        wanted = len(study.list_finished()) if count is None else count

        def evaluate(settings: Settings, on_validation: ValidationListener) -> TrialResult:
            finished = study.list_finished()
            with progress.work_on_artifact(_describe_trial(finished, wanted, settings)):
                return trials.run(build_spec(task, student, block, settings), items, scratch, on_validation)

        study.run(wanted, evaluate, listener)
        scratch.rmdir()
        best, proposal, problem = study.find_best(), None, None
        try:
            proposal = propose(folder, student, block, best.settings) if best else None
        except DistillError as error:
            problem = error
        result = _build_result(folder, student, study, items, proposal)
        page = write_page(result, get_tuning_folder(home.reports, folder.name))
        if problem:
            raise DistillError(f"{problem} All trials: {page}")
        return result


def _refuse_teacher(spec: TeacherSpec) -> NoReturn:
    raise AssertionError("tuning asks no teacher")


def _find_last_space(
    journal: Path, spec: StudentSpec, name_study: Callable[[Sequence[SearchSetting]], str]
) -> list[SearchSetting]:
    """The search space of the study that was opened last. Studies of another dataset or model are left out."""
    for name, space in list_spaces(journal).items():
        try:
            read_current(spec, [setting.name for setting in space])
        except DistillError:
            continue  # the student no longer has a setting of this study
        if name == name_study(space):
            return space
    return []


def compute_study_name(
    task: Task,
    student: str,
    versions: Mapping[str, str],
    items: Sequence[EvaluationItem],
    space: Sequence[SearchSetting],
    hash_weights: Callable[[str], str | None],
) -> str:
    """A hash of all that decides what a trial gives: trials of another dataset, prompt or model are not compared.

    Phases of `then` are no part of a trial.
    """
    spec = task.students[student]
    fixed = spec.model_dump(mode="json", exclude={*RUN_SETTINGS, "then"})
    for setting in space:
        block: Any = fixed
        *parents, last = setting.name.split(".")
        for part in parents:
            block = block[part]
        block.pop(last)
    tuned = {setting.name: setting for setting in space}
    if "lora.rank" in tuned and "lora.alpha" not in tuned:  # follows the rank, except with rsLoRA
        ratio = spec.lora.alpha / (1 if spec.method == "rslora" else spec.lora.rank)
        fixed["lora"]["alpha"] = format_value(ratio)
    models = tuned["model"].list_examples() if "model" in tuned else (spec.model,)
    value = {
        "version": VERSION,
        "fixed": fixed,
        "prompt": hash_content(task.dump_prompt_settings()),
        "weights": [hash_weights(str(model)) for model in models],
        "read": dict(versions),
        "items": [[item.id, item.prompt_id, item.reference] for item in items],
        "space": [[setting.name, list(setting.list_examples())] for setting in space],
    }
    return hash_content(json.loads(json.dumps(value)))[:16]


def _describe_trial(finished: Sequence[FinishedTrial], count: int, settings: Settings) -> str:
    seconds = [trial.result.seconds for trial in finished if trial.result]
    left = f", about {format_seconds(sum(seconds) / len(seconds) * (count - len(finished)))} left" if seconds else ""
    return f"trial {len(finished) + 1} of {count}{left}: {format_settings(settings)}"


def _build_result(
    folder: TaskFolder,
    student: str,
    study: TuningStudy,
    items: Sequence[EvaluationItem],
    proposal: Proposal | None,
) -> TuningResult:
    best, current = study.find_best(), study.find_current()
    evaluation, lead = folder.task.evaluation, None
    if best is not None and current is not None and current != best:
        assert best.result is not None
        assert current.result is not None
        lead = compare_trials(best.result, current.result, evaluation.confidence, evaluation.bootstrap_samples)
    return TuningResult(
        task=folder.name,
        student=student,
        space=study.space,
        trials=study.list_finished(),
        best=best,
        current=current,
        has_failed_with_current=study.has_failed_with_current,
        lead=lead,
        proposal=proposal,
        metric=get_kind(folder.task).metric,
        split=items[0].split,
        items=len(items),
        confidence=evaluation.confidence,
    )
