"""Whether a training fits in memory, before it starts, and how many rows fit at once.

Two things are checked. Before the model is loaded: its weights, gradients and optimizer state, which follow from the
model's config. Before the first step: what the backward pass keeps of the longest row. That is measured, so it holds
for every model and objective.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.config import StudentSpec
from distill_dagster.core import models
from distill_dagster.core.errors import DistillError
from distill_dagster.core.formatting import format_bytes
from distill_dagster.core.memory import Memory, measure_memory
from distill_dagster.student import loading
from distill_dagster.student.batches import WHOLE_STEP, Item, MicroBatches
from distill_dagster.student.shrinking import remove_layers
from distill_dagster.student.training_mode import set_training

if TYPE_CHECKING:
    import torch

    from distill_dagster.student.train import Student

NF4_BYTES = 0.52
"""Bytes of a 4-bit weight with double quantization: 0.5, and 0.127 bits of constants (Dettmers et al. 2023)."""

ADAM_BYTES = 8
"""Bytes of the optimizer's two moments of a weight."""

BACKWARD_FACTOR = 1.25
"""Memory of a forward and backward pass, as a multiple of the tensors that forward keeps for backward."""

SHARE_OF_MEMORY = 0.5
"""`micro_batch_size: auto` plans with this share of the machine's memory, so that equal machines train alike."""

SHARE_OF_FREE = 0.9
"""The share of the free memory that a training may take."""


def measure_training_memory() -> Memory:
    """The memory that training uses: the GPU's if there is one, else the processor's."""
    import torch

    gc.collect()  # trainers have reference cycles: an earlier training of this process would count as in use
    if not torch.cuda.is_available():
        return measure_memory()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return Memory(total, free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())


def check_model_fits(spec: StudentSpec, models_folder: Path, memory: Memory | None = None, ranks: int = 1) -> None:
    """Check that the weights of a student and the optimizer's state fit, without loading the model.

    Args:
        memory: by default that of this machine.
        ranks: processes that each load the model and, without GPUs, share the memory.

    Raises:
        DistillError: they do not fit. It says what would.
        ModelError: the model's config cannot be found.
    """
    memory = memory or measure_training_memory()
    free = memory.free // _count_sharing(ranks)
    skeleton = build_skeleton(spec, models_folder)
    needed = estimate_model_bytes(skeleton, spec)
    if needed <= SHARE_OF_FREE * free:
        return
    fitting = [
        f"{setting} ({format_bytes(smaller)})"
        for setting, other in _list_smaller_specs(spec)
        if (smaller := estimate_model_bytes(skeleton, other)) <= SHARE_OF_FREE * free
    ]
    raise DistillError(
        f"Training {spec.model} with `method: {spec.method}` in {_get_dtype_name(spec)} needs about "
        f"{format_bytes(needed)} for its weights and the optimizer, and {format_bytes(free)} of "
        f"{format_bytes(memory.total)} are free{f' for each of {ranks} processes' if ranks > 1 else ''}. "
        + (f"Use one of these: {', '.join(fitting)}." if fitting else "Use a smaller model.")
    )


def check_teacher_fits(teacher: StudentSpec, models_folder: Path, memory: Memory | None = None) -> None:
    """Check that the weights of a local teacher fit next to a loaded student, without loading them.

    Args:
        teacher: the settings by which it will be loaded.
        memory: by default that of this machine.

    Raises:
        DistillError: they do not fit.
        ModelError: the model's config cannot be found.
    """
    memory = memory or measure_training_memory()
    itemsize = loading.get_torch_dtype(teacher.dtype).itemsize
    needed = round(_estimate_base_bytes(build_skeleton(teacher, models_folder), teacher, itemsize))
    if needed > SHARE_OF_FREE * memory.free:
        raise DistillError(
            f"The teacher {teacher.model} needs about {format_bytes(needed)} next to the student, and "
            f"{format_bytes(memory.free)} of {format_bytes(memory.total)} are free. Use a smaller teacher."
        )


def _count_sharing(ranks: int) -> int:
    """How many ranks share the memory that one of them measures."""
    import torch

    return 1 if torch.cuda.is_available() else ranks


