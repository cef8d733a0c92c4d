from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft.tuners.lora.layer import Linear
from safetensors.torch import load_file

from distill_dagster.config import LabelSpec, LoraSpec, StudentSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.student import causal, frozen_layers, loading
from distill_dagster.student.causal import CausalStudent
from distill_dagster.student.frozen_layers import FrozenLayers, find_layers
from distill_dagster.student.lora_linear import LoraLinear
from distill_dagster.student.losses import sum_parts
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.prompts import PlainRenderer
from distill_dagster.student.train import choose_student_class, train_adapter
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainingLog, TrainRow

SETTINGS = TaskSettings(item="Ticket")
LABELS = [LabelSpec(name=name, description=name) for name in ("red", "blue")]
SHARED = [LabelSpec(name=name, description=name) for name in ("blue", "blue sky", "red")]
"""Labels with common first tokens, which need a second pass in validation."""
TEXTS = ["rye bread", "a plum cake for the whole family", "rolls", "a flat tyre", "my chain is rusty again", "a bell"]
ROWS = [
    TrainRow(str(n), StudentPrompt.from_text(text), ("red", "blue")[n % 2], target="It is so.")
    for n, text in enumerate(TEXTS)
]
HELD = [TrainRow("h", StudentPrompt.from_text("sweet buns"), "blue", target="It is so.")]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
OTHER_MODELS = [
    transformers.LlamaConfig(**SIZES),
    transformers.Qwen3Config(**SIZES),
    transformers.Phi3Config(**SIZES, pad_token_id=0),
    transformers.Gemma2Config(**SIZES),
    transformers.Gemma3TextConfig(**SIZES, sliding_window=4, layer_types=["sliding_attention", "full_attention"] * 2),
    transformers.GraniteConfig(**SIZES, embedding_multiplier=3.0, residual_multiplier=0.5),
    transformers.GPT2Config(n_embd=32, n_layer=4, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
]


def make_spec(model: Path, last_layers: int | None, **settings: Any) -> StudentSpec:
    lora = LoraSpec(rank=4, alpha=8, last_layers=last_layers)
    values = {"batch_size": 4, "learning_rate": 2e-3, "patience": None, "soft_weight": 0.5, "prompt": "plain"}
    return StudentSpec(model=str(model), lora=lora, **(values | {"architecture": "causal_lm"} | settings))


def save_model(config: transformers.PretrainedConfig, tokenizer_of: Path, folder: Path) -> Path:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_of)
    config.vocab_size = len(tokenizer)
    torch.manual_seed(1)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_encoder(folder: Path) -> Path:
    """A BERT with three random layers without dropout, and a tokenizer whose tokens are the words of `TEXTS`."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    sizes = {name: SIZES[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(1)
    config = transformers.BertConfig(vocab_size=len(vocabulary), num_hidden_layers=3, **sizes, **dropout)
    transformers.BertModel(config).save_pretrained(folder)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("labels", [LABELS, SHARED, []], ids=["labels", "shared first tokens", "free text"])
def test_training_on_kept_outputs_equals_training_on_texts(
    labels: list[LabelSpec], small_smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(small_smollm2, 1)

    def train(name: str) -> TrainingLog:
        return train_adapter(spec, labels, SETTINGS, ROWS, HELD, tmp_path / name, tmp_path, epochs=3)

    kept = train("kept")
    monkeypatch.setattr(frozen_layers, "MAX_STATE_BYTES", 0)
    whole = train("whole")
    assert (kept.reused_layers, whole.reused_layers, kept.dtype) == (1, 0, "float32")
    assert [loss for *_, loss in kept.losses] == pytest.approx([loss for *_, loss in whole.losses], abs=1e-3)
    for one, other in zip(kept.validation, whole.validation, strict=True):
        assert one == pytest.approx(other, abs=1e-3)
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("kept", "whole")]
    assert {name.split(".layers.")[1][0] for name in weights[0]} == {"1"}
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=1e-3), name


def test_an_encoder_trains_on_kept_outputs_as_on_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_encoder(tmp_path / "model")
    spec = make_spec(model, 1, architecture="encoder", patience=2)

    def train(name: str) -> TrainingLog:
        return train_adapter(spec, LABELS, SETTINGS, ROWS, HELD, tmp_path / name, tmp_path, epochs=3)

    kept = train("kept")
    monkeypatch.setattr(frozen_layers, "MAX_STATE_BYTES", 0)
    whole = train("whole")
    assert (kept.reused_layers, whole.reused_layers) == (2, 0)
    assert [loss for *_, loss in kept.losses] == pytest.approx([loss for *_, loss in whole.losses], abs=1e-4)
    for one, other in zip(kept.validation, whole.validation, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("kept", "whole")]
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=1e-4), name


def test_frozen_layers_run_once_per_text(small_smollm2: Path, tmp_path: Path) -> None:
    student = CausalStudent(make_spec(small_smollm2, 1), LABELS, SETTINGS, tmp_path)
    student.add_adapter()
    calls = []
    _, lowest = find_layers(student.model)[0]
    lowest.mlp.register_forward_hook(lambda *_: calls.append(1))
    items = student.encode(ROWS)
    student.reuse_frozen_layers(student.list_sequences(items, HELD))
    before = len(calls)
    assert before > 0
    sum_parts(student.compute_loss(student.collate(items))).sum().backward()
    student.compute_validation_scores(HELD)
    assert len(calls) == before
    student.compute_validation_scores(
        [replace(HELD[0], prompt=StudentPrompt.from_text("a text that training does not know"))]
    )
    assert len(calls) == before + 1


@pytest.mark.parametrize("config", OTHER_MODELS, ids=lambda config: config.model_type)
def test_lower_layers_can_be_left_out_of_other_models(
    config: transformers.PretrainedConfig, small_smollm2: Path, tmp_path: Path
) -> None:
    student = CausalStudent(
        make_spec(save_model(config, small_smollm2, tmp_path / "model"), 1), LABELS, SETTINGS, tmp_path
    )
    student.add_adapter()
    items = student.encode(ROWS)
    before = sum_parts(student.compute_loss(student.collate(items)))
    student.reuse_frozen_layers(student.list_sequences(items, HELD))
    assert student.frozen is not None
    assert len(student.frozen.layers) == 3
    batch = student.collate(items)
    assert "states" in batch
    assert sum_parts(student.compute_loss(batch)).tolist() == pytest.approx(before.tolist(), abs=1e-4)


def test_a_model_whose_upper_layers_read_lower_ones_runs_whole(small_smollm2: Path, tmp_path: Path) -> None:
    config = transformers.Gemma3nTextConfig(
        **SIZES,
        vocab_size_per_layer_input=49152,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=2,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 4,
        layer_types=["full_attention"] * 4,
    )
    model = save_model(config, small_smollm2, tmp_path / "model")
    student = CausalStudent(make_spec(model, 1), LABELS, SETTINGS, tmp_path)
    student.add_adapter()
    items = student.encode(ROWS)
    student.reuse_frozen_layers(student.list_sequences(items, HELD))
    assert student.frozen is None
    assert "states" not in student.collate(items)


def test_all_layers_train_without_last_layers(small_smollm2: Path, tmp_path: Path) -> None:
    student = CausalStudent(make_spec(small_smollm2, None), LABELS, SETTINGS, tmp_path)
    student.add_adapter()
    assert FrozenLayers(student.model).layers == []
    student.reuse_frozen_layers(student.list_sequences(student.encode(ROWS), HELD))
    assert student.frozen is None


def test_target_modules_that_the_model_does_not_have_are_an_error(small_smollm2: Path, tmp_path: Path) -> None:
    lora = LoraSpec(rank=4, target_modules=["query"])
    student = CausalStudent(make_spec(small_smollm2, 1).model_copy(update={"lora": lora}), LABELS, SETTINGS, tmp_path)
    with pytest.raises(DistillError, match=r"no layer of `lora.target_modules`: query\. .* layers are .*q_proj"):
        student.add_adapter()


def test_more_last_layers_than_layers_is_an_error(small_smollm2: Path, tmp_path: Path) -> None:
    student = CausalStudent(make_spec(small_smollm2, 3), LABELS, SETTINGS, tmp_path)
    with pytest.raises(DistillError, match=r"`lora.last_layers` is 3, but the model has 2 layers"):
        student.add_adapter()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_lora_layer_equals_pefts(dtype: str, small_smollm2: Path, tmp_path: Path) -> None:
    student = CausalStudent(make_spec(small_smollm2, 1, dtype=dtype), LABELS, SETTINGS, tmp_path)
    student.add_adapter()
    layer = next(m for m in student.model.modules() if isinstance(m, LoraLinear))
    up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    assert up.dtype == down.dtype == torch.float32
    torch.nn.init.normal_(up)
    inputs = torch.randn(2, 5, layer.in_features, dtype=loading.get_torch_dtype(dtype))

    def run(forward: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        layer.zero_grad()
        out = forward(layer, inputs)
        out.float().square().sum().backward()
        return [out.detach().float(), up.grad.clone(), down.grad.clone()]

    for own, theirs in zip(run(LoraLinear.forward), run(Linear.forward), strict=True):
        error = (own - theirs).norm() / theirs.norm()
        assert error < (1e-5 if dtype == "float32" else 2e-2)
    with student.model.disable_adapter():
        assert torch.equal(layer(inputs), layer.base_layer(inputs))


def test_an_adapter_of_the_last_layers_predicts_like_in_training(small_smollm2: Path, tmp_path: Path) -> None:
    spec = make_spec(small_smollm2, 1)
    train_adapter(spec, LABELS, SETTINGS, ROWS, HELD, tmp_path / "out", tmp_path, epochs=2)
    model = transformers.AutoModelForCausalLM.from_pretrained(small_smollm2)
    from peft import PeftModel

    plain = PeftModel.from_pretrained(model, str(tmp_path / "out")).eval()
    [found] = load_predictor(spec, LABELS, SETTINGS, tmp_path, tmp_path / "out").predict([HELD[0].prompt])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = [one.ids for one in PlainRenderer(tokenizer, SETTINGS, 64).encode_prompts([HELD[0].prompt])]
    with torch.no_grad():
        logits = plain(input_ids=torch.tensor(ids)).logits[0, -1]
    choices = [tokenizer(f" {label}").input_ids[0] for label in found.probs]
    assert list(found.probs.values()) == pytest.approx(logits[choices].softmax(-1).tolist(), abs=1e-3)
    saved = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert "layers" in saved["exclude_modules"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="plain attention is for processors")
def test_short_texts_train_with_plain_attention_and_the_same_loss(small_smollm2: Path, tmp_path: Path) -> None:
    student = CausalStudent(make_spec(small_smollm2, 1), LABELS, SETTINGS, tmp_path)
    student.add_adapter()
    batch = student.collate(student.encode(ROWS))
    before = sum_parts(student.compute_loss(batch)).tolist()
    student.choose_attention(causal.MAX_EAGER_TOKENS + 1)
    assert student.base.model.config._attn_implementation == "sdpa"
    student.choose_attention(causal.MAX_EAGER_TOKENS)
    assert student.base.model.config._attn_implementation == "eager"
    assert sum_parts(student.compute_loss(batch)).tolist() == pytest.approx(before, abs=1e-4)


def test_auto_is_a_number_format_of_this_machine(small_smollm2: Path, tmp_path: Path) -> None:
    spec = make_spec(small_smollm2, None, dtype="auto")
    student = choose_student_class(spec, LABELS)(spec, LABELS, SETTINGS, tmp_path)
    found = torch.cpu.get_capabilities()
    has_bfloat16 = torch.cuda.is_available() or found.get("avx512_bf16") or found.get("amx_bf16")
    assert student.base.model.dtype == (torch.bfloat16 if has_bfloat16 else torch.float32)
