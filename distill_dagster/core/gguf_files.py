"""Copy GGUF files tensor by tensor, with other number formats or other metadata."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor
    from numpy.typing import NDArray

    TensorData = tuple[NDArray[Any], GGMLQuantizationType]
    ConvertTensor = Callable[[ReaderTensor], TensorData | None]

ALIGNMENT_FIELD = "general.alignment"


def copy_gguf(
    reader: GGUFReader, target: Path, convert: ConvertTensor, changes: Mapping[str, Any] | None = None
) -> None:
    """Copy a GGUF file.

    Args:
        reader: of the file. A reader takes seconds to open, so whoever has one already passes it.
        convert: gets every tensor in the order of the file, and returns its new bytes and their number format, or None
            to keep both. The bytes have one row of the tensor per row.
        changes: new values of metadata that the file has. They keep their types. None removes a value.
    """
    from gguf import GGUFValueType, GGUFWriter

    changes = changes or {}
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
    """The metadata of a GGUF file, without arrays. `GGUFReader` takes seconds for a vocabulary that nobody asks for.

    Raises:
        ValueError: it is no GGUF file.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise ValueError(f"{path} is no GGUF file")
        place = 24  # after the version and the numbers of tensors and of values
        found = {}
        for _ in range(struct.unpack_from("<Q", data, 16)[0]):
            key, place = _read_value(data, place, _STRING)
            [kind] = struct.unpack_from("<I", data, place)
            value, place = _read_value(data, place + 4, kind)
            if kind != _ARRAY:
                found[key] = value
        return found


_STRING, _ARRAY = 8, 9
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""How `struct` reads the types of GGUF's specification."""


def _read_value(data: mmap.mmap, place: int, kind: int) -> tuple[Any, int]:
    """A value, and the place after it. The value of an array is None."""
    if kind == _STRING:
        [size] = struct.unpack_from("<Q", data, place)
        return data[place + 8 : place + 8 + size].decode(errors="replace"), place + 8 + size
    if kind != _ARRAY:
        return struct.unpack_from(_FORMATS[kind], data, place)[0], place + struct.calcsize(_FORMATS[kind])
    element, count = struct.unpack_from("<IQ", data, place)
    place += 12
    if element in _FORMATS:
        return None, place + count * struct.calcsize(_FORMATS[element])
    for _ in range(count):
        _, place = _read_value(data, place, element)
    return None, place
