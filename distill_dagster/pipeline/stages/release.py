"""The stage that releases a student: the gate, and then a numbered folder in the registry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from distill_dagster.core import progress
from distill_dagster.core.checks import CheckResult
from distill_dagster.core.errors import DistillError
from distill_dagster.core.formatting import count_noun, format_bytes
from distill_dagster.evaluation.metrics import BASE, DISTILLED
from distill_dagster.kinds import get_kind
from distill_dagster.pipeline.dataset_export import build_dataset_facts
from distill_dagster.pipeline.model_terms import list_model_terms
from distill_dagster.pipeline.served_traffic import list_traffic_items
from distill_dagster.pipeline.shared_releases import complete_release, pull_releases, push_new_release
from distill_dagster.pipeline.stages.context import DisplayValue, SampleTable, StageContext, StageInputs, StageResult
from distill_dagster.pipeline.stages.predictions import build_held_out_items, build_validation_items
from distill_dagster.release.build import ReleaseInputs, fill_release
from distill_dagster.release.cards import CardFacts
from distill_dagster.release.gate import explain_failures, list_golden_scores, run_release_gate
from distill_dagster.release.golden_scores import read_golden_scores
from distill_dagster.release.merged import AnsweredPrompt, choose_parity_prompts
from distill_dagster.release.registry import Registry, Release
from distill_dagster.release.routing.exports import RoutingItem, RoutingItems, build_labelled_items
from distill_dagster.release.types import EXPORTS_CHECK, DevItem, ParityError
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.lake import format_artifact_name
from distill_dagster.tables.schemas import DATASET, PREDICTIONS, RELEASED_EXPORTS, build_frame


class ReleaseGateError(DistillError):
    """The student did not pass the gate, so nothing was released."""

    def __init__(self, message: str, checks: Sequence[CheckResult]) -> None:
        super().__init__(message)
        self.checks = tuple(checks)


def make_release(env: StageContext, partition: str | None) -> StageResult:
    """Check the student, write its exports, compare each with the adapter, and publish a numbered folder.

    Reads: student_adapter, predictions, eval_report, filtered_dataset, golden.jsonl and dev.jsonl; served requests if
        `routing.calibrate_on` is traffic.
    Writes: a folder in the registry of releases, and RELEASED_EXPORTS in the lake.
    Asks a teacher: no.
    Re-runs when: never by itself. `distill release` and a person run it.
    """
    assert partition is not None
    assert env.releases is not None, "this stage needs a folder for releases"
    inputs = StageInputs(env, "release", partition)
    inputs.note_source("golden_set")
    inputs.note_source("student_settings", partition)
    inputs.note_source("release_settings")
    task, kind = env.folder.task, get_kind(env.folder.task)
    predictions = inputs.read_table("predictions", PREDICTIONS, partition)
    dataset = inputs.read_table("filtered_dataset", DATASET)
    report = inputs.find_folder("eval_report", partition)
    adapter = inputs.find_folder("student_adapter", partition)
    _require_measured(env, partition, inputs.versions)
    registry = Registry(env.releases)
    progress.report_progress("checking the gate", 0, 0)
    pull_releases(env.lake, registry, env.task_name)
    complete_release(env.lake, registry, env.task_name)
    before = registry.read(env.task_name) if registry.list_numbers(env.task_name) else None
    checks = run_release_gate(
        kind,
        predictions,
        task.release.gate,
        task.evaluation,
        read_golden_scores(before.path) if before is not None and task.release.gate.no_regression else None,
        f"release {before.number}" if before is not None else "",
    )
    if why := explain_failures(checks):
        raise ReleaseGateError(f"{partition} did not pass the gate, so nothing was released: {why}.", checks)
    facts = CardFacts(
        task=task,
        task_name=env.task_name,
        student=partition,
        number=0,
        spec=task.students[partition],
        dataset=build_dataset_facts(env.folder, env.lake, dataset),
        metrics=json.loads((report / "metrics.json").read_text(encoding="utf-8")),
        terms=list_model_terms(task),
        gate=checks,
    )
    answers = _read_answers(predictions)
    made_from = ReleaseInputs(
        task=task,
        task_name=env.task_name,
        student=partition,
        adapter=adapter,
        report=report,
        models=env.models,
        dataset=dataset,
        asked=choose_parity_prompts(_list_asked(env, dataset, answers)),
        dev=_list_dev_items(env, answers),
        routing=RoutingItems(
            dev=build_labelled_items(env.folder.dev, predictions, "dev"),
            golden=build_labelled_items(env.folder.golden, predictions, "golden"),
            traffic=_list_traffic_items(env),
        ),
        golden_scores=list_golden_scores(kind, predictions),
        facts=facts,
        versions=inputs.versions,
    )

    def fill(folder: Path, number: int) -> dict[str, Any]:
        # Only now this process is alone.
        if registry.read_current_number(env.task_name) != (before.number if before is not None else None):
            raise DistillError(
                f"Another release of {env.task_name} became current while the gate was checked. Release again."
            )
        return fill_release(made_from, folder, number)

    try:
        release = registry.publish(env.task_name, fill)
    except ParityError as error:
        error.checks = (*checks, *error.checks)
        raise
    push_new_release(env.lake, registry, env.task_name, release.number)
    frame = _tabulate(release)
    record = inputs.build_record(compute_data_version(frame), frame.height, number=release.number)
    env.lake.write(env.task_name, frame, record)
    compared: dict[str, Any] = {
        export.name: " ".join(one.text for one in export.parity) for export in release.exports if export.parity
    }
    checks.append(CheckResult(EXPORTS_CHECK.name, True, details=compared))
    return StageResult(record, _build_shown(release), checks)


def _require_measured(env: StageContext, student: str, versions: Mapping[str, str]) -> None:
    """Refuse an adapter that was trained after its predictions: in the UI anybody can release at any time.

    Raises:
        DistillError: the predictions are of another adapter, or the report is about other predictions.
    """
    for asset, source in (("predictions", "student_adapter"), ("eval_report", "predictions")):
        record, name = env.lake.read_record(env.task_name, asset, student), format_artifact_name(source, student)
        if record is None or record.inputs.get(name) != versions[name]:
            raise DistillError(
                f"{format_artifact_name(asset, student)} was made from another {name} than the one that is there, and "
                f"only what was evaluated is released. Run `distill run {env.task_name} --student {student}` first."
            )


def _list_traffic_items(env: StageContext) -> list[RoutingItem]:
    """Served requests with the teacher's answers, if the router is calibrated on them."""
    if env.folder.task.routing.calibrate_on != "traffic" or env.request_log is None or env.releases is None:
        return []
    return list_traffic_items(env.folder, env.request_log, env.releases)


