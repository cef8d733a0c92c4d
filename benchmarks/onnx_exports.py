"""The ONNX part of benchmarks/parity.py: corrupted files of an encoder, and the speed of healthy ones."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

LATENCY_TEXTS = 60
BATCH = 32


def refuse_onnx_corruptions(source: Any, release: Path, work: Path) -> dict[str, Any]:
    """The figures of every corrupted ONNX file, and whether it was refused.

    Args:
        release: the folder with the healthy `onnx/`.
        work: an empty folder for the corrupted ones.
    """
    from distill_dagster.release.onnx import graph
    from distill_dagster.release.onnx.export import load_merged
    from distill_dagster.release.onnx.parity import check_full
    from distill_dagster.student.encoder import EncoderStudent

    student = load_merged(source)
    base = EncoderStudent(source.spec, list(source.labels), source.settings, source.models)
    layers = len(student.model["encoder"].encoder.layer)
    path = work / "model.onnx"

    def copy() -> None:
        for file in (release / "onnx").iterdir():
            (work / file.name).write_bytes(file.read_bytes())

    def lose_layer(number: int) -> Callable[[], None]:
        def corrupt() -> None:
            broken = load_merged(source)
            parts = (one.model["encoder"].encoder.layer[number] for one in (broken, base))
            kept, lost = parts
            kept.load_state_dict(lost.state_dict())
            graph.write_graph(broken, path)

        return corrupt

    def lose_all() -> None:
        broken = load_merged(source)
        broken.model["encoder"].load_state_dict(base.model["encoder"].state_dict())
        graph.write_graph(broken, path)

    def pool_first_token() -> None:
        import torch

        def pool(hidden: Any, attention_mask: Any) -> Any:
            return torch.nn.functional.normalize(hidden[:, 0], dim=-1)

        with mock.patch.object(graph, "mean_pool", pool):
            graph.write_graph(student, path)

    def pool_padding_too() -> None:
        import torch

        def pool(hidden: Any, attention_mask: Any) -> Any:
            return torch.nn.functional.normalize(hidden.mean(1), dim=-1)

        with mock.patch.object(graph, "mean_pool", pool):
            graph.write_graph(student, path)

    def swap_labels() -> None:
        _edit(work / "config.json", lambda value: value["id2label"].update({"0": value["id2label"]["1"]}))

    def lose_truncation() -> None:
        _edit(work / "tokenizer.json", lambda value: value.update(truncation=None))

    def keep_case() -> None:
        _edit(work / "tokenizer.json", lambda value: value["normalizer"].update(lowercase=False))

    corruptions = {
        "last layer not merged": lose_layer(layers - 1),
        "lowest adapted layer not merged": lose_layer(layers - (source.spec.lora.last_layers or layers)),
        "adapter lost": lose_all,
        "first token instead of the mean": pool_first_token,
        "mean over padding too": pool_padding_too,
        "labels in another order": swap_labels,
        "truncation lost": lose_truncation,
        "upper case kept": keep_case,
    }
    found = {}
    for name, corrupt in corruptions.items():
        copy()
        corrupt()
        parity = check_full(source, path, student.tokenizer)
        found[name] = {"refused": not parity.passed} | dict(parity.figures)
        print(f"{name}: {'refused' if not parity.passed else 'NOT REFUSED'}. {parity.text}", flush=True)
    return found


def measure_speed(source: Any, release: Path, prompts: Sequence[Any]) -> dict[str, Any]:
    """CPU milliseconds of one text alone, and texts per CPU second in batches, of PyTorch and of both ONNX files.

    All of them compute in one thread, one after the other in this process.
    """
    import torch

    from distill_dagster.release.onnx.export import load_merged
    from distill_dagster.release.runtimes.onnx import OnnxRuntime
    from distill_dagster.release.runtimes.types import SERVABLE_EXPORTS, StudentSetup

    setup = StudentSetup(source.spec, source.labels, source.settings, source.models)
    torch.set_num_threads(1)
    student = load_merged(source)
    answer: dict[str, Callable[[list[Any]], Any]] = {"pytorch": student.predict_batch}
    for name in ("onnx", "onnx-int8"):
        runtime = OnnxRuntime(release / SERVABLE_EXPORTS[name], setup, name, threads=1)
        runtime.open()
        answer[name] = runtime.answer
    ordered = sorted(prompts, key=lambda prompt: len(prompt.text))
    found: dict[str, Any] = {name: {} for name in answer}
    for name, ask in answer.items():
        ask(ordered[-1:])
        alone = [_measure_cpu_s(ask, [prompt]) for prompt in prompts[:LATENCY_TEXTS]]
        found[name]["cpu_ms_alone"] = round(1000 * statistics.median(alone), 2)
        batches = [ordered[start : start + BATCH] for start in range(0, len(ordered), BATCH)]
        seconds = sum(_measure_cpu_s(ask, batch) for batch in batches)
        found[name]["texts_per_cpu_s"] = round(len(ordered) / seconds, 1)
    return found


def _measure_cpu_s(ask: Callable[[list[Any]], Any], prompts: list[Any]) -> float:
    started = time.process_time()
    ask(list(prompts))
    return time.process_time() - started


def _edit(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")
