"""The merged student: loaded back by transformers and peft, compared with the adapter, refused if a layer is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from distill_dagster.config import LabelSpec, LoraSpec, StudentSpec
from distill_dagster.release.merged import (
    AnsweredPrompt,
    choose_parity_prompts,
    compare_merged,
    copy_adapter,
    round_if_equal,
    write_merged,
)
from distill_dagster.release.runtimes.types import StudentSetup
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainRow
from tests.support.tiny_model import write_random_models

SETTINGS = TaskSettings(item="Ticket")
LABELS = [LabelSpec(name=name, description=name) for name in ("red", "blue")]
WORDS = {"red": ["bread", "cake"], "blue": ["tyre", "chain"]}
ROWS = [
    TrainRow(word, StudentPrompt.from_text(f"I ask for a {word}"), label, target=f"a {label} one")
    for label, words in WORDS.items()
    for word in words
]
ASKED = [AnsweredPrompt(row.prompt_id, row.prompt, None, '"red"') for row in ROWS]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> dict[str, Path]:
    return write_random_models(tmp_path_factory.mktemp("models"), models_folder, 3, 0.05)


def train(tiny: dict[str, Path], architecture: str, out: Path, labels: list[LabelSpec], **settings: Any) -> StudentSpec:
    values: dict[str, Any] = {"architecture": architecture, "prompt": "plain", "epochs": 3, "batch_size": 4}
    values |= {"learning_rate": 1e-2, "patience": None} | settings
    if values.get("method") != "full":
        values |= {"lora": LoraSpec(rank=4, alpha=8)}
    spec = StudentSpec(model=str(tiny[architecture]), soft_weight=0.0, **values)
    train_adapter(spec, labels, SETTINGS, ROWS, [], out, out.parent)
    return spec


def build_setup(spec: StudentSpec, models: Path) -> StudentSetup:
    return StudentSetup(spec, tuple(LABELS), SETTINGS, models)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("causal_lm", {"method": "rslora"}),
        ("causal_lm", {"method": "full", "dtype": "float32"}),
        ("encoder", {"method": "dora", "shrink": {"layers": 2}}),
    ],
)
def test_the_merged_student_answers_as_its_adapter(
    architecture: str, settings: dict[str, Any], tiny: dict[str, Path], tmp_path: Path
) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    spec = train(tiny, architecture, adapter, LABELS, **settings)
    made = write_merged(build_setup(spec, tmp_path), adapter, ASKED, merged)
    answers, parity = made.answers, made.parity
    assert parity.passed
    assert parity.figures["max_log_prob_difference"] < 1e-4
    assert [len(one.log_probs) for one in answers] == [2] * len(ROWS)

    # transformers alone, on the tokens that the parity prompts name
    auto = transformers.AutoModelForCausalLM if architecture == "causal_lm" else transformers.AutoModel
    model = auto.from_pretrained(merged, dtype=torch.float32)
    if "shrink" in settings:
        assert model.config.num_hidden_layers == 2
    if architecture == "causal_lm":
        tokens = transformers.AutoTokenizer.from_pretrained(merged)("\nCategory:", add_special_tokens=False)[
            "input_ids"
        ]
        assert list(answers[0].prompt_tokens[-len(tokens) :]) == tokens
        paths = [transformers.AutoTokenizer.from_pretrained(merged)(f" {one.name}")["input_ids"][0] for one in LABELS]
        logits = model(torch.tensor([answers[0].prompt_tokens])).logits[0, -1, paths]
    else:
        hidden = model(torch.tensor([answers[0].prompt_tokens])).last_hidden_state
        head = load_file(merged / "head.safetensors")
        logits = torch.nn.functional.normalize(hidden.mean(1), dim=-1)[0] @ head["weight"].T + head["bias"]
    assert logits.log_softmax(-1).tolist() == pytest.approx(answers[0].log_probs, abs=1e-4)


def test_the_released_adapter_is_loaded_by_peft_alone(tiny: dict[str, Path], tmp_path: Path) -> None:
    trained, adapter = tmp_path / "trained", tmp_path / "adapter"
    spec = train(tiny, "causal_lm", trained, LABELS)
    copy_adapter(trained, adapter)
    assert not {"artifact.json", "training_log.json", "trained_on.parquet"} & {path.name for path in adapter.iterdir()}
    made = write_merged(build_setup(spec, tmp_path), adapter, ASKED, tmp_path / "merged")
    answer = made.answers[0]
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny["causal_lm"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(adapter)
    logits = model(torch.tensor([answer.prompt_tokens])).logits[0, -1]
    chosen = logits[[tokenizer(f" {one.name}")["input_ids"][0] for one in LABELS]]
    assert chosen.log_softmax(-1).tolist() == pytest.approx(answer.log_probs, abs=1e-4)


def test_a_lost_layer_is_refused_and_rounding_is_not_taken_for_one(tiny: dict[str, Path], tmp_path: Path) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    spec = train(tiny, "causal_lm", adapter, LABELS, epochs=12)
    made = write_merged(build_setup(spec, tmp_path), adapter, ASKED, merged)
    answers, parity = made.answers, made.parity
    assert parity.passed
    weights, base = load_file(merged / "model.safetensors"), load_file(tiny["causal_lm"] / "model.safetensors")
    lost = {name: base[name] if ".layers.1." in name else value for name, value in weights.items()}
    save_file(lost, merged / "model.safetensors", {"format": "pt"})
    found = compare_merged(build_setup(spec, tmp_path), merged, answers)
    assert not found.passed
    assert "more than 0.001" in found.text

    save_file(weights, merged / "model.safetensors", {"format": "pt"})
    half, full = (spec.model_copy(update={"dtype": dtype}) for dtype in ("bfloat16", "float32"))
    other = [replace(one, log_probs=(-0.1, -2.4) if one.log_probs[0] < -1 else (-2.4, -0.1)) for one in answers]
    refused = round_if_equal(build_setup(half, tmp_path), merged, other)
    assert refused is not None
    assert not refused.passed
    assert "rounded to bfloat16" in refused.text
    kept = load_file(merged / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in weights.items())

    lacking = [replace(answers[0], log_probs=(float("nan"), -0.1)), *answers[1:]]
    assert not compare_merged(build_setup(spec, tmp_path), merged, lacking).passed

    assert round_if_equal(build_setup(full, tmp_path), merged, answers) is None
    rounded = round_if_equal(build_setup(half, tmp_path), merged, answers)
    assert rounded is not None
    assert rounded.passed
    assert 0 < rounded.figures["max_log_prob_difference"] < 0.1
    assert transformers.AutoModelForCausalLM.from_pretrained(merged).dtype == torch.bfloat16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]


def test_a_student_that_writes_is_compared_token_by_token(tiny: dict[str, Path], tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    spec = train(tiny, "causal_lm", adapter, [], epochs=20, answer_tokens=12)
    asked = [AnsweredPrompt(one.id, one.prompt, '"a"', '"b"') for one in ASKED]
    made = write_merged(StudentSetup(spec, (), SETTINGS, tmp_path), adapter, asked, tmp_path / "merged")
    answers = made.answers
    assert made.parity.passed
    tokenizer = transformers.AutoTokenizer.from_pretrained(adapter)
    for one in answers:
        assert len(one.answer_tokens) == len(one.log_probs)
        assert tokenizer.decode(one.answer_tokens, skip_special_tokens=True).strip() in one.answer
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    first = answers[0]
    ids = torch.tensor([[*first.prompt_tokens, *first.answer_tokens]])
    log_probs = model(ids).logits[0, len(first.prompt_tokens) - 1 : -1].log_softmax(-1)
    found = log_probs.gather(1, torch.tensor(first.answer_tokens)[:, None])[:, 0]
    assert found.tolist() == pytest.approx(first.log_probs, abs=1e-4)


def test_prompts_on_which_base_and_student_differ_come_first() -> None:
    prompt = StudentPrompt.from_text("a")
    answered = [
        AnsweredPrompt(str(n), prompt, json.dumps("x"), json.dumps("y" if n % 10 == 0 else "x")) for n in range(100)
    ]
    chosen = choose_parity_prompts(answered, 20)
    assert len({one.id for one in chosen}) == 20
    assert [one.answer != one.base_answer for one in chosen] == [True] * 10 + [False] * 10
    assert chosen == choose_parity_prompts(answered[::-1], 20)
    # without prompts on which they agree, all of them differ
    assert len(choose_parity_prompts([one for one in answered if one.answer != one.base_answer], 8)) == 8


def test_a_merged_model_that_computes_no_numbers_is_refused(tiny: dict[str, Path], tmp_path: Path) -> None:
    """One prompt of several has NaN. The first one is right."""
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    spec = train(tiny, "causal_lm", adapter, LABELS)
    made = write_merged(build_setup(spec, tmp_path), adapter, ASKED, merged)
    weights = load_file(merged / "model.safetensors")
    [token, *_] = set(made.answers[1].prompt_tokens) - set(made.answers[0].prompt_tokens)
    weights["model.embed_tokens.weight"][token] = torch.nan
    save_file(weights, merged / "model.safetensors", {"format": "pt"})
    found = compare_merged(build_setup(spec, tmp_path), merged, made.answers)
    assert not found.passed
