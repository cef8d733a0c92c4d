"""`preset` of a student in task.yaml: a model by a short name, with settings that fit it.

Quirks of chat templates are not here: `student.chat_prompts` finds them in the template itself.
"""

from __future__ import annotations

from typing import Any, Literal

PresetName = Literal[
    "smollm2",
    "smollm3",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "llama-3.1-8b",
    "qwen3-0.6b",
    "qwen3-1.7b",
    "qwen3-4b",
    "qwen3-8b",
    "gemma-3-270m",
    "gemma-3-1b",
    "gemma-3-4b",
    "phi-3.5-mini",
    "phi-4-mini",
]

_LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
_FUSED = ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
"""Phi computes queries, keys and values in one layer. Some servers refuse adapters of it: export it merged."""
_GEMMA_TEXT = rf".*language_model.*\.({'|'.join(_LINEAR)})"
"""Gemma 3 from 4B on also sees pictures. Its vision layers have the same names and get no adapter."""

_UP_TO_2B: dict[str, Any] = {"dtype": "auto", "learning_rate": 5e-4, "epochs": 3, "max_tokens": 1024}
_UP_TO_4B: dict[str, Any] = _UP_TO_2B | {"learning_rate": 2e-4}
_UP_TO_8B: dict[str, Any] = _UP_TO_2B | {"learning_rate": 2e-4, "method": "qlora"}
"""The base in 4 bits, so that a model of 8 billion parameters takes the memory of one of 2 to 3 in 16 bits."""


def _make_preset(model: str, settings: dict[str, Any], modules: str | list[str] | None = None) -> dict[str, Any]:
    lora = {"target_modules": modules or _LINEAR, "rank": 16, "alpha": 32.0}
    return {"model": model, "architecture": "causal_lm", **settings, "lora": lora}


PRESETS: dict[str, dict[str, Any]] = {
    "smollm2": _make_preset("smollm2-135m-instruct", _UP_TO_2B | {"max_tokens": 256}),
    "smollm3": _make_preset("HuggingFaceTB/SmolLM3-3B", _UP_TO_4B),
    "llama-3.2-1b": _make_preset("meta-llama/Llama-3.2-1B-Instruct", _UP_TO_2B),
    "llama-3.2-3b": _make_preset("meta-llama/Llama-3.2-3B-Instruct", _UP_TO_4B),
    "llama-3.1-8b": _make_preset("meta-llama/Llama-3.1-8B-Instruct", _UP_TO_8B),
    "qwen3-0.6b": _make_preset("Qwen/Qwen3-0.6B", _UP_TO_2B),
    "qwen3-1.7b": _make_preset("Qwen/Qwen3-1.7B", _UP_TO_2B),
    "qwen3-4b": _make_preset("Qwen/Qwen3-4B", _UP_TO_4B),
    "qwen3-8b": _make_preset("Qwen/Qwen3-8B", _UP_TO_8B),
    "gemma-3-270m": _make_preset("google/gemma-3-270m-it", _UP_TO_2B),
    "gemma-3-1b": _make_preset("google/gemma-3-1b-it", _UP_TO_2B),
    "gemma-3-4b": _make_preset("google/gemma-3-4b-it", _UP_TO_4B, _GEMMA_TEXT),
    "phi-3.5-mini": _make_preset("microsoft/Phi-3.5-mini-instruct", _UP_TO_4B, _FUSED),
    "phi-4-mini": _make_preset("microsoft/Phi-4-mini-instruct", _UP_TO_4B, _FUSED),
}
"""The settings of each preset. What task.yaml sets itself is kept."""


def apply_preset(student: Any) -> Any:
    """Fill a student's block with the settings of its preset. What the block sets itself is kept.

    A block that trains all weights gets no adapter, and one in another method not the preset's 4-bit weights.
    """
    if not isinstance(student, dict) or (preset := PRESETS.get(student.get("preset") or "")) is None:
        return student
    filled = preset | student
    if filled.get("method") == "full" and "lora" not in student:
        filled.pop("lora")
    elif isinstance(lora := student.get("lora"), dict):
        filled["lora"] = preset["lora"] | lora
    if "quantization" in student and "method" not in student:
        filled.pop("method", None)
    return filled
