"""Fill the folder of a release: exports with their parity, the router's thresholds, report, cards and manifest.

manifest.json  README.md  student.json  labels.json  prompt.json  routing.json
adapter/  merged/  gguf/ or onnx/  report/  dataset/
vllm.sh  vllm_request.json  chat_template.jinja     of a student that writes
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.core.progress import report_progress
from distill_dagster.kinds import get_kind
from distill_dagster.release.cards import (
    CARD_FILE,
    CardFacts,
    DatasetCardFacts,
    build_dataset_card,
    build_model_card,
    find_base,
)
from distill_dagster.release.dataset_formats import write_dataset
from distill_dagster.release.golden_scores import GoldenScore, write_golden_scores
from distill_dagster.release.merged import AnsweredPrompt, copy_adapter, round_if_equal, write_merged
from distill_dagster.release.packages import require_packages
from distill_dagster.release.routing.exports import RoutingItems, build_routing_table
from distill_dagster.release.runtimes.build import build_runtime, list_servable
from distill_dagster.release.runtimes.types import StudentSetup
from distill_dagster.release.types import (
    DevItem,
    Export,
    ExportResult,
    ExportSource,
    Parity,
    ParityError,
    build_export,
)
from distill_dagster.release.vllm_command import finish_merged, write_vllm_files
from distill_dagster.student.train import LABELS_FILE, PROMPT_FILE
from distill_dagster.student.types import TaskSettings

if TYPE_CHECKING:
    import polars as pl

    from distill_dagster.config import Task

METRICS_FILE, MARKDOWN_FILE = "metrics.json", "report.md"
TEXT_FIGURES = ("errors", "leaks", "golden_looks")
"""Parts of metrics.json with texts of golden or of the dataset: a release is passed on, and they are not."""
VERSIONED_PACKAGES = ("distill-dagster", "torch", "transformers", "peft", "onnxruntime", "onnx", "xllamacpp", "mapie")


@dataclass(frozen=True)
class ReleaseInputs:
    """What a release is made from.

    `versions` are the data versions of everything that was read. `asked` are the prompts that parity chooses from.
    """

    task: Task
    task_name: str
    student: str
    adapter: Path
    report: Path
    models: Path
    dataset: pl.DataFrame
    asked: Sequence[AnsweredPrompt]
    dev: Sequence[DevItem]
    routing: RoutingItems
    golden_scores: Sequence[GoldenScore]
    facts: CardFacts
    versions: Mapping[str, str]


def fill_release(inputs: ReleaseInputs, folder: Path, number: int) -> dict[str, Any]:
    """Write everything but the manifest into the folder of a release. Returns the manifest's fields.

    Raises:
        ParityError: an export answers other than the adapter.
        DistillError: a package of the extra `release` is missing, or a model cannot be loaded.
    """
    task, spec = inputs.task, inputs.task.students[inputs.student]
    settings = TaskSettings.from_task(task)
    if task.routing.threshold is None:  # known now, and not after minutes
        require_packages("The router of a release", "mapie")
    setup = StudentSetup(spec, tuple(task.labels), settings, inputs.models)
    setup.write(folder)
    found = _write_exports(inputs, setup, folder)
    for name in (LABELS_FILE, PROMPT_FILE):
        if (inputs.adapter / name).is_file():
            shutil.copyfile(inputs.adapter / name, folder / name)
    _write_report(inputs, folder)
    runtimes = {name: lambda name=name: build_runtime(folder, setup, name) for name in list_servable(folder)}
    table = build_routing_table(task.routing, get_kind(task), inputs.routing, runtimes)
    table.write(folder)
    has_data = task.release.dataset
    if has_data:
        write_dataset(task, inputs.dataset, "parquet", folder / "dataset")
    facts = replace(
        inputs.facts,
        number=number,
        exports=found.exports,
        left_out=found.left_out,
        notes=found.notes,
        routing={"exports": {name: asdict(routing) for name, routing in table.exports.items()}},
    )
    (folder / "dataset").mkdir(exist_ok=True)
    about = DatasetCardFacts(task, inputs.task_name, facts.dataset, facts.terms, has_data)
    build_dataset_card(about).save(folder / "dataset" / CARD_FILE)
    build_model_card(facts).save(folder / CARD_FILE)
    return _build_manifest(inputs, found)


def _write_exports(inputs: ReleaseInputs, setup: StudentSetup, folder: Path) -> ExportResult:
    task, spec = inputs.task, setup.spec
    wanted = tuple(task.release.exports)
    copy_adapter(inputs.adapter, folder / "adapter")
    merged = folder / "merged"
    made = write_merged(setup, folder / "adapter", inputs.asked, merged)
    if not made.parity.passed:
        raise ParityError(
            f"The merged model does not answer as the adapter, so nothing is released. {made.parity.text}"
        )
    source = ExportSource(
        task=inputs.task_name,
        student=inputs.student,
        adapter=folder / "adapter",
        merged=merged,
        spec=spec,
        kind=get_kind(task),
        labels=tuple(task.labels),
        settings=setup.settings,
        models=inputs.models,
        parity=made.answers,
        dev=tuple(inputs.dev),
        wanted=wanted,
        margin=task.evaluation.margin,
        confidence=task.evaluation.confidence,
        seed=task.evaluation.seed,
    )
    if spec.architecture == "encoder":
        from distill_dagster.release.onnx.export import export_onnx

        found = export_onnx(source, folder)
    else:
        from distill_dagster.release.gguf.export import export_gguf

        found = export_gguf(source, folder)
    exports = [_describe("adapter", folder)]
    notes = list(found.notes)
    if "merged" not in wanted:
        shutil.rmtree(merged)
    else:
        rounded = round_if_equal(setup, merged, made.answers)
        if rounded is not None and not rounded.passed:
            notes.append(f"`merged` stays in 32 bits: {rounded.text}")
        if made.renderer is not None:
            finish_merged(merged, setup, made.renderer, made.cue)
        kept = [rounded] if rounded is not None and rounded.passed else []
        exports.append(_describe("merged", folder, made.parity, *kept))
    if made.renderer is not None:
        notes.append(write_vllm_files(folder, inputs.task_name, setup, made.renderer, made.cue).note)
    if spec.quantization != "none":
        notes.append(
            f"The student was trained on a base in {spec.quantization}. All exports use the base in full precision, so "
            f"their answers may differ slightly from those of the report."
        )
    return replace(found, exports=(*exports, *found.exports), notes=tuple(notes))


def _describe(name: Any, folder: Path, *parity: Parity) -> Export:
    files = sorted(path.relative_to(folder).as_posix() for path in (folder / name).rglob("*") if path.is_file())
    return build_export(name, folder, name, tuple(files), parity, "adapter" if name == "adapter" else None)


def _write_report(inputs: ReleaseInputs, folder: Path) -> None:
    report = folder / "report"
    report.mkdir()
    figures = {name: value for name, value in inputs.facts.metrics.items() if name not in TEXT_FIGURES}
    (report / METRICS_FILE).write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if (inputs.report / MARKDOWN_FILE).is_file():  # a report of an earlier version has none
        shutil.copyfile(inputs.report / MARKDOWN_FILE, report / MARKDOWN_FILE)
    write_golden_scores(folder, inputs.golden_scores)


def _build_manifest(inputs: ReleaseInputs, found: ExportResult) -> dict[str, Any]:
    report_progress("writing the manifest", 0, 0)
    figures, spec = inputs.facts.metrics, inputs.task.students[inputs.student]
    student = figures["systems"]["distilled"]
    base, licence = find_base(spec.model)
    return {
        "student": inputs.student,
        "kind": inputs.task.kind,
        "architecture": spec.architecture,
        "base": {"model": base, "revision": spec.revision, "licence": licence},
        "metric": student["metric"],
        "items": student["n"],
        "score": student["score"],
        "retention": figures["retention"],
        "cost_usd_per_1k": student["cost_usd_per_1k"],
        "latency_p50_s": student["latency_s"]["p50"],
        "dataset": {"version": inputs.facts.dataset.version, "rows": inputs.facts.dataset.rows},
        "gate": [{"check": check.name, "passed": check.passed, **check.details} for check in inputs.facts.gate],
        "terms": [one["summary"] for one in inputs.facts.terms],
        "exports": [export.to_dict() for export in found.exports],
        "left_out": [asdict(one) for one in found.left_out],
        "notes": list(found.notes),
        "made_from": dict(inputs.versions),
        "versions": _list_versions(),
    }


def _list_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in VERSIONED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
