"""Whether exports of the demo's students answer as their adapters, and whether corrupted exports are refused.

    make demo
    python benchmarks/parity.py                    # the home of the demo, data/
    python benchmarks/parity.py --home FOLDER      # another home with finished students

Writes benchmarks/results/parity.json: `corruptions_refused` of `corruptions` of the GGUF file, and the same of the ONNX
file, `healthy_refused`, `int8_agreement`, and all figures of every export. The home is only read.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import wanted, write_result
from onnx_exports import measure_speed, refuse_onnx_corruptions

from distill_dagster.core.openmp import limit_openmp_spin

TASK = "support_triage"
CORRUPTION_PROMPTS = 20
"""How many prompts each corrupted file answers. A release compares three times as many."""


def build_source(home: Any, student: str, work: Path) -> Any:
    """What the release of a student is made from: its merged model, the adapter's answers and its dev rows."""
    from distill_dagster.evaluation.metrics import BASE, DISTILLED
    from distill_dagster.kinds import get_kind
    from distill_dagster.pipeline.open_task import open_task
    from distill_dagster.pipeline.stages.predictions import build_held_out_items
    from distill_dagster.release.merged import AnsweredPrompt, choose_parity_prompts, write_merged
    from distill_dagster.release.runtimes.types import StudentSetup
    from distill_dagster.release.types import DevItem, ExportSource
    from distill_dagster.student.types import TaskSettings

    folder = open_task(home.tasks, TASK, home.accepted)
    task, kind, spec = folder.task, get_kind(folder.task), folder.task.students[student]
    settings, lake = TaskSettings.from_task(task), home.lake / TASK
    columns = ("split", "item_id", "system", "answer")
    predictions = pl.read_parquet(lake / "predictions" / f"{student}.parquet").select(columns)
    answers = {row[:3]: row[3] for row in predictions.iter_rows()}
    golden, dev = (
        build_held_out_items(split, rows) for split, rows in (("golden", folder.golden), ("dev", folder.dev))
    )
    asked = [
        AnsweredPrompt(f"{item.split}:{item.id}", item.prompt, answers[(*key, DISTILLED)], answers[(*key, BASE)])
        for item in golden + dev
        for key in [(item.split, item.id)]
    ]
    own = [json.loads(answers["dev", item.id, DISTILLED]) for item in dev]
    adapter, merged = lake / "student_adapter" / student, work / "merged"
    chosen = choose_parity_prompts(asked)
    made = write_merged(StudentSetup(spec, tuple(task.labels), settings, home.models), adapter, chosen, merged)
    assert made.parity.passed, made.parity.text
    return ExportSource(
        task=TASK,
        student=student,
        adapter=adapter,
        merged=merged,
        spec=spec,
        kind=kind,
        labels=tuple(task.labels),
        settings=settings,
        models=home.models,
        parity=made.answers,
        dev=tuple(
            DevItem(item.id, item.prompt, item.reference, answer, kind.score(answer, item.reference))
            for item, answer in zip(dev, own, strict=True)
        ),
        wanted=("gguf-f16", "gguf-q8_0", "gguf-q4_k_m", "onnx", "onnx-int8"),
        margin=task.evaluation.margin,
        confidence=task.evaluation.confidence,
        seed=task.evaluation.seed,
    )


def describe(found: Any) -> dict[str, Any]:
    """Bytes and figures of every export, and the reasons of those that are left out."""
    exports: dict[str, Any] = {
        export.name: {"bytes": export.bytes} | {one.stage: dict(one.figures) for one in export.parity}
        for export in found.exports
    }
    return exports | {one.name: {"left_out": one.reason} for one in found.left_out}


def refuse_corruptions(source: Any, full: Path, work: Path) -> dict[str, Any]:
    """The figures of every corrupted GGUF file, and whether it was refused."""
    from distill_dagster.core.models import resolve_model
    from distill_dagster.release.gguf.converter import convert_to_gguf
    from distill_dagster.release.gguf.parity import check_conversion, collect_answers
    from distill_dagster.release.runtimes.llama_server import LlamaServerRuntime
    from distill_dagster.release.runtimes.types import StudentSetup
    from tests.support.corrupt_gguf import CORRUPTIONS, corrupt

    base = work / "base.gguf"
    model = resolve_model(source.spec.model, source.models).path
    assert model is not None
    convert_to_gguf(model, base, "base")
    template = (model / "chat_template.jinja").read_text(encoding="utf-8")
    setup = StudentSetup(source.spec, source.labels, source.settings, source.models)
    source = replace(source, parity=source.parity[:CORRUPTION_PROMPTS])
    found = {}
    for name in CORRUPTIONS:
        broken = full.with_name("broken.gguf")
        corrupt(name, full, base, broken, template)
        runtime = LlamaServerRuntime(broken, setup, "gguf-f16")
        try:
            runtime.open()
            served = runtime.renderer.build_served_template(runtime.cue)
            parity = check_conversion(source, broken, runtime, collect_answers(source, runtime), served)
        finally:
            runtime.close()
            broken.unlink()
        found[name] = {"refused": not parity.passed} | dict(parity.figures)
        print(f"{name}: {'refused' if not parity.passed else 'NOT REFUSED'}. {parity.text}", flush=True)
    return found


def main() -> None:
    """Export both students of the demo, and corrupt the files of the one that writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=None, help="where the demo ran (default: data/)")
    parser.add_argument("--quick", action="store_true", help="12 prompts per file; writes nothing")
    parser.add_argument("--json", type=Path, default=None, help="where figures go")
    arguments = parser.parse_args()
    limit_openmp_spin()
    from distill_dagster.core.paths import Home
    from distill_dagster.release.gguf.export import export_gguf
    from distill_dagster.release.onnx.export import export_onnx

    home = Home.from_env()
    home = replace(home, root=arguments.home) if arguments.home else home
    figures: dict[str, Any] = {}
    for student, export in (("smollm2", export_gguf), ("minilm", export_onnx)):
        with TemporaryDirectory() as temporary:
            work = Path(temporary)
            source = build_source(home, student, work)
            if arguments.quick:
                source = replace(source, parity=source.parity[:12])
            figures[student] = {"exports": describe(export(source, work))}
            print(f"{student}: {json.dumps(figures[student], indent=1)}", flush=True)
            if student == "smollm2":
                figures["corruptions"] = refuse_corruptions(source, work / "gguf/model-f16.gguf", work)
            else:
                (work / "broken").mkdir()
                figures["onnx_corruptions"] = refuse_onnx_corruptions(source, work, work / "broken")
                figures["onnx_speed"] = measure_speed(source, work, [item.prompt for item in source.dev])
    figures["corruptions_refused"] = sum(one["refused"] for one in figures["corruptions"].values())
    figures["onnx_corruptions_refused"] = sum(one["refused"] for one in figures["onnx_corruptions"].values())
    exports = figures["smollm2"]["exports"] | figures["minilm"]["exports"]
    figures["healthy_refused"] = sum("left_out" in exports[name] for name in ("gguf-f16", "gguf-q8_0", "onnx"))
    int8 = figures["minilm"]["exports"]["onnx-int8"]
    figures["int8_agreement"] = int8["quantization"]["agreement"] if "quantization" in int8 else None
    write_result(wanted(arguments, "parity"), figures)


if __name__ == "__main__":
    main()
