"""Export a student that writes to GGUF: f16, Q8_0 and Q4_K_M, with what llama.cpp and Ollama need next to them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from distill_dagster.core.errors import DistillError
from distill_dagster.core.formatting import count_noun
from distill_dagster.release.gguf.converter import UnconvertibleModelError, convert_to_gguf, find_missing_converter
from distill_dagster.release.gguf.modelfile import build_label_grammar, build_modelfile
from distill_dagster.release.gguf.parity import FileAnswers, check_conversion, check_quantized, collect_answers
from distill_dagster.release.gguf.quantize import QuantizedType, quantize_gguf
from distill_dagster.release.parity import DEV_P_VALUE, count_rows_for_margin
from distill_dagster.release.runtimes.llama_server import TOKENIZER_FOLDER, LlamaServerRuntime
from distill_dagster.release.runtimes.types import SERVABLE_EXPORTS, StudentSetup
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

if TYPE_CHECKING:
    from distill_dagster.student.prompts import PromptRenderer

FULL: ExportName = "gguf-f16"
QUANTIZED: dict[ExportName, QuantizedType] = {"gguf-q8_0": "q8_0", "gguf-q4_k_m": "q4_k_m"}
GGUF_FOLDER, MODELFILE, GRAMMAR_FILE = "gguf", "Modelfile", "labels.gbnf"
_TOKENIZER_FILES = ("tokenizer*", "*.jinja", "generation_config.json", "special_tokens_map.json", "added_tokens.json")
_VOCABULARY_FILES = ("vocab.*", "merges.txt", "*.model")


def export_gguf(source: ExportSource, folder: Path) -> ExportResult:
    """Write the GGUF files that `source` wants to `gguf/` below the folder of a release, and check their answers.

    All of them are left out if llama.cpp does not know the architecture. A quantized file is left out if it answers
    other than the f16 file.

    Raises:
        DistillError: the converter or xllamacpp is not installed, or the conversion failed.
        ParityError: the f16 file answers other than the adapter.
    """
    wanted = [name for name in (FULL, *QUANTIZED) if name in source.wanted]
    if not wanted:
        return ExportResult()
    if missing := find_missing_converter():
        raise DistillError(missing)
    place = folder / GGUF_FOLDER
    place.mkdir(parents=True, exist_ok=True)
    full = folder / SERVABLE_EXPORTS[FULL]
    renderer, cue = copy_tokenizer(source, place / TOKENIZER_FOLDER)
    template = renderer.build_served_template(cue)
    try:
        convert_student(source, renderer, template, full)
    except UnconvertibleModelError as error:
        shutil.rmtree(place)
        return ExportResult(left_out=tuple(LeftOut(name, str(error)) for name in wanted))
    parity, answers = _check_full(source, full, template)
    if not parity.passed:
        raise ParityError(f"The GGUF file does not answer as the adapter, so nothing is released. {parity.text}")
    checked: dict[ExportName, tuple[Parity, ...]] = {FULL: (parity,)}
    left_out, notes = [], []
    for name in [name for name in wanted if name != FULL]:
        path = folder / SERVABLE_EXPORTS[name]
        try:
            bits = quantize_gguf(full, path, QUANTIZED[name])
            rounded = _check_quantized(source, path, name, answers)
        except DistillError as error:
            path.unlink(missing_ok=True)
            left_out.append(LeftOut(name, str(error)))
            continue
        if rounded.passed:
            checked[name] = (parity, rounded)
            notes.append(_describe_quantized(source, path, bits, rounded))
        else:
            path.unlink()
            left_out.append(LeftOut(name, _explain_left_out(source, rounded)))
    if FULL not in wanted:
        full.unlink()
        del checked[FULL]
    if not checked:
        shutil.rmtree(place)
        return ExportResult((), tuple(left_out), tuple(notes))
    shared = _write_shared_files(source, renderer, cue, place, list(checked))
    exports = [_describe_export(name, folder, shared, figures) for name, figures in checked.items()]
    return ExportResult(tuple(exports), tuple(left_out), tuple(notes))


def copy_tokenizer(source: ExportSource, target: Path) -> tuple[PromptRenderer, str]:
    """Copy the student's tokenizer. Returns the renderer of its prompts, and the cue that it is asked with."""
    target.mkdir(parents=True, exist_ok=True)
    for pattern in (*_TOKENIZER_FILES, *_VOCABULARY_FILES):
        for file in source.merged.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, target / file.name)
    runtime = _build_runtime(source, target.parent / "none.gguf", FULL)
    return runtime.load_renderer(), runtime.cue


