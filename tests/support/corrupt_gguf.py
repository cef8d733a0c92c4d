"""GGUF files that are broken as known exports were: for tests and for the benchmark of parity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from distill_dagster.core.gguf_files import copy_gguf, read_gguf_metadata


def corrupt(name: str, healthy: Path, base: Path, target: Path, base_template: str) -> None:
    """Write a file that is broken in the way of `CORRUPTIONS` with this name.

    Args:
        healthy: the f16 file of a student.
        base: the f16 file of its base.
        base_template: the chat template of the base.
    """
    changes: dict[str, dict[str, Any]] = {
        "wrong rope base": {"llama.rope.freq_base": 10_000.0},
        "wrong pre-tokenizer": {"tokenizer.ggml.pre": "default"},
        "chat template of the base": {"tokenizer.chat_template": base_template},
        "a start token too many": {"tokenizer.ggml.add_bos_token": True},
    }
    convert = _CONVERTERS.get(name, _keep_all)(healthy, base)
    copy_gguf(GGUFReader(healthy), target, convert, changes.get(name, {}))


CORRUPTIONS = (
    "adapter lost",
    "one layer not merged",
    "scale of rsLoRA lost",
    "q and k not permuted",
    "wrong rope base",
    "wrong pre-tokenizer",
    "chat template of the base",
    "a start token too many",
)

ConvertTensor = Callable[[Any], tuple[Any, Any] | None]


def _keep_all(healthy: Path, base: Path) -> ConvertTensor:
    return lambda tensor: None


def _lose_adapter(healthy: Path, base: Path) -> ConvertTensor:
    tensors = _read_tensors(base)
    return lambda tensor: (tensors[tensor.name].data, tensors[tensor.name].tensor_type)


def _skip_last_layer(healthy: Path, base: Path) -> ConvertTensor:
    tensors = _read_tensors(base)
    last = max(int(name.split(".")[1]) for name in tensors if name.startswith("blk."))

    def convert(tensor: Any) -> tuple[Any, Any] | None:
        is_last = tensor.name.startswith(f"blk.{last}.")
        return (tensors[tensor.name].data, tensors[tensor.name].tensor_type) if is_last else None

    return convert


def _scale_adapter(healthy: Path, base: Path) -> ConvertTensor:
    """A quarter of what was trained: llama.cpp scales a LoRA of rank 16 by alpha / 16, and rsLoRA by alpha / 4."""
    tensors = _read_tensors(base)

    def convert(tensor: Any) -> tuple[Any, Any]:
        before = tensors[tensor.name].data
        changed = before.astype("float32") + (tensor.data.astype("float32") - before.astype("float32")) / 4
        return changed.astype(tensor.data.dtype), tensor.tensor_type

    return convert


def _undo_permutation(healthy: Path, base: Path) -> ConvertTensor:
    counts = read_gguf_metadata(healthy)
    names = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}

    def convert(tensor: Any) -> tuple[Any, Any] | None:
        name = names.get(tensor.name.split(".")[-2])
        if name is None:
            return None
        heads = counts[name]
        rows, columns = tensor.data.shape
        data = tensor.data.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        return data.copy(), tensor.tensor_type

    return convert


_CONVERTERS: dict[str, Callable[[Path, Path], ConvertTensor]] = {
    "adapter lost": _lose_adapter,
    "one layer not merged": _skip_last_layer,
    "scale of rsLoRA lost": _scale_adapter,
    "q and k not permuted": _undo_permutation,
}


def _read_tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}
