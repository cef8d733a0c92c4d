"""`shrink`: a student with fewer layers than its model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import transformers

from distill_dagster.config import LabelSpec, LoraSpec, StudentSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.student.loading import load_base
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.shrinking import choose_layers, remove_layers
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainRow
from tests.support.tiny_model import write_random_models

SETTINGS = TaskSettings(item="Ticket")
LABELS = [LabelSpec(name=name, description=name) for name in ("red", "blue")]
WORDS = {"red": ["bread", "cake", "rolls", "buns"], "blue": ["tyre", "chain", "pedal", "wheel"]}
ROWS = [
    TrainRow(word, StudentPrompt.from_text(f"I ask for a {word}"), label)
    for label, words in WORDS.items()
    for word in words
]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> dict[str, Path]:
    """Random models of five layers by architecture."""
    return write_random_models(tmp_path_factory.mktemp("models"), models_folder, 5, 0.2)


def make_spec(folder: Path, architecture: str, method: str, layers: int | None = 3) -> StudentSpec:
    rate = 1e-3 if method == "full" else 1e-2
    values: dict[str, object] = {"epochs": 8, "batch_size": 4, "learning_rate": rate, "patience": None}
    if method != "full":
        values["lora"] = LoraSpec(rank=4, alpha=8)
    if layers is not None:
        values["shrink"] = {"layers": layers}
    return StudentSpec(model=str(folder), architecture=architecture, method=method, prompt="plain", **values)


def test_the_first_and_the_last_layer_stay() -> None:
    assert choose_layers(6, 3) == [0, 2, 5]
    assert choose_layers(30, 10) == [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]
    assert choose_layers(6, 2) == [0, 5]
    assert choose_layers(6, 1) == [5]
    for total in range(2, 40):
        for kept in range(1, total):
            chosen = choose_layers(total, kept)
            assert len(set(chosen)) == kept
            assert chosen == sorted(chosen)


def test_a_shallower_encoder_computes_the_layers_that_stay(deep: dict[str, Path], tmp_path: Path) -> None:
    whole = transformers.AutoModel.from_pretrained(deep["encoder"]).eval()
    base = load_base(make_spec(deep["encoder"], "encoder", "lora"), tmp_path, "AutoModel")
    ids = torch.tensor([[101, 2000, 2010, 102]])
    with torch.no_grad():
        hidden = whole.embeddings(ids)
        for number in (0, 2, 4):
            hidden = whole.encoder.layer[number](hidden)
        torch.testing.assert_close(base.model(ids).last_hidden_state, hidden)
    assert base.model.config.num_hidden_layers == 3
    assert base.parameters == sum(p.numel() for p in base.model.parameters())
    assert base.bytes == 4 * base.parameters < sum(f.stat().st_size for f in deep["encoder"].glob("*.safetensors"))


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma3Text", "SmolLM3"])
def test_a_shallower_causal_model_reads_its_own_cache(family: str) -> None:
    """Every layer must write to its own place in the cache, and keep its kind of attention."""
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention", "full_attention"]
    slides = {"layer_types": kinds, "sliding_window": 2, "use_sliding_window": True}
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        **SIZES,
        **(slides if family != "Llama" else {}),
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=64,
        pad_token_id=0,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    remove_layers(model, 3)
    if family != "Llama":
        assert model.config.layer_types == [kinds[number] for number in (0, 2, 4)]
    ids = torch.randint(1, 64, (1, 7))
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits[:, -1]
        first = model(ids[:, :-1], use_cache=True)
        assert len(first.past_key_values) == 3
        last = model(ids[:, -1:], past_key_values=first.past_key_values, use_cache=True).logits[:, -1]
    torch.testing.assert_close(last, whole)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("architecture", ["causal_lm", "encoder"])
def test_a_shallower_student_learns_and_is_read_back(
    architecture: str, method: str, deep: dict[str, Path], tmp_path: Path
) -> None:
    spec, out = make_spec(deep[architecture], architecture, method), tmp_path / "out"
    log = train_adapter(spec, LABELS, SETTINGS, ROWS, ROWS, out, tmp_path)
    prompts = [row.prompt for row in ROWS]
    trained, base = (load_predictor(spec, LABELS, SETTINGS, tmp_path, folder) for folder in (out, None))
    loss, before = (
        -sum(math.log(p.probs[row.answer_label]) for p, row in zip(one.predict(prompts), ROWS, strict=True)) / len(ROWS)
        for one in (trained, base)
    )
    assert loss < 0.6 < before
    assert loss == pytest.approx(log.validation[-1]["loss"], abs=1e-4)
    whole = load_predictor(make_spec(deep[architecture], architecture, method, None), LABELS, SETTINGS, tmp_path)
    assert base.parameters < whole.parameters
    assert base.predict(prompts) != whole.predict(prompts)
    if method == "full":
        model = transformers.AutoModel.from_pretrained(out)
        assert model.config.num_hidden_layers == 3


def test_a_model_without_more_layers_is_refused(deep: dict[str, Path], tmp_path: Path) -> None:
    spec = make_spec(deep["encoder"], "encoder", "lora", layers=5)
    with pytest.raises(DistillError, match=r"`shrink.layers` is 5, but the model has 5 layers. Set fewer."):
        load_base(spec, tmp_path, "AutoModel")
