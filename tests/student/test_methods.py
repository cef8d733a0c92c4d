"""What each `method` trains, and that it is read back and merged exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file

from distill_dagster.config import LabelSpec, LoraSpec, StudentSpec
from distill_dagster.core.errors import ModelError
from distill_dagster.student.free_text import FreeTextStudent
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.train import choose_student_class, train_adapter
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainingLog, TrainRow
from tests.support.tiny_model import write_random_models

METHODS = ("lora", "qlora", "dora", "rslora", "full")
SETTINGS = TaskSettings(item="Ticket")
LABELS = [LabelSpec(name=name, description=name) for name in ("red", "blue")]
WORDS = {"red": ["bread", "cake", "rolls", "buns"], "blue": ["tyre", "chain", "pedal", "wheel"]}
ROWS = [
    TrainRow(f"{word}{n}", StudentPrompt.from_text(text.format(word)), label)
    for n, text in enumerate(["I ask for a {}", "what about a {} today"])
    for label, words in WORDS.items()
    for word in words
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> dict[str, Path]:
    """Random models of two layers by architecture."""
    return write_random_models(tmp_path_factory.mktemp("models"), models_folder, 2, 0.05)


def make_spec(folder: Path, architecture: str, method: str, **settings: Any) -> StudentSpec:
    values: dict[str, Any] = {
        "architecture": architecture,
        "method": method,
        "prompt": "plain",
        "epochs": 16,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "patience": None,
        "soft_weight": 0.0,
    } | settings
    if method != "full":
        values |= {"lora": LoraSpec(rank=4, alpha=8)}
    return StudentSpec(model=str(folder), **values)


def train(spec: StudentSpec, out: Path) -> TrainingLog:
    return train_adapter(spec, LABELS, SETTINGS, ROWS, ROWS, out, out.parent)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["causal_lm", "encoder"])
def test_a_method_learns_and_is_read_back_exactly(
    architecture: str, method: str, tiny: dict[str, Path], tmp_path: Path
) -> None:
    spec, out = make_spec(tiny[architecture], architecture, method), tmp_path / "out"
    log = train(spec, out)
    assert log.validation[-1]["loss"] < 0.4  # chance is 0.69
    predictor = load_predictor(spec, LABELS, SETTINGS, tmp_path, out)
    merged = predictor.predict([row.prompt for row in ROWS])
    assert sum(p.label == row.answer_label for p, row in zip(merged, ROWS, strict=True)) >= 14

    unmerged = choose_student_class(spec, LABELS)(
        spec if method != "full" else spec.model_copy(update={"model": str(out)}), LABELS, SETTINGS, tmp_path
    )
    assert not isinstance(unmerged, FreeTextStudent)
    unmerged.load_adapter(out, merge=False)
    unmerged.model.eval()
    assert unmerged.compute_validation_scores(ROWS)["loss"] == pytest.approx(log.validation[-1]["loss"], abs=2e-6)
    probs = unmerged.compute_log_probs([row.prompt for row in ROWS]).exp()
    found = torch.tensor([list(p.probs.values()) for p in merged])
    torch.testing.assert_close(found, probs, atol=1e-5, rtol=0)

    assert log.method == method
    assert (out / "model.safetensors").exists() == (method == "full")
    assert (out / "adapter_model.safetensors").exists() == (method != "full")
    base = load_predictor(spec, LABELS, SETTINGS, tmp_path)
    if method == "full":
        assert predictor.bytes == sum(f.stat().st_size for f in out.glob("*.safetensors"))
        assert 0.9 * log.total_parameters < log.trainable_parameters <= log.total_parameters
    else:
        config = json.loads((out / "adapter_config.json").read_text())
        assert (config["use_dora"], config["use_rslora"]) == (method == "dora", method == "rslora")
        assert predictor.bytes > base.bytes
        assert log.trainable_parameters < 0.1 * log.total_parameters


def test_a_fully_trained_student_is_a_folder_for_transformers(tiny: dict[str, Path], tmp_path: Path) -> None:
    spec, out = make_spec(tiny["causal_lm"], "causal_lm", "full", epochs=3), tmp_path / "out"
    train(spec, out)
    model = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    student = load_predictor(spec, LABELS, SETTINGS, tmp_path, out)
    for row in ROWS[:3]:
        ids = tokenizer(f"Ticket: {row.prompt.text}\nCategory:", return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1]
        expected = logits[[tokenizer(f" {label.name}").input_ids[0] for label in LABELS]].softmax(-1).tolist()
        assert list(student.predict([row.prompt])[0].probs.values()) == pytest.approx(expected, abs=1e-5)
    train(spec, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_full_training_keeps_steps_that_bfloat16_would_lose(tiny: dict[str, Path], tmp_path: Path) -> None:
    """A step of 2e-5 is below the resolution of most bfloat16 weights. Their sum is not."""
    spec = make_spec(
        tiny["causal_lm"], "causal_lm", "full", dtype="bfloat16", learning_rate=2e-5, epochs=20, warmup_ratio=0.0
    )
    out = tmp_path / "out"
    log = train(spec, out)
    assert log.dtype == "bfloat16"
    name = "model.layers.0.mlp.up_proj.weight"
    before, after = (load_file(folder / "model.safetensors")[name] for folder in (tiny["causal_lm"], out))
    assert after.dtype == torch.bfloat16
    assert (before.to(torch.bfloat16) != after).float().mean() > 0.5


def test_what_another_method_trained_is_refused(tiny: dict[str, Path], tmp_path: Path) -> None:
    lora, full = (make_spec(tiny["encoder"], "encoder", method, epochs=1) for method in ("lora", "full"))
    train(lora, tmp_path / "lora")
    train(full, tmp_path / "full")
    with pytest.raises(ModelError, match="not trained with `method: full`"):
        load_predictor(full, LABELS, SETTINGS, tmp_path, tmp_path / "lora")
    with pytest.raises(ModelError, match="not trained with `method: lora`"):
        load_predictor(lora, LABELS, SETTINGS, tmp_path, tmp_path / "full")


def test_both_forms_of_qlora_are_one_setting() -> None:
    base: dict[str, Any] = {"model": "m", "architecture": "encoder"}
    older, newer = StudentSpec(**base, quantization="nf4"), StudentSpec(**base, method="qlora")
    assert older == newer
    assert (newer.method, newer.quantization) == ("qlora", "nf4")
    for settings in ({"method": "dora", "quantization": "nf4"}, {"method": "qlora", "quantization": "none"}):
        with pytest.raises(ValidationError, match="Keep `method` alone"):
            StudentSpec.model_validate(base | settings)
    with pytest.raises(ValidationError, match="Leave `lora` out"):
        StudentSpec(**base, method="full", lora=LoraSpec(rank=4))
