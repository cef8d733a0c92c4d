"""Measure what `curation.rescale_soft_labels` does for an overconfident teacher: the embedded one, on the bundled task.

Usage: python benchmarks/soft_labels.py [--quick] [--json FILE]

The temperature is fitted on dev.jsonl. Then the soft labels are scored on the rows of human.jsonl, which nothing else
uses, and which the teacher does not see. Golden is not looked at. Figures, before and after, on both: the mean
negative log-likelihood of the human's label (nll) and the Brier score (both proper scores: lower is better), the
expected calibration error (ece), and the error that a perfectly calibrated teacher shows by chance (ece_chance). The
peer is the teacher without rescaling.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from common import wanted, write_result

from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.curation.soft_labels.reliability import measure_reliability
from distill_dagster.curation.soft_labels.temperature import SoftAnswer, fit_temperature
from distill_dagster.pipeline.open_task import build_task_folder
from distill_dagster.pipeline.stages import prompts, teacher
from distill_dagster.pipeline.stages.context import StageContext, StageInputs
from distill_dagster.pipeline.stages.soft_labels import build_soft_answers
from distill_dagster.tables.lake import Lake
from distill_dagster.tasks import LabelledRow
from distill_dagster.teacher.completions.store import CompletionStore
from resources.teacher import TeacherResource

TASK = PROJECT_FOLDER / "data" / "tasks" / "support_triage"
QUICK_ROWS = 24
NO_PROBABILITY = 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS} rows each, which say little")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        figures = measure(Path(root), arguments.quick)
    print(json.dumps(figures, indent=1))
    write_result(wanted(arguments, "soft_labels"), figures)


def measure(root: Path, quick: bool) -> dict[str, Any]:
    """Ask the embedded teacher for dev and human rows, fit on the first and score both."""
    env = build_context(root, quick)
    prompts.make_prompt_context(env, None)
    teacher.make_teacher_prior(env, None)
    teacher.make_golden_completions(env, None)
    dev, human = list_answers(env, env.folder.dev), list_answers(env, env.folder.golden)
    fit = fit_temperature(dev)
    figures: dict[str, Any] = {"temperature": fit.temperature}
    for name, answers in (("dev", dev), ("human", human)):
        for state, temperature in (("before", 1.0), ("after", fit.temperature)):
            figures[f"{name}_{state}"] = score(answers, temperature)
    env.store.close()
    return figures


def build_context(root: Path, quick: bool) -> StageContext:
    """The bundled task with the embedded teacher alone, and human.jsonl in place of golden."""
    folder = root / "tasks" / TASK.name
    shutil.copytree(TASK, folder)
    shutil.move(folder / "human.jsonl", folder / "golden.jsonl")
    settings = yaml.safe_load((folder / "task.yaml").read_text())
    settings["teacher"] = settings.pop("teachers")["embedded"]
    del settings["cascade"]
    settings["curation"] = settings.get("curation", {}) | {"rescale_soft_labels": "temperature"}
    (folder / "task.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    if quick:
        for name in ("dev.jsonl", "golden.jsonl"):
            lines = (folder / name).read_text().splitlines(keepends=True)
            (folder / name).write_text("".join(lines[:: max(1, len(lines) // QUICK_ROWS)]))
    return StageContext(
        folder=build_task_folder(folder),
        lake=Lake(root / "lake", root / "reports"),
        store=CompletionStore.open_in_folder(root / "store"),
        models=root / "models",
        reports=root / "reports",
        endpoint=TeacherResource(models=str(root / "models")).open_endpoint,
    )


def list_answers(env: StageContext, rows: list[LabelledRow]) -> list[SoftAnswer]:
    by_teacher = build_soft_answers(StageInputs(env, "filtered_dataset", None), rows)
    return [one for answers in by_teacher.values() for one in answers]


def score(answers: list[SoftAnswer], temperature: float) -> dict[str, float]:
    """The figures of these answers at a temperature."""
    nll = brier = 0.0
    confidences, correct = [], []
    for one in answers:
        powers = {label: prob ** (1 / temperature) for label, prob in one.named.items()}
        probs = {label: power / sum(powers.values()) for label, power in powers.items()}
        stated = probs.get(one.reference, 0.0)
        nll -= math.log(max(stated, NO_PROBABILITY))
        brier += sum(prob**2 for prob in probs.values()) - 2 * stated + 1
        confidences.append(probs[one.answer])
        correct.append(one.answer == one.reference)
    measured = measure_reliability(confidences, correct)
    assert measured is not None
    figures = {"nll": nll / len(answers), "brier": brier / len(answers), "ece": measured.ece}
    figures |= {"ece_chance": measured.chance_ece, "stated": measured.stated, "right": measured.right}
    return {"rows": len(answers)} | {name: round(value, 4) for name, value in figures.items()}


if __name__ == "__main__":
    main()
