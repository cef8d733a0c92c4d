"""Load a base model, make its weights trainable by the student's method, and save and load what was trained."""

from __future__ import annotations

import atexit
import gc
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.core import models
from distill_dagster.core.collector import pause_collector
from distill_dagster.core.errors import DistillError
from distill_dagster.student.frozen_layers import find_layers
from distill_dagster.student.shrinking import remove_layers

if TYPE_CHECKING:
    from distill_dagster.config import StudentSpec
    from distill_dagster.student.types import TrainedStudent

ADAPTER_CONFIG_FILE = "adapter_config.json"
MODEL_CONFIG_FILE = "config.json"
POOLER = r".*\bpooler\b.*"
"""The modules of an encoder that are not trained: mean pooling does not use them."""


@cache
def load_libraries() -> None:
    """Import what students stand on, and leave it out of garbage collections from then on.

    Training and measuring ask for dozens of full collections, and each would look at a million objects of libraries,
    for half a second. Call it before a model is loaded: what is left out and ends in a cycle stays in memory.
    """
    with pause_collector():
        import peft  # noqa: F401
        import transformers.trainer  # noqa: F401

    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # at the end, DuckDB prints what it takes for leaks


@dataclass
class LoadedBase:
    """A loaded base.

    `bytes` is the size of its weights on disk. With `shrink`, and for a model from the hub, which has no `sha256`, it
    is computed from `dtype`.
    """

    model: Any
    tokenizer: Any
    bytes: int
    parameters: int
    sha256: str | None


def choose_device() -> str:
    """Return "cuda" if there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def use_one_gpu(arguments: Any) -> Any:
    """Make a trainer of transformers or TRL use the first of several GPUs. By default one process trains on all."""
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


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
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch have none
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def get_training_dtype(spec: StudentSpec) -> str | None:
    """The name of the number format in which a student's base is loaded for training. None: the spec's.

    All weights are trained in float32. Steps of usual size are lost in the 8 bits of bfloat16 (Micikevicius et al.
    2018, "Mixed Precision Training").
    """
    return "float32" if spec.method == "full" else None


def check_training_dtype(spec: StudentSpec) -> None:
    """Check that this machine can train in the spec's number format.

    Raises:
        DistillError: float16 without a GPU. There the loss has to be scaled, which only a GPU does.
    """
    if spec.dtype == "float16" and choose_device() == "cpu":
        raise DistillError("`dtype: float16` trains on a GPU only, and this machine has none. Use `dtype: auto`.")


@contextmanager
def compute_in_spec_dtype(spec: StudentSpec) -> Iterator[None]:
    """Compute in the spec's number format within the block, also where all weights are trained in float32."""
    import torch

    dtype = get_torch_dtype(spec.dtype)
    with torch.autocast(choose_device(), dtype, enabled=spec.method == "full" and dtype != torch.float32):
        yield


def load_base(spec: StudentSpec, models_folder: Path, auto_class: str, dtype: str | None = None) -> LoadedBase:
    """Load the base model of a student in evaluation mode, on the GPU if there is one. `shrink` removes layers of it.

    Raises:
        DistillError: the model has no more layers than `shrink.layers`, or they cannot be found.
        ModelError: the model cannot be found or loaded.
    """
    import transformers

    resolved = models.resolve_model(spec.model, models_folder, spec.revision)
    tokenizer = models.load_pretrained(transformers.AutoTokenizer, spec.model, resolved)
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    options: dict[str, Any] = {"dtype": get_torch_dtype(dtype or spec.dtype)}
    if spec.quantization == "nf4":
        options |= build_nf4_options(options["dtype"])
    model = models.load_pretrained(getattr(transformers, auto_class), spec.model, resolved, **options)
    if spec.shrink is not None:
        remove_layers(model, spec.shrink.layers)
    if spec.quantization == "none":
        model = model.to(choose_device())
    for module in model.modules():
        # In the first forward pass without gradients, such as a validation, bitsandbytes repacks 4-bit weights for
        # inference on a CPU. A repacked model cannot be trained.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    parameters = sum(p.numel() for p in model.parameters()) if spec.quantization == "none" else model.num_parameters()
    weight_bytes = models.measure_weight_bytes(resolved) if spec.shrink is None else None
    weight_bytes = weight_bytes or _compute_weight_bytes(model, spec)
    return LoadedBase(model.eval(), tokenizer, weight_bytes, parameters, resolved.sha256)


def _compute_weight_bytes(model: Any, spec: StudentSpec) -> int:
    """The size of a model's weights in the student's own format, whatever format it was loaded in to be merged."""
    size = get_torch_dtype(spec.dtype).itemsize
    return sum(p.numel() * (size if p.is_floating_point() else p.element_size()) for p in model.parameters())


