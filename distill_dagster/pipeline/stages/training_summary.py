"""A training in words and curves, from the log in the adapter's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_dagster.student.types import TRAINING_LOG_FILE
from distill_dagster.tables.lake import read_folder_record

LossCurves = dict[str, list[tuple[float, float]]]
"""(step, loss) by name: `training` and, if there are validation rows, `validation`."""


def build_loss_curves(adapter: Path) -> LossCurves:
    """The loss curves of a training, from the log in the adapter's folder. Empty without a log."""
    log = read_training_log(adapter)
    if log is None:
        return {}
    curves = {"training": [(float(step), float(loss)) for step, _, loss in log["losses"]]}
    parts = log.get("loss_parts", {})
    if len(parts) > 1:
        curves |= {f"training: {name}": [(float(step), value) for step, value in part] for name, part in parts.items()}
    if log["validation"]:
        steps_per_epoch = log["steps"] / max(log["epochs"], 1)
        curves["validation"] = [(v["epoch"] * steps_per_epoch, v["loss"]) for v in log["validation"]]
    return curves


def describe_training(adapter: Path) -> str:
    """One sentence: what a student learned from, and how. Empty without a log that says so."""
    log = read_training_log(adapter)
    if not log or not log.get("objective"):
        return ""
    words = f"The student learned the objective {describe_objective(log['objective'])}"
    if log.get("prompt"):
        words += f" with {log['prompt']} prompts"
    words += f", by {log['method']} on {log['rows']:,} rows"
    if log.get("trainable_parameters"):
        words += f", which trained {log['trainable_parameters']:,} of {log['total_parameters']:,} weights"
    if log.get("phases"):
        words += f", then {' and '.join(phase['kind'] for phase in log['phases'])}"
    return f"{words}."


def describe_objective(objective: Mapping[str, Any]) -> str:
    """An objective as its log has it, such as "soft_label (weight 0.5, temperature 2.0)"."""
    settings = {name: value for name, value in objective.items() if name != "kind" and value is not None}
    details = ", ".join(f"{name} {value}" for name, value in settings.items())
    return f"{objective['kind']} ({details})" if details else str(objective["kind"])


def describe_rows(adapter: Path) -> str:
    """One sentence: whose answers a student learned. Empty without a record that says so."""
    record = read_folder_record(adapter)
    mix = record.extra.get("data") if record is not None else None
    if record is None or not mix:
        return ""
    teacher = f"the assistant {record.extra['assistant']}" if "assistant" in record.extra else "the teacher"
    parts = [f"{mix['teacher_rows']:,} of {teacher}"]
    if mix["human_rows"]:
        parts.append(f"{mix['human_rows']:,} of people, with {100 * mix['human_share']:.0f} % of the weight")
    if mix["replayed"]:
        parts.append(f"{mix['replayed']:,} of an earlier dataset")
    left_out = f"; {mix['left_out']:,} were left out" if mix["left_out"] else ""
    return f"Its answers: {', '.join(parts)}{left_out}."


def describe_kept_epoch(adapter: Path) -> str:
    """One sentence: which epoch of a training is kept, and why. Empty if nothing was chosen on validation."""
    log = read_training_log(adapter)
    best = log.get("best_epoch") if log else None
    if log is None or best is None:
        return ""
    losses = {scores["epoch"]: scores["loss"] for scores in log["validation"]}
    loss = f"its validation loss is {losses[best]:.3f}"
    if not log.get("kept"):
        return f"Epoch {best} of {log['epochs']} is kept: {loss}, the lowest."
    if best == 0:
        tuned = min(value for epoch, value in losses.items() if epoch)
        return f"The linear probe is kept: {loss}, and fine-tuning came to {tuned:.3f} at best."
    which = f"The fine-tuned student of epoch {best} of {log['epochs']}"
    return f"{which} is kept: {loss}, that of its linear probe {losses[0]:.3f}."


def read_training_log(adapter: Path) -> dict[str, Any] | None:
    """The log in an adapter's folder; None without one."""
    path = adapter / TRAINING_LOG_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
