"""Copy GGUF files tensor by tensor, with other number formats or other metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, ReaderTensor
    from numpy.typing import NDArray

    TensorData = tuple[NDArray[Any], GGMLQuantizationType]
    ConvertTensor = Callable[[ReaderTensor], TensorData | None]

ALIGNMENT_FIELD = "general.alignment"


def copy_gguf(source: Path, target: Path, convert: ConvertTensor, changes: Mapping[str, Any] | None = None) -> None:
    """Copy a GGUF file.

    Args:
        convert: gets every tensor in the order of the file, and returns its new bytes and their number format, or None
            to keep both. The bytes have one row of the tensor per row.
        changes: new values of metadata that the file has. They keep their types. None removes a value.
    """
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    changes = changes or {}
    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        value = changes.get(field.name, field.contents())
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", ALIGNMENT_FIELD) or value is None:
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, kind, sub_type=element)
    try:
        converted = ((tensor, convert(tensor) or (tensor.data, tensor.tensor_type)) for tensor in reader.tensors)
        for tensor, (data, number_format) in converted:
            writer.add_tensor(tensor.name, data, raw_dtype=number_format)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_gguf_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file, without arrays such as the vocabulary."""
    from gguf import GGUFReader, GGUFValueType

    fields = GGUFReader(path).fields.values()
    return {field.name: field.contents() for field in fields if field.types[0] != GGUFValueType.ARRAY}
