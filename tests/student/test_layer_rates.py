"""`layer_decay`: each layer learns at a share of the rate of the layer above it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill_dagster.config import LoraSpec, StudentSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.student.layer_rates import build_layer_groups
from distill_dagster.student.train import train_adapter
from tests.student.test_methods import LABELS, ROWS, SETTINGS
from tests.support.tiny_model import write_random_models

RATE, DECAY, LAYERS = 1e-2, 0.5, 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> dict[str, Path]:
    """Random models of three layers by architecture."""
    return write_random_models(tmp_path_factory.mktemp("models"), models_folder, LAYERS, 0.05)


def train_one_step(model: Path, architecture: str, out: Path, **more: Any) -> dict[str, torch.Tensor]:
    """Weights after one step of all rows. Adam's first step changes a weight with a gradient by the rate."""
    values: dict[str, Any] = {"architecture": architecture, "soft_weight": 0.0, "patience": None, "epochs": 1}
    values |= {"batch_size": len(ROWS), "warmup_ratio": 0.0} | more
    spec = StudentSpec(model=str(model), prompt="auto", learning_rate=RATE, **values)
    train_adapter(spec, LABELS, SETTINGS, ROWS, [], out, out.parent)
    [file] = [path for path in (out / "adapter_model.safetensors", out / "model.safetensors") if path.exists()]
    weights = load_file(file)
    return weights | {f"head.{name}": value for name, value in load_file(out / "head.safetensors").items()}


def measure_layer(weights: dict[str, torch.Tensor], layer: int, start: dict[str, torch.Tensor] | None) -> float:
    """The largest change of a layer's weights. Without `start`: of its adapters' B, which start at 0."""
    names = [name for name in weights if f"layer.{layer}." in name and (start is not None or "lora_B" in name)]
    assert names
    return max(float((weights[name] - (start[name] if start else 0)).abs().max()) for name in names)


def test_a_layer_of_adapters_learns_at_a_share_of_the_rate_above_it(tiny: dict[str, Path], tmp_path: Path) -> None:
    lora = {"lora": LoraSpec(rank=4, alpha=8)}
    found = train_one_step(tiny["encoder"], "encoder", tmp_path / "out", layer_decay=DECAY, **lora)
    rates = [measure_layer(found, layer, None) for layer in range(LAYERS)]
    assert rates == pytest.approx([RATE * DECAY**depth for depth in (3, 2, 1)], rel=0.05)
    same = train_one_step(tiny["encoder"], "encoder", tmp_path / "same", **lora)
    assert [measure_layer(same, layer, None) for layer in range(LAYERS)] == pytest.approx([RATE] * LAYERS, rel=0.05)
    torch.testing.assert_close(found["head.weight"], same["head.weight"], atol=RATE / 5, rtol=0)


def test_so_does_a_layer_that_is_trained_in_full(tiny: dict[str, Path], tmp_path: Path) -> None:
    start = load_file(tiny["encoder"] / "model.safetensors")
    found = train_one_step(tiny["encoder"], "encoder", tmp_path / "out", layer_decay=DECAY, method="full")
    rates = [measure_layer(found, layer, start) for layer in range(LAYERS)]
    assert rates == pytest.approx([RATE * DECAY**depth for depth in (3, 2, 1)], rel=0.05)
    name = "embeddings.word_embeddings.weight"
    assert float((found[name] - start[name]).abs().max()) == pytest.approx(RATE * DECAY**4, rel=0.05)


def test_groups_hold_every_trained_weight_once_and_the_highest_rate_first(tiny: dict[str, Path]) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny["causal_lm"])
    other = torch.nn.Parameter(torch.zeros(2))
    trained = [*model.parameters(), other]
    groups = build_layer_groups(model, trained, RATE, DECAY)
    assert [group["lr"] for group in groups] == pytest.approx([RATE * DECAY**depth for depth in range(LAYERS + 2)])
    assert sorted(id(weight) for group in groups for weight in group["params"]) == sorted(map(id, trained))
    top, bottom = groups[0]["params"], groups[-1]["params"]
    assert {id(other), id(model.model.norm.weight)} <= set(map(id, top))
    assert id(model.model.embed_tokens.weight) in map(id, bottom)


def test_a_model_without_layers_is_refused() -> None:
    class Flat(torch.nn.Linear):
        class config:
            @staticmethod
            def get_text_config() -> object:
                return object()

    flat = Flat(2, 2)
    with pytest.raises(DistillError, match="`layer_decay` needs a model with one list of layers, and Flat has none"):
        build_layer_groups(flat, flat.parameters(), RATE, DECAY)
