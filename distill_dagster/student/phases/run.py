"""Run the phases of a student one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from distill_dagster.student.batches import WHOLE_STEP, MicroBatches
from distill_dagster.student.phases.on_policy import train_on_own_samples
from distill_dagster.student.phases.preference import train_on_pairs
from distill_dagster.student.phases.trl_trainer import PhaseRun
from distill_dagster.student.types import PhaseLog, PreferencePair, TrainRow

if TYPE_CHECKING:
    from distill_dagster.student.causal import CausalModel
    from distill_dagster.student.checkpoints import Checkpoints


def run_phases(
    student: CausalModel,
    rows: list[TrainRow],
    pairs: Sequence[PreferencePair],
    models_folder: Path,
    validate: Callable[[], dict[str, float]],
    what: str,
    micro_batches: MicroBatches = WHOLE_STEP,
    saved: Checkpoints | None = None,
) -> list[PhaseLog]:
    """Run the phases in `then` of the student's settings and return a log of each.

    Args:
        rows: the training rows, for their prompts.
        pairs: kept and rejected answers. Without any, a preference phase does nothing, as its log says.
        validate: measures the student on validation; empty without validation rows.
        what: the name of the training in progress reports.
        micro_batches: how the objective's steps were cut. Those of a phase are cut in the same way.
        saved: the checkpoints of the training. The TensorBoard files and MLflow runs of phases lie beside those of the
            objective. None: there are none of these.
    """
    logs = []
    before = validate()
    for number, phase in enumerate(student.spec.then, 1):
        log = PhaseLog(phase.kind, before=before)
        run = PhaseRun(log, what, micro_batches)
        if saved is not None:
            name = f"phase-{number}-{phase.kind}"
            run = replace(run, log_folder=saved.tensorboard / name, run_name=f"{saved.run_name}/{name}")
        if phase.kind == "preference":
            train_on_pairs(student, phase, pairs, run)
        else:
            train_on_own_samples(student, phase, rows, models_folder, run)
        before = log.after = validate()
        logs.append(log)
    return logs
