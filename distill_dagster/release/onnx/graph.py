"""Write an encoder, mean pooling and its head as one ONNX file, in float32 and in 8 bits."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.core.errors import DistillError
from distill_dagster.release.runtimes.onnx import INPUT_NAMES, OUTPUT_NAME
from distill_dagster.student.encoder import mean_pool

if TYPE_CHECKING:
    from distill_dagster.student.encoder import EncoderStudent

OPSET = 18
MAX_BYTES = 2**31 - 2**20
"""The size of one protocol buffer file, with room for the graph."""
BLOCK_SIZE = 32
"""Weights with one scale, as in llama.cpp's Q8_0."""


class UnsupportedModelError(DistillError):
    """This model cannot be an ONNX file."""


def write_graph(student: EncoderStudent, path: Path) -> None:
    """Write a student whose adapter is merged, in float32, with any number of texts and tokens.

    Inputs are `input_ids` and `attention_mask`, int64 (texts, tokens). The output is `logits`, float32 (texts, labels).
    torch's notes about its source files are left out, since they have the paths of this machine.

    Raises:
        UnsupportedModelError: torch cannot convert the model, or it is larger than a file can be.
    """
    import onnx
    import torch

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = student.model["encoder"], student.model["head"]

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return self.head(mean_pool(hidden, attention_mask))

    student.model.to("cpu").float().eval()
    size = sum(p.numel() * p.element_size() for p in student.model.parameters())
    if size > MAX_BYTES:
        raise UnsupportedModelError(f"Its weights have {size / 1e9:.1f} GB in float32, and an ONNX file has 2 GB.")
    # Two texts of different length: sizes of 1 and equal sizes would be taken for constants.
    texts = ["A text.", "A second, longer text of some words."]
    example = student.tokenizer(texts, padding=True, return_tensors="pt")
    axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    with torch.no_grad(), _silence_export():
        try:
            program = torch.onnx.export(
                Classifier(),
                (),
                kwargs={name: example[name] for name in INPUT_NAMES},
                dynamo=True,
                opset_version=OPSET,
                input_names=list(INPUT_NAMES),
                output_names=[OUTPUT_NAME],
                dynamic_shapes=dict.fromkeys(INPUT_NAMES, axes),
                verbose=False,
            )
        except Exception as error:  # whatever torch does not support in this model
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise UnsupportedModelError(f"torch cannot convert this model to ONNX: {first}") from error
    assert program is not None
    onnx.save(_strip(program.model_proto), path)


def write_int8_graph(full: Path, path: Path) -> None:
    """Write a float32 file with weights in 8 bits.

    Matrices have one scale for each block of 32 weights. Their inputs are rounded to 8 bits row by row, not with one
    scale for the whole batch as in `quantize_dynamic`: so an answer does not depend on the texts next to it. Tables of
    embeddings have one scale for each dimension.
    """
    import onnx

    with _keep_root_logger():
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
        from onnxruntime.quantization.quant_utils import add_pre_process_metadata

        logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
        settings = DefaultWeightOnlyQuantConfig(
            block_size=BLOCK_SIZE,
            is_symmetric=True,
            accuracy_level=4,  # inputs are rounded to 8 bits too
            quant_format=QuantFormat.QOperator,
            op_types_to_quantize=("MatMul",),
            bits=8,
        )
        quantizer = MatMulNBitsQuantizer(onnx.load(full), algo_config=settings)
        quantizer.process()
        model = quantizer.model.model
        add_pre_process_metadata(model)  # else it advises to simplify the graph, which torch has done
        quantize_dynamic(model, path, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["Gather"])
    onnx.save(_strip(onnx.load(path)), path)


def _strip(model: Any) -> Any:
    """Remove notes, and the shapes between nodes, which onnxruntime infers and its quantizer contradicts."""
    del model.graph.value_info[:]
    del model.metadata_props[:]
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    return model


@contextmanager
def _silence_export() -> Iterator[None]:
    """Hide what torch says about packages that are not installed and about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _keep_root_logger() -> Iterator[None]:
    """Undo what importing onnxruntime's quantizer does to the logging of the whole process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
