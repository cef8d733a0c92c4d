"""Copies of GGUF files, and their metadata without the vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from distill_dagster.core.gguf_files import copy_gguf, read_gguf_metadata

MATRIX = np.arange(64, dtype=np.float32).reshape(2, 32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_rope_freq_base(10_000.0)
    writer.add_add_bos_token(True)
    writer.add_token_list(["a", "b", "ü"])
    writer.add_token_scores([0.5, 1.5, 2.5])
    writer.add_chat_template("{{ 'é' }}")
    writer.add_tensor("blk.0.attn_q.weight", MATRIX)
    writer.add_tensor("blk.0.attn_norm.weight", MATRIX[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_is_that_of_the_reader_without_arrays(file: Path) -> None:
    fields = GGUFReader(file).fields.values()
    arrays = {"tokenizer.ggml.tokens", "tokenizer.ggml.scores"}
    expected = {f.name: f.contents() for f in fields if f.name not in arrays and not f.name.startswith("GGUF.")}
    assert read_gguf_metadata(file) == expected
    assert expected["tokenizer.chat_template"] == "{{ 'é' }}"
    other = file.with_name("other")
    other.write_bytes(b"safetensors")
    with pytest.raises(ValueError, match="no GGUF file"):
        read_gguf_metadata(other)


def test_a_copy_has_other_values_and_formats(file: Path) -> None:
    def convert(tensor: Any) -> tuple[Any, GGMLQuantizationType] | None:
        if tensor.name.endswith("norm.weight"):
            return None
        return tensor.data.astype(np.float16), GGMLQuantizationType.F16

    copy = file.with_name("copy.gguf")
    copy_gguf(GGUFReader(file), copy, convert, {"llama.rope.freq_base": 5.0, "tokenizer.chat_template": None})
    found = read_gguf_metadata(copy)
    assert found["llama.rope.freq_base"] == 5
    assert "tokenizer.chat_template" not in found
    assert found["tokenizer.ggml.add_bos_token"] is True
    reader = GGUFReader(copy)
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "b", "ü"]
    matrix, vector = reader.tensors
    assert matrix.tensor_type == GGMLQuantizationType.F16
    assert np.array_equal(matrix.data, MATRIX.astype(np.float16))
    assert vector.tensor_type == GGMLQuantizationType.F32
    assert np.array_equal(vector.data, MATRIX[0])
