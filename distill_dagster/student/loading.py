"""Loading a student's base model, in full or quantized precision, and its adapters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.student import models

if TYPE_CHECKING:
    from distill_dagster.spec import StudentSpec

HEADS = ["classifier", "pre_classifier", "score", "lm_head"]


@dataclass
class Base:
    """A loaded base. `bytes` is the size of its weights on disk; for a model from the hub that of them in memory."""

    model: Any
    tokenizer: Any
    bytes: int
    parameters: int


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def load_base(
    spec: StudentSpec, models_folder: Path, auto_class: str, dtype: str | None = None, **options: Any
) -> Base:
    """The base model of a student in evaluation mode, on the GPU where there is one.

    Raises:
        ModelError: the model cannot be found or loaded.
    """
    import torch
    import transformers

    resolved = models.resolve(spec.model, models_folder, spec.revision)
    tokenizer = models.from_pretrained(transformers.AutoTokenizer, spec.model, resolved)
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    options["dtype"] = torch_dtype(dtype or spec.dtype)
    if spec.quantization == "nf4":
        options |= _nf4(options["dtype"])
    torch.manual_seed(spec.seed)  # a new classification head is drawn here
    model = models.from_pretrained(getattr(transformers, auto_class), spec.model, resolved, **options)
    if spec.quantization == "none":
        model = model.to(device())
    parameters = sum(p.numel() for p in model.parameters()) if spec.quantization == "none" else model.num_parameters()
    in_memory = sum(p.numel() * p.element_size() for p in model.parameters())
    return Base(model.eval(), tokenizer, models.weight_bytes(resolved) or in_memory, parameters)


def _nf4(dtype: Any) -> dict[str, Any]:
    """4-bit NormalFloat with double quantization (Dettmers et al. 2023, "QLoRA"); heads stay as they are."""
    import torch
    from transformers import BitsAndBytesConfig

    on_cpu = device() == "cpu"
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32 if on_cpu else dtype,
        llm_int8_skip_modules=HEADS,
    )
    return {"quantization_config": config, "device_map": "cpu" if on_cpu else {"": 0}}


def with_new_adapter(model: Any, spec: StudentSpec, task_type: str) -> Any:
    """The model with an untrained LoRA adapter in float32 (Hu et al. 2021), ready to train."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if spec.quantization != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    torch.manual_seed(spec.seed)
    lora = spec.lora
    config = LoraConfig(
        task_type=task_type,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a float serves as well
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )
    return get_peft_model(model, config)


def with_adapter(model: Any, adapter: Path, merge: bool) -> Any:
    """The model with a trained adapter; `merge` adds it to the weights, which is quicker to run.

    Raises:
        ModelError: the folder is not an adapter, or not one of this model.
    """
    from peft import PeftModel

    with models.loading(str(adapter)), models.quiet_transformers():
        adapted = PeftModel.from_pretrained(model, str(adapter), use_safetensors=True)
    return adapted.merge_and_unload() if merge else adapted
