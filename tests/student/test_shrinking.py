"""`shrink`: a student with fewer layers than its model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from distill_dagster.config import LabelSpec, LoraSpec, StudentSpec
from distill_dagster.config.assistants import check_assistant
from distill_dagster.config.shrink import ShrinkSpec
from distill_dagster.config.student import check_student
from distill_dagster.core.errors import DistillError
from distill_dagster.student.frozen_layers import find_layers
from distill_dagster.student.loading import attach_adapter, find_trained_base, load_base
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
AUTO_CLASSES = {"encoder": "AutoModel", "causal_lm": "AutoModelForCausalLM"}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> dict[str, Path]:
    """Random models of five layers by architecture."""
    return write_random_models(tmp_path_factory.mktemp("models"), models_folder, 5, 0.2)


def make_spec(folder: Path, architecture: str, method: str, layers: int | None = 3) -> StudentSpec:
    rate = 1e-3 if method == "full" else 1e-2
    values: dict[str, Any] = {"architecture": architecture, "method": method, "epochs": 8, "batch_size": 4}
    values |= {"learning_rate": rate, "patience": None}
    if method != "full":
        values["lora"] = LoraSpec(rank=4, alpha=8)
    if layers is not None:
        values["shrink"] = {"layers": layers}
    return StudentSpec(model=str(folder), prompt="plain", **values)


def test_a_shallower_base_has_the_same_size_however_it_is_loaded(deep: dict[str, Path], tmp_path: Path) -> None:
    """To be merged, an adapter and its base are loaded in float32."""
    spec = make_spec(deep["causal_lm"], "causal_lm", "lora").model_copy(update={"dtype": "bfloat16"})
    for dtype in (None, "float32"):
        base = load_base(spec, tmp_path, AUTO_CLASSES["causal_lm"], dtype)
        assert base.bytes == 2 * base.parameters


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


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("architecture", ["encoder", "causal_lm"])
def test_a_shallower_student_begins_with_layers_of_a_trained_one(
    architecture: str, method: str, deep: dict[str, Path], tmp_path: Path
) -> None:
    """Not with those that were downloaded: a training without steps to speak of leaves them as they were."""
    larger = make_spec(deep[architecture], architecture, method, layers=None)
    train_adapter(larger, LABELS, SETTINGS, ROWS, ROWS, tmp_path / "larger", tmp_path)
    small = make_spec(deep[architecture], architecture, "full").model_copy(
        update={"shrink": ShrinkSpec(layers=3, start="teacher"), "learning_rate": 1e-9, "epochs": 1}
    )
    assistant = (larger, tmp_path / "larger")
    train_adapter(small, LABELS, SETTINGS, ROWS, ROWS, tmp_path / "small", tmp_path, assistant=assistant)
    trained = attach_adapter(
        load_base(find_trained_base(larger, tmp_path / "larger"), tmp_path, AUTO_CLASSES[architecture]).model,
        larger,
        tmp_path / "larger",
        merge=True,
    )
    before = load_base(larger, tmp_path, AUTO_CLASSES[architecture]).model
    found = load_base(find_trained_base(small, tmp_path / "small"), tmp_path, AUTO_CLASSES[architecture]).model
    layers = [[layer for _, layer in find_layers(model)] for model in (found, trained, before)]
    assert len(layers[0]) == 3
    for number, of_larger in enumerate(choose_layers(5, 3)):
        weights = [dict(layers[0][number].named_parameters())] + [
            dict(of[of_larger].named_parameters()) for of in layers[1:]
        ]
        assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-6) for name in weights[0])
        assert not all(torch.allclose(weights[0][name], weights[2][name], atol=1e-6) for name in weights[0])


def test_a_start_that_is_not_there_is_refused() -> None:
    names: dict[str, Any] = {"model": "all-minilm-l6-v2", "architecture": "encoder"}
    deep = StudentSpec(**names)
    shrink: dict[str, Any] = {"shrink": {"layers": 3, "start": "teacher"}}
    alone = StudentSpec(**names, method="full", **shrink)
    with pytest.raises(ValueError, match="Name it with `teacher: student:<name>`"):
        check_student("small", alone, "classification", False)
    adapted = StudentSpec(**names, teacher="student:large", **shrink)
    with pytest.raises(ValueError, match=r"`shrink.start: teacher` needs `method: full`"):
        check_student("small", adapted, "classification", False)
    small = StudentSpec(**names, method="full", teacher="student:large", **shrink)
    check_student("small", small, "classification", False)
    check_assistant("small", {"large": deep, "small": small}, "classification", False)
    other = deep.model_copy(update={"revision": "v2", "shrink": ShrinkSpec(layers=4)})
    with pytest.raises(ValueError, match="they differ in `revision` and `shrink`"):
        check_assistant("small", {"large": other, "small": small}, "classification", False)
    assert small.keep_rows_only(False).shrink == ShrinkSpec(layers=3), "seed_only has no teacher"
