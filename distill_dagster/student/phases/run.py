"""Run the phases of a student one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill_dagster.student.batches import WHOLE_STEP, MicroBatches
from distill_dagster.student.phases.on_policy import train_on_own_samples
from distill_dagster.student.phases.preference import train_on_pairs
from distill_dagster.student.phases.trl_trainer import PhaseRun
from distill_dagster.student.types import PhaseLog, PreferencePair, TrainRow

if TYPE_CHECKING:
    from distill_dagster.student.causal import CausalModel


def run_phases(
    student: CausalModel,
    rows: list[TrainRow],
    pairs: Sequence[PreferencePair],
    models_folder: Path,
    validate: Callable[[], dict[str, float]],
    what: str,
    micro_batches: MicroBatches = WHOLE_STEP,
    log_folder: Path | None = None,
    run_name: str | None = None,
) -> list[PhaseLog]:
    """Run the phases in `then` of the student's settings and return a log of each.

    Args:
        rows: the training rows, for their prompts.
        pairs: kept and rejected answers. Without any, a preference phase does nothing, as its log says.
        validate: measures the student on validation; empty without validation rows.
        what: the name of the training in progress reports.
        micro_batches: how the objective's steps were cut. Those of a phase are cut in the same way.
        log_folder: gets a folder of TensorBoard files for each phase. None: no such files are written.
        run_name: the name of the training in MLflow. The runs of phases are named after it.
    """
    logs = []
    before = validate()
    for number, phase in enumerate(student.spec.then, 1):
        log, name = PhaseLog(phase.kind, before=before), f"phase-{number}-{phase.kind}"
        run = PhaseRun(
            log,
            what,
            micro_batches,
            log_folder=log_folder / name if log_folder is not None else None,
            run_name=f"{run_name}/{name}" if run_name is not None else None,
        )
        if phase.kind == "preference":
            train_on_pairs(student, phase, pairs, run)
        else:
            train_on_own_samples(student, phase, rows, models_folder, run)
        before = log.after = validate()
        logs.append(log)
    return logs
