"""Export an encoder student to ONNX."""

from __future__ import annotations

from pathlib import Path

from distill_dagster.core.formatting import count_noun, format_bytes
from distill_dagster.core.progress import report_progress
from distill_dagster.release.onnx.folder import TOKENIZER_CONFIG_FILE, write_config, write_tokenizer
from distill_dagster.release.onnx.graph import UnsupportedModelError, write_graph, write_int8_graph
from distill_dagster.release.onnx.parity import check_full, check_int8
from distill_dagster.release.packages import require_packages
from distill_dagster.release.parity import count_rows_for_margin
from distill_dagster.release.runtimes.onnx import CONFIG_FILE, TOKENIZER_FILE
from distill_dagster.release.runtimes.types import SERVABLE_EXPORTS
from distill_dagster.release.types import (
    Export,
    ExportName,
    ExportResult,
    ExportSource,
    LeftOut,
    Parity,
    ParityError,
    build_export,
)
from distill_dagster.student.encoder import EncoderStudent

ONNX_EXPORTS: tuple[ExportName, ...] = ("onnx", "onnx-int8")


def export_onnx(source: ExportSource, folder: Path) -> ExportResult:
    """Write the ONNX files that `source` wants to `onnx/` below the folder of a release, and check their answers.

    A model that torch cannot convert is left out, and so is an 8-bit file that does not answer as the adapter does.

    Raises:
        DistillError: the extra `release` is not installed.
        ParityError: the float32 file answers other than the adapter.
    """
    wanted = [name for name in ONNX_EXPORTS if name in source.wanted]
    if not wanted:
        return ExportResult()
    require_packages("An ONNX export", "onnx", "onnxscript", "onnxruntime")
    full, int8 = (folder / SERVABLE_EXPORTS[name] for name in ONNX_EXPORTS)
    full.parent.mkdir(parents=True, exist_ok=True)
    student = load_merged(source)
    try:
        report_progress("converting to ONNX", 0, len(wanted))
        write_graph(student, full)
        write_tokenizer(student.tokenizer, source.spec.max_tokens, full.parent)
    except UnsupportedModelError as error:
        _remove(full, full.parent)
        return ExportResult(left_out=tuple(LeftOut(name, str(error)) for name in wanted))
    write_config(student.model["encoder"].config, student.labels, full.parent)
    parity = check_full(source, full, student.tokenizer)
    if not parity.passed:
        raise ParityError(f"The ONNX file does not answer as the adapter, so nothing is released. {parity.text}")
    exports = [_describe_export("onnx", folder, full, parity)]
    left_out, notes = [], []
    if "onnx-int8" in wanted:
        report_progress("writing ONNX weights in 8 bits", len(wanted) - 1, len(wanted))
        write_int8_graph(full, int8)
        rounded = check_int8(source, int8)
        if rounded.passed:
            exports.append(_describe_export("onnx-int8", folder, int8, parity, rounded))
            notes.append(_describe_int8(full, int8, rounded))
        else:
            int8.unlink()
            left_out.append(LeftOut("onnx-int8", _explain_left_out(source, rounded)))
    if "onnx" not in wanted:
        full.unlink()
        exports = exports[1:]
        if not exports:
            _remove(full, full.parent)
    return ExportResult(tuple(exports), tuple(left_out), tuple(notes))


def load_merged(source: ExportSource) -> EncoderStudent:
    """The student with its adapter merged: a whole model in `source.merged`, with the head next to it."""
    whole = {"model": str(source.merged), "revision": None, "shrink": None, "quantization": "none", "dtype": "float32"}
    spec = source.spec.model_copy(update=whole | {"method": "full"})
    student = EncoderStudent(spec, list(source.labels), source.settings, source.models)
    student.load_adapter(source.merged, merge=False)
    return student


def _describe_export(name: ExportName, folder: Path, path: Path, *parity: Parity) -> Export:
    names = (path.name, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, CONFIG_FILE)
    files = tuple(str((path.parent / file).relative_to(folder)) for file in names)
    return build_export(name, folder, files[0], files, parity, "onnx")


def _describe_int8(full: Path, int8: Path, parity: Parity) -> str:
    sizes = [format_bytes(path.stat().st_size) for path in (int8, full)]
    return (
        f"onnx/{int8.name} has {sizes[0]} instead of {sizes[1]}. It agrees with the adapter on "
        f"{parity.figures['agreement']:.1%} of {parity.figures['prompts']:.0f} prompts."
    )


def _explain_left_out(source: ExportSource, parity: Parity) -> str:
    rows = count_rows_for_margin(source.margin, source.confidence)
    if len(source.dev) >= rows:
        return parity.text
    return (
        f"{parity.text} dev.jsonl has {count_noun(len(source.dev), 'row')}, and it takes at least {rows} to show that "
        f"8 bits cost less than `evaluation.margin`. Add rows, or raise the margin."
    )


def _remove(*paths: Path) -> None:
    """Remove files and a folder of files."""
    for path in paths:
        if path.is_dir():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