Answers = Mapping[tuple[str, str, str], str | None]
"""The answers of a predictions table by split, item and system."""


def _read_answers(predictions: pl.DataFrame) -> Answers:
    rows = predictions.select("split", "item_id", "system", "answer").iter_rows()
    return {(split, item, system): answer for split, item, system, answer in rows}


def _list_asked(env: StageContext, dataset: pl.DataFrame, answers: Answers) -> list[AnsweredPrompt]:
    items = build_held_out_items("golden", env.folder.golden) + build_held_out_items("dev", env.folder.dev)
    return [
        AnsweredPrompt(
            f"{item.split}:{item.id}",
            item.prompt,
            answers.get((item.split, item.id, DISTILLED)),
            answers.get((item.split, item.id, BASE)),
        )
        for item in items + build_validation_items(dataset)
    ]


def _list_dev_items(env: StageContext, answers: Answers) -> list[DevItem]:
    kind, items = get_kind(env.folder.task), []
    for item in build_held_out_items("dev", env.folder.dev):
        text = answers.get(("dev", item.id, DISTILLED))
        answer = json.loads(text) if text is not None else None
        items.append(DevItem(item.id, item.prompt, item.reference, answer, kind.score(answer, item.reference)))
    return items


def _tabulate(release: Release) -> pl.DataFrame:
    rows: list[dict[str, Any]] = [
        {
            "number": release.number,
            "export": export.name,
            "path": export.path,
            "bytes": export.bytes,
            "parity": " ".join(parity.text for parity in export.parity),
        }
        for export in release.exports
    ]
    left_out = [{"number": release.number, "export": one.name, "parity": one.reason} for one in release.left_out]
    empty = dict.fromkeys(RELEASED_EXPORTS)
    return build_frame([empty | row for row in rows + left_out], RELEASED_EXPORTS, ("export",))


def _build_shown(release: Release) -> dict[str, DisplayValue]:
    exports: list[dict[str, str | int | float | bool | None]] = [
        {
            "export": export.name,
            "path": export.path,
            "size": format_bytes(export.bytes),
            "compared with the adapter": " ".join(parity.text for parity in export.parity),
        }
        for export in release.exports
    ]
    left_out = "; ".join(f"{one.name}: {one.reason}" for one in release.left_out)
    return {
        "number": release.number,
        "folder": Path(release.path),
        "size": format_bytes(release.bytes),
        "exports": SampleTable(exports),
        "left_out": left_out or "nothing",
        "files": count_noun(len(release.manifest["files"]), "file"),
    }
