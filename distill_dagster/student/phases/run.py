"""Run the phases of a student one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill_dagster.student.batches import WHOLE_STEP, MicroBatches
from distill_dagster.student.phases.on_policy import train_on_own_samples
from distill_dagster.student.phases.preference import train_on_pairs
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
) -> list[PhaseLog]:
    """Run the phases in `then` of the student's settings and return a log of each.

    Args:
        rows: the training rows, for their prompts.
        pairs: kept and rejected answers. Without any, a preference phase does nothing, as its log says.
        validate: measures the student on validation; empty without validation rows.
        what: the name of the training in progress reports.
        micro_batches: how the objective's steps were cut. Those of a phase are cut in the same way.
    """
    logs = []
    before = validate()
    for phase in student.spec.then:
        log = PhaseLog(phase.kind, before=before)
        if phase.kind == "preference":
            train_on_pairs(student, phase, pairs, micro_batches, log, what)
        else:
            train_on_own_samples(student, phase, rows, models_folder, micro_batches, log, what)
        before = log.after = validate()
        logs.append(log)
    return logs