def convert_student(source: ExportSource, renderer: PromptRenderer, template: str, target: Path) -> None:
    """Write the f16 file with the student's own chat template and end token in place of the base's.

    Raises:
        DistillError: the conversion failed.
        UnconvertibleModelError: llama.cpp does not know the architecture or the tokenizer.
    """
    with TemporaryDirectory(dir=target.parent) as temporary:
        model = Path(temporary) / "model"
        model.mkdir()
        for file in source.merged.iterdir():
            if file.suffix == ".json" and file.name != "tokenizer.json":
                value = json.loads(file.read_text(encoding="utf-8"))
                text = json.dumps(_set_end(file.name, value, renderer), ensure_ascii=False)
                (model / file.name).write_text(text, encoding="utf-8")
            elif file.is_file() and file.suffix != ".jinja":
                (model / file.name).symlink_to(file.resolve())
        (model / "chat_template.jinja").write_text(template, encoding="utf-8")
        convert_to_gguf(model, target, f"{source.task} {source.student}")


def _set_end(name: str, value: Any, renderer: PromptRenderer) -> Any:
    """The tokens that end a text are the student's: a chat student may end with another one than its base."""
    end = renderer.end
    if name == "tokenizer_config.json":
        value.pop("chat_template", None)
        value["eos_token"] = renderer.tokenizer.convert_ids_to_tokens(end)
    elif name in ("config.json", "generation_config.json"):
        value["eos_token_id"] = end
    return value


def _check_full(source: ExportSource, path: Path, template: str) -> tuple[Parity, FileAnswers]:
    runtime = _build_runtime(source, path, FULL)
    try:
        runtime.open()
        answers = collect_answers(source, runtime)
        return check_conversion(source, path, runtime, answers, template), answers
    finally:
        runtime.close()


def _check_quantized(source: ExportSource, path: Path, name: ExportName, full: FileAnswers) -> Parity:
    runtime = _build_runtime(source, path, name)
    try:
        runtime.open()
        return check_quantized(source, path, runtime, QUANTIZED[name], full)
    finally:
        runtime.close()


def _build_runtime(source: ExportSource, path: Path, name: ExportName) -> LlamaServerRuntime:
    setup = StudentSetup(source.spec, source.labels, source.settings, source.models)
    return LlamaServerRuntime(path, setup, name)


def _write_shared_files(
    source: ExportSource, renderer: PromptRenderer, cue: str, place: Path, names: list[ExportName]
) -> tuple[str, ...]:
    """Write the Modelfile and the grammar. Returns all files that every GGUF file needs, relative to the release."""
    served = next(path for name, path in SERVABLE_EXPORTS.items() if name in names)
    chooses = StudentSetup(source.spec, source.labels, source.settings, source.models).chooses_label
    tokens = source.spec.answer_tokens
    if chooses:
        tokens = max(len(renderer.encode_answer(label.name)) for label in source.labels) + 1
    modelfile = build_modelfile(Path(served).name, renderer, cue, tokens)
    (place / MODELFILE).write_text(modelfile, encoding="utf-8")
    if chooses:
        grammar = build_label_grammar([label.name for label in source.labels])
        (place / GRAMMAR_FILE).write_text(grammar, encoding="utf-8")
    files = [file for file in place.rglob("*") if file.is_file() and file.suffix != ".gguf"]
    return tuple(sorted(file.relative_to(place.parent).as_posix() for file in files))


def _describe_export(name: ExportName, folder: Path, shared: tuple[str, ...], parity: tuple[Parity, ...]) -> Export:
    path = SERVABLE_EXPORTS[name]
    return build_export(name, folder, path, (path, *shared), parity, "llama_server")


def _describe_quantized(source: ExportSource, path: Path, bits: float, parity: Parity) -> str:
    is_written = any(one.answer_tokens for one in source.parity)
    return (
        f"gguf/{path.name} has {bits:.1f} bits per weight. It agrees with the f16 file on "
        f"{parity.figures['agreement']:.1%} of {'the tokens of ' if is_written else ''}{len(source.parity)} "
        f"{'answers' if is_written else 'prompts'}."
    )


def _explain_left_out(source: ExportSource, parity: Parity) -> str:
    if DEV_P_VALUE not in parity.bounds or parity.figures[DEV_P_VALUE] <= parity.bounds[DEV_P_VALUE]:
        return parity.text
    rows = count_rows_for_margin(source.margin, source.confidence)
    scores = ""
    if source.dev:
        scores = f": {parity.figures['dev_score']:.3f} against the adapter's {parity.figures['dev_adapter_score']:.3f}"
    return (
        f"{parity.text} On {count_noun(len(source.dev), 'row')} of dev.jsonl it is not shown that 4 bits cost less "
        f"than `evaluation.margin` ({source.margin:g}){scores}. It takes at least {count_noun(rows, 'row')}, and more "
        f"where answers differ. Add rows, raise the margin, or use the 8-bit file."
    )