def remove_generation_settings(model: Any) -> None:
    """Leave of a base's settings for generation its special tokens only.

    Its temperature or penalty for repetition were chosen for a chat, and would change what a student writes.
    """
    from transformers import GenerationConfig

    before = getattr(model, "generation_config", None)
    if before is not None:
        tokens = {name: getattr(before, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**tokens)


def build_nf4_options(dtype: Any) -> dict[str, Any]:
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
    return {"quantization_config": config, "device_map": "cpu" if on_cpu else {"": torch.cuda.current_device()}}


def make_trainable(model: Any, spec: StudentSpec, task_type: str, exclude: str | None = None) -> Any:
    """Make a base trainable by the method of the spec. Modules whose names match `exclude` stay as they are.

    `full` makes all weights trainable. Every other method adds an untrained adapter in float32: LoRA (Hu et al. 2021),
    QLoRA (Dettmers et al. 2023), DoRA (Liu et al. 2024) or rsLoRA (Kalajdzievski 2023).

    Raises:
        DistillError: `lora.last_layers` is more than the model has, or its layers cannot be found.
    """
    if spec.method == "full":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(exclude is None or re.fullmatch(exclude, name) is None)
        return model
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
        use_dora=spec.method == "dora",
        use_rslora=spec.method == "rslora",
    )
    if spec.quantization == "none":
        config._register_custom_module({torch.nn.Linear: LoraLinear})
    try:
        with models.silence_transformers():
            return get_peft_model(model, config)
    except ValueError as error:
        if "arget modules" not in str(error) and "No modules were targeted" not in str(error):
            raise
        raise DistillError(
            f"{spec.model} has no layer of `lora.target_modules`: {_format_names(lora.target_modules)}. Its linear "
            f"layers are {_format_names(_list_linear_names(model))}. Name some of them, or leave `target_modules` out."
            + (f" The preset {spec.preset} is for another architecture." if spec.preset else "")
        ) from error


def _list_linear_names(model: Any) -> list[str]:
    import torch

    linear = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return sorted({name.rpartition(".")[2] for name in linear})


def _format_names(names: str | list[str]) -> str:
    return names if isinstance(names, str) else ", ".join(names)


def _list_lower_layers(model: Any, last: int) -> list[str]:
    names = [name for name, _ in find_layers(model)]
    if not names:
        raise DistillError("The layers of this model cannot be counted. Leave out `lora.last_layers`.")
    if last > len(names):
        raise DistillError(f"`lora.last_layers` is {last}, but the model has {len(names)} layers. Lower it.")
    return names[: len(names) - last]


def attach_adapter(model: Any, spec: StudentSpec, adapter: Path, merge: bool) -> Any:
    """Add a trained adapter to a model. `merge` adds it to the weights, which makes inference faster.

    With `method: full` the model already has the trained weights: see `find_trained_base`.

    Raises:
        ModelError: the folder has no adapter, or one of another model.
    """
    if spec.method == "full":
        return model
    from peft import PeftModel

    with models.convert_load_errors(str(adapter)), models.silence_transformers():
        adapted = PeftModel.from_pretrained(model, str(adapter), use_safetensors=True)
    return adapted.merge_and_unload() if merge else adapted


def start_from_trained(base: LoadedBase, spec: StudentSpec, trained: TrainedStudent, models_folder: Path) -> None:
    """Give a shallower base the weights of a trained student's layers in place of those that were downloaded.

    Raises:
        ModelError: what was trained cannot be loaded.
    """
    deep, folder = trained
    auto_class = "AutoModel" if spec.architecture == "encoder" else "AutoModelForCausalLM"
    found = load_base(find_trained_base(deep, folder), models_folder, auto_class, "float32")
    model = attach_adapter(found.model, deep, folder, merge=True)
    assert spec.shrink is not None
    remove_layers(model, spec.shrink.layers)
    base.model.load_state_dict(model.state_dict())


def find_trained_base(spec: StudentSpec, trained: Path) -> StudentSpec:
    """The spec whose base is to be loaded for what was trained in a folder. With `method: full` it is that folder.

    Raises:
        ModelError: the folder was trained by another method.
    """
    if (trained / MODEL_CONFIG_FILE).is_file() != (spec.method == "full"):
        raise models.ModelError(f"{trained} was not trained with `method: {spec.method}`. Train the student again.")
    if spec.method != "full":
        return spec
    return spec.model_copy(update={"model": str(trained), "revision": None, "shrink": None})


def save_trained(model: Any, spec: StudentSpec, folder: Path) -> None:
    """Write what was trained: the adapter, or with `method: full` the whole model. Equal weights give equal bytes.

    An adapter is adapter_model.safetensors and adapter_config.json. Its config names the base as the spec does, not by
    its local path, so it is valid on every machine. A whole model is model.safetensors, in the number format of the
    spec, and config.json: a folder that every tool of Hugging Face loads.
    """
    if spec.method == "full":
        with models.silence_transformers():
            model.to(get_torch_dtype(spec.dtype)).save_pretrained(str(folder))
        return
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