def _list_smaller_specs(spec: StudentSpec) -> Iterator[tuple[str, StudentSpec]]:
    """Settings that need less memory, the most alike first."""
    if spec.method == "full":
        yield "`method: lora`", spec.model_copy(update={"method": "lora"})
    if _get_dtype_name(spec) == "float32":
        yield "`method: lora` with `dtype: bfloat16`", spec.model_copy(update={"method": "lora", "dtype": "bfloat16"})
    if spec.method != "qlora":
        update = {"method": "qlora", "quantization": "nf4", "dtype": "bfloat16"}
        yield "`method: qlora` with `dtype: bfloat16`", spec.model_copy(update=update)
    if spec.method != "full" and spec.lora.rank > 8:
        yield "`lora.rank: 8`", spec.model_copy(update={"lora": spec.lora.model_copy(update={"rank": 8})})


def _get_dtype_name(spec: StudentSpec) -> str:
    return str(loading.get_torch_dtype(spec.dtype)).removeprefix("torch.")


def build_skeleton(spec: StudentSpec, models_folder: Path) -> Any:
    """The model of a student with shapes and without values (torch's meta device), which takes no memory.

    Raises:
        ModelError: the model's config cannot be found.
    """
    import torch
    import transformers

    resolved = models.resolve_model(spec.model, models_folder, spec.revision)
    config = models.load_pretrained(transformers.AutoConfig, spec.model, resolved)
    auto_class = transformers.AutoModel if spec.architecture == "encoder" else transformers.AutoModelForCausalLM
    with torch.device("meta"), models.convert_load_errors(spec.model):
        model = auto_class.from_config(copy.deepcopy(config))
    if spec.shrink is not None:
        remove_layers(model, spec.shrink.layers)
    return model


def estimate_model_bytes(skeleton: Any, spec: StudentSpec) -> int:
    """Bytes of a student's weights, and of the gradients and the optimizer's state of those that are trained.

    Raises:
        DistillError: `lora.last_layers` is more than the model has, or its layers cannot be found.
    """
    itemsize = 4 if spec.method == "full" else loading.get_torch_dtype(spec.dtype).itemsize
    weights = _estimate_base_bytes(skeleton, spec, itemsize)
    trained = _count_trained_weights(skeleton, spec)
    if spec.method != "full":
        weights += 4 * trained
    return round(weights + trained * _get_bytes_per_trained_weight(spec))


