"""Load a student's base model, in full or quantized precision, and its adapters."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.core import models
from distill_dagster.core.errors import DistillError
from distill_dagster.student.frozen_layers import find_layers

if TYPE_CHECKING:
    from distill_dagster.config import StudentSpec

ADAPTER_CONFIG_FILE = "adapter_config.json"


@dataclass
class LoadedBase:
    """A loaded base. `bytes` is the size of its weights on disk, or in memory for a model from the hub."""

    model: Any
    tokenizer: Any
    bytes: int
    parameters: int


def choose_device() -> str:
    """Return "cuda" if there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def get_torch_dtype(name: str) -> Any:
    """The torch dtype of this name. "auto" is bfloat16 if this machine's GPU or processor computes in it."""
    import torch

    if name == "auto":
        name = "bfloat16" if _has_bfloat16() else "float32"
    return getattr(torch, name)


def _has_bfloat16() -> bool:
    import torch

    if choose_device() == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def load_base(spec: StudentSpec, models_folder: Path, auto_class: str, dtype: str | None = None) -> LoadedBase:
    """Load the base model of a student in evaluation mode, on the GPU if there is one.

    Raises:
        ModelError: the model cannot be found or loaded.
    """
    import transformers

    resolved = models.resolve_model(spec.model, models_folder, spec.revision)
    tokenizer = models.load_pretrained(transformers.AutoTokenizer, spec.model, resolved)
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    options: dict[str, Any] = {"dtype": get_torch_dtype(dtype or spec.dtype)}
    if spec.quantization == "nf4":
        options |= _build_nf4_options(options["dtype"])
    model = models.load_pretrained(getattr(transformers, auto_class), spec.model, resolved, **options)
    if spec.quantization == "none":
        model = model.to(choose_device())
    for module in model.modules():
        # In the first forward pass without gradients, such as a validation, bitsandbytes repacks 4-bit weights for
        # inference on a CPU. A repacked model cannot be trained.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    parameters = sum(p.numel() for p in model.parameters()) if spec.quantization == "none" else model.num_parameters()
    in_memory = sum(p.numel() * p.element_size() for p in model.parameters())
    return LoadedBase(model.eval(), tokenizer, models.measure_weight_bytes(resolved) or in_memory, parameters)


def _build_nf4_options(dtype: Any) -> dict[str, Any]:
    """Options for 4-bit NormalFloat with double quantization (Dettmers et al. 2023, "QLoRA")."""
    import torch
    from transformers import BitsAndBytesConfig

    on_cpu = choose_device() == "cpu"
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32 if on_cpu else dtype,
    )
    return {"quantization_config": config, "device_map": "cpu" if on_cpu else {"": 0}}


def add_new_adapter(model: Any, spec: StudentSpec, task_type: str, exclude: str | None = None) -> Any:
    """Add an untrained LoRA adapter in float32 (Hu et al. 2021). Modules that match `exclude` get none.

    Raises:
        DistillError: `lora.last_layers` is more than the model has, or its layers cannot be found.
    """
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    from distill_dagster.student.lora_linear import LoraLinear

    if spec.quantization != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    torch.manual_seed(spec.seed)
    lora = spec.lora
    excluded = [exclude] if exclude else []
    if lora.last_layers is not None:
        excluded += [rf"(.*\.)?{re.escape(name)}\..*" for name in _list_lower_layers(model, lora.last_layers)]
    config = LoraConfig(
        task_type=task_type,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        exclude_modules="|".join(excluded) or None,
    )
    if spec.quantization == "none":
        config._register_custom_module({torch.nn.Linear: LoraLinear})
    with models.silence_transformers():
        return get_peft_model(model, config)


def _list_lower_layers(model: Any, last: int) -> list[str]:
    names = [name for name, _ in find_layers(model)]
    if not names:
        raise DistillError("The layers of this model cannot be counted. Leave out `lora.last_layers`.")
    if last > len(names):
        raise DistillError(f"`lora.last_layers` is {last}, but the model has {len(names)} layers. Lower it.")
    return names[: len(names) - last]


def attach_adapter(model: Any, adapter: Path, merge: bool) -> Any:
    """Add a trained adapter to a model. `merge` adds it to the weights, which makes inference faster.

    Raises:
        ModelError: the folder has no adapter, or one of another model.
    """
    from peft import PeftModel

    with models.convert_load_errors(str(adapter)), models.silence_transformers():
        adapted = PeftModel.from_pretrained(model, str(adapter), use_safetensors=True)
    return adapted.merge_and_unload() if merge else adapted


def save_adapter(model: Any, spec: StudentSpec, folder: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json. The same adapter gives the same bytes.

    The config names the base as the spec does, not by its local path, so it is valid on every machine.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = spec.model, spec.revision
    # "auto" would ask the hub whether the vocabulary is larger.
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / ADAPTER_CONFIG_FILE
    value = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(value.get("target_modules"), list):  # PEFT writes a set, whose order changes with the process
        value["target_modules"] = sorted(value["target_modules"])
    file.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
