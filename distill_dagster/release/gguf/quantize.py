"""Quantize a GGUF file with llama.cpp's own functions, from the library of xllamacpp.

The library does not export `llama_model_quantize`. `ggml_quantize_chunk`, which does the arithmetic, is exported. Which
tensor gets which number format is decided here by llama.cpp's rules (src/llama-quant.cpp, MIT): for `Q4_K_M`, more bits
for some layers' values and down projections and for the output, and formats with smaller blocks where rows do not fit.
Left out are its exceptions for Falcon and for Llama models of 70 billion weights.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distill_dagster.core.errors import DistillError
from distill_dagster.core.gguf_files import copy_gguf
from distill_dagster.core.progress import report_progress

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, ReaderTensor

QuantizedType = Literal["q8_0", "q4_k_m"]
FILE_TYPES: dict[QuantizedType, int] = {"q8_0": 7, "q4_k_m": 15}
"""llama.cpp's numbers for the format of a whole file, `general.file_type`."""
_NOT_QUANTIZED = ("_norm.weight", "ffn_gate_inp", "ssm_conv1d", "shortconv.conv", "time_mix_", "altup", "laurel")
"""Parts of the names of matrices that stay as they are: they are small, and errors in them are large."""
_MIN_BLOCK = 32


def quantize_gguf(source: Path, target: Path, quantized: QuantizedType) -> float:
    """Write a GGUF file with quantized matrices. Vectors and matrices with unusual rows stay as they are.

    Returns:
        Mean bits per weight of the new file.

    Raises:
        DistillError: xllamacpp is not installed, or the model is a mixture of experts and the format is not `q8_0`.
    """
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(source)
    tensors = reader.tensors
    if quantized != "q8_0" and any("_exps" in tensor.name for tensor in tensors):
        raise DistillError("A mixture of experts is quantized to 8 bits only.")
    chosen = choose_formats([(tensor.name, tuple(map(int, tensor.shape))) for tensor in tensors], quantized)
    names = [tensor.name for tensor in tensors]
    bits = 0

    def convert(tensor: ReaderTensor) -> Any:
        nonlocal bits
        report_progress(f"quantizing to {quantized}", names.index(tensor.name) + 1, len(names))
        if (number_format := chosen.get(tensor.name)) is None:
            bits += tensor.n_bytes * 8
            return None
        rows = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        data = _quantize_rows(rows, number_format)
        bits += data.nbytes * 8
        return data, number_format

    copy_gguf(reader, target, convert, {"general.file_type": FILE_TYPES[quantized]})
    return bits / sum(int(tensor.n_elements) for tensor in tensors)


def choose_formats(
    tensors: list[tuple[str, tuple[int, ...]]], quantized: QuantizedType
) -> dict[str, GGMLQuantizationType]:
    """The number format of every matrix that is quantized, by name.

    Args:
        tensors: names and shapes in llama.cpp's order, the length of a row first.
    """
    matrices = {name: shape for name, shape in tensors if _is_quantized(name, shape)}
    is_tied = "output.weight" not in matrices
    values = {
        name: place
        for ending in ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")
        for name, place in _rank_by_layer(matrices, ending).items()
    }
    downs = _rank_by_layer(matrices, "ffn_down.weight")
    chosen = {}
    for name, shape in matrices.items():
        row = shape[0]
        wanted = "Q8_0" if quantized == "q8_0" else _choose_q4_k_m(name, row, is_tied, values, downs)
        if (number_format := _fit_to_row(wanted, row)) is not None:
            chosen[name] = number_format
    return chosen


def _is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    is_matrix = len([size for size in shape if size > 1]) >= 2
    return is_matrix and name.endswith("weight") and not any(part in name for part in _NOT_QUANTIZED)


def _rank_by_layer(matrices: dict[str, tuple[int, ...]], ending: str) -> dict[str, tuple[int, int]]:
    """The place of every matrix with this ending among all of them, and how many there are."""
    found = [(int(re.sub(r"\D+", " ", name).split()[0]), name) for name in matrices if name.endswith(ending)]
    return {name: (place, len(found)) for place, (_, name) in enumerate(sorted(found))}


def _choose_q4_k_m(
    name: str, row: int, is_tied: bool, values: dict[str, tuple[int, int]], downs: dict[str, tuple[int, int]]
) -> str:
    if name == "output.weight" or (is_tied and name == "token_embd.weight"):
        return "Q6_K" if row % 256 == 0 else "Q8_0"
    if name in values and _gets_more_bits(*values[name]):
        return "Q6_K"
    if name in downs and _gets_more_bits(*downs[name]):
        return "Q6_K"
    return "Q4_K"


def _gets_more_bits(place: int, count: int) -> bool:
    """The first and the last eighth of the layers, and every third between them."""
    return place < count // 8 or place >= 7 * count // 8 or (place - count // 8) % 3 == 2


def _fit_to_row(wanted: str, row: int) -> GGMLQuantizationType | None:
    """The format, or the one with blocks of 32 where rows have no multiple of 256 values. None if nothing fits."""
    from gguf import GGMLQuantizationType

    if row % 256 != 0:
        wanted = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}.get(wanted, wanted)
    return GGMLQuantizationType[wanted] if row % _MIN_BLOCK == 0 else None


def _quantize_rows(rows: Any, number_format: GGMLQuantizationType) -> Any:
    """Quantize a float32 array. Returns bytes of the shape (..., bytes of a row)."""
    import numpy as np
    from gguf.constants import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[number_format]
    width = rows.shape[-1]
    out = np.empty((*rows.shape[:-1], width // block * size), dtype=np.uint8)
    count = rows.size // width
    written = _find_quantizer()(int(number_format), rows.ctypes.data, out.ctypes.data, 0, count, width, None)
    if written != out.nbytes:
        raise DistillError(f"llama.cpp wrote {written} bytes of a {number_format.name} matrix, expected {out.nbytes}.")
    return out


@lru_cache(maxsize=1)
def _find_quantizer() -> Callable[..., int]:
    """`ggml_quantize_chunk(type, source, target, first, rows, row length, importance matrix)`.

    Raises:
        DistillError: xllamacpp is not installed.
    """
    try:
        import xllamacpp.xllamacpp as library
    except ImportError as error:
        raise DistillError(
            "Quantizing needs the package xllamacpp. Install it with `pip install 'distill-dagster[embedded]'`."
        ) from error
    function = ctypes.CDLL(library.__file__).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    return function