def _estimate_base_bytes(skeleton: Any, spec: StudentSpec, itemsize: int) -> float:
    """Bytes of the weights of a loaded model. `itemsize` is that of a weight that is not quantized."""
    import torch

    total = sum(parameter.numel() for parameter in skeleton.parameters())
    if spec.method != "qlora":
        return total * itemsize
    head = skeleton.get_output_embeddings()
    linear = [m for m in skeleton.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    in_linear = sum(layer.weight.numel() for layer in linear)
    # peft trains with the weights that are not quantized in float32.
    return in_linear * NF4_BYTES + (total - in_linear) * 4


def _get_bytes_per_trained_weight(spec: StudentSpec) -> int:
    """Bytes of its gradient, the optimizer's state and, with early stopping, its copy of the best epoch."""
    return 4 + ADAM_BYTES + (4 if spec.patience is not None else 0)


def _count_trained_weights(skeleton: Any, spec: StudentSpec) -> int:
    import torch

    plain = spec.model_copy(update={"quantization": "none"})  # a skeleton has no values to quantize
    is_encoder = spec.architecture == "encoder"
    task_type, exclude = ("FEATURE_EXTRACTION", loading.POOLER) if is_encoder else ("CAUSAL_LM", None)
    with torch.random.fork_rng(), torch.device("meta"):
        model = loading.make_trainable(copy.deepcopy(skeleton), plain, task_type, exclude)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def choose_micro_batches(
    student: Student,
    items: Sequence[Item],
    ranks: int = 1,
    memory: Memory | None = None,
    saved: MicroBatches | None = None,
) -> MicroBatches:
    """How many rows to compute at once, by `micro_batch_size` or by what fits.

    `auto` computes a whole step at once if half of the machine's memory is enough for it.

    Args:
        saved: what the interrupted training chose that goes on. `auto` takes it if it still fits.
        ranks: processes that share a step and, without GPUs, the memory.
        memory: by default that of this machine.

    Raises:
        DistillError: the rows do not fit. It says which would.
    """
    spec = student.spec
    longest = max(items, key=lambda item: item["length"])
    trained = [p for p in student.trained_module.parameters() if p.requires_grad]
    optimizer = sum(p.numel() for p in trained) * _get_bytes_per_trained_weight(spec)
    memory = memory or measure_training_memory()
    sharing = _count_sharing(ranks)
    free = SHARE_OF_FREE * memory.free / sharing - optimizer
    row, fixed = _measure_row_bytes(student, items, free)
    if fixed + row > free:
        raise _build_row_error(longest["length"], row, fixed, free)
    rows = -(-min(spec.batch_size, len(items)) // ranks)
    if spec.micro_batch_size != "auto":
        needed = fixed + min(spec.micro_batch_size, rows) * row
        if needed > free:
            raise DistillError(
                f"`micro_batch_size: {spec.micro_batch_size}` needs about {format_bytes(round(needed))}, and "
                f"{format_bytes(round(free))} are free. {int((free - fixed) // row)} rows of the longest, "
                f"{longest['length']} tokens, would fit; `auto` finds how many."
            )
        return MicroBatches(rows=spec.micro_batch_size)
    if saved is not None and fixed + saved.count_rows(longest["length"], rows) * row <= free:
        return saved
    planned = min(free, SHARE_OF_MEMORY * memory.total / sharing)
    if fixed + rows * row <= planned:
        return WHOLE_STEP
    return MicroBatches(rows=None, tokens=max(1, int((planned - fixed) // row)) * longest["length"])


def _measure_row_bytes(student: Student, items: Sequence[Item], free: float) -> tuple[float, float]:
    """Bytes that a forward and backward pass needs for each of its rows, by the longest one, and for all of them once.

    What is needed once is, for example, a copy of all weights in the number format of the computation. It is measured
    with the shortest row, which takes the least memory.

    Raises:
        DistillError: the longest row does not fit on the GPU.
    """
    import torch

    longest, shortest = (choose(items, key=lambda item: item["length"]) for choose in (max, min))
    try:
        one = measure_kept_bytes(student, [longest])
        short = measure_kept_bytes(student, [shortest])
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        raise _build_row_error(longest["length"], None, 0, free) from None
    fixed = 0
    if 2 * shortest["length"] <= longest["length"] or one + short <= free:  # else two rows may not fit
        fixed = max(0, 2 * short - measure_kept_bytes(student, [shortest] * 2))
    return BACKWARD_FACTOR * max(1, one - fixed), BACKWARD_FACTOR * fixed


def _build_row_error(tokens: int, row: float | None, fixed: float, free: float) -> DistillError:
    needs = f"needs about {format_bytes(round(fixed + row))}" if row is not None else "does not fit"
    fits = max(1, int(tokens * (free - fixed) / row)) if row is not None else tokens // 2
    return DistillError(
        f"The longest row has {tokens} tokens. To compute it alone {needs}, and {format_bytes(max(0, round(free)))} "
        f"are free. About {fits} tokens would fit: lower `max_tokens` and `answer_tokens`, or adapt fewer layers with "
        f"`lora.last_layers`."
    )


def measure_kept_bytes(student: Student, items: Sequence[Item]) -> int:
    """Bytes of the tensors that the backward pass of these rows needs, without the model's weights.

    This takes one forward pass.
    """
    import torch

    module = student.trained_module
    weights = {p.untyped_storage().data_ptr() for p in student.base.model.parameters()}
    weights |= {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that a node keeps as it is keeps the node: neither would be freed

    batch = {name: value.to(student.device) for name, value in student.collate(list(items)).items()}
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.random.fork_rng(), set_training(module, True):
        parts = student.compute_loss(batch)
    del parts
    return sum(kept.values())
