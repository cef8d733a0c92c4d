"""Each preset on a tiny model of its architecture with random weights: train, merge, save, reload, generate."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError

from distill_dagster.config import LabelSpec, StudentSpec
from distill_dagster.config.presets import PRESETS, PresetName
from distill_dagster.core.errors import ModelError
from distill_dagster.release.merged import AnsweredPrompt, write_merged
from distill_dagster.release.runtimes.types import StudentSetup
from distill_dagster.student.causal import CausalStudent
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.train import PROMPT_FILE, train_adapter
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainRow
from tests.student.test_chat_prompts import read_template
from tests.support.tiny_model import write_tiny_model

SETTINGS = TaskSettings("Word", "Say it.")
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
ROWS = [
    TrainRow(word, StudentPrompt.from_text(word), answer, target=answer)
    for word, answer in (("red", "stop"), ("green", "go"), ("amber", "wait"))
]


def make_gemma_4b(vocabulary: int) -> Any:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.Gemma3Config(
        text_config=SIZES | {"vocab_size": vocabulary, "sliding_window": 64},
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=1,
        boi_token_index=1,
        eoi_token_index=1,
        image_token_index=1,
    )


CASES = {
    "phi-4-mini": (transformers.Phi3Config, "phi3_5"),
    "llama-3.1-8b": (transformers.LlamaConfig, "llama3_1"),
    "llama-3.2-1b": (transformers.LlamaConfig, "llama3_2"),
    "qwen3-0.6b": (transformers.Qwen3Config, "qwen3"),
    "gemma-3-270m": (transformers.Gemma3TextConfig, "gemma3"),
    "gemma-3-4b": (make_gemma_4b, "gemma3"),
    "smollm3": (transformers.SmolLM3Config, "qwen3_instruct_2507"),
}
"""Architecture and chat template by preset. The others are other sizes of these."""


def write_model(folder: Path, name: str) -> int:
    """Write the model of a preset with random weights. Return the number of its text layers."""
    make_config, template_name = CASES[name]
    tokenizer_folder = write_tiny_model(folder / "tokenizer", layers=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    template = read_template(template_name)
    found = set(re.findall(r"<\|[a-z_]+\|>|<(?:start|end)_of_turn>|</?think>", template))
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(found)})
    tokenizer.chat_template = template
    values = {} if make_config is make_gemma_4b else SIZES | {"tie_word_embeddings": name != "llama-3.1-8b"}
    config = make_config(vocab_size=len(tokenizer), **values) if values else make_gemma_4b(len(tokenizer))
    if name == "gemma-3-270m":
        config.sliding_window = 64
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.rmtree(tokenizer_folder)
    return int(config.get_text_config().num_hidden_layers)


@pytest.mark.parametrize("name", CASES)
def test_a_preset_trains_and_generates(name: PresetName, tmp_path: Path) -> None:
    layers = write_model(tmp_path / "base", name)
    own: dict[str, Any] = {"model": str(tmp_path / "base"), "dtype": "float32", "method": "lora", "answer_tokens": 24}
    spec = StudentSpec(preset=name, **own, epochs=60, learning_rate=1e-2, batch_size=3, patience=None)
    log = train_adapter(spec, [], SETTINGS, ROWS, [], tmp_path / "out", tmp_path)
    assert log.prompt == "chat"
    assert log.losses[-1][2] < 0.1 < log.losses[0][2]
    trained = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"]
    modules = trained if isinstance(trained, list) else trained.split("(")[-1].strip(")").split("|")
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len(weights) == 2 * layers * len(modules)
    assert not any("vision" in weight for weight in weights)

    asked = [row.prompt for row in ROWS]
    merged = load_predictor(spec, [], SETTINGS, tmp_path, tmp_path / "out")
    assert [one.raw_text for one in merged.predict(asked)] == [row.target for row in ROWS], "each answer ends"
    again = load_predictor(spec, [], SETTINGS, tmp_path, tmp_path / "out")
    assert again.predict(asked) == merged.predict(asked)

    from peft import PeftModel

    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    served = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    sample = json.loads((tmp_path / "out" / PROMPT_FILE).read_text())["sample"]
    ids = torch.tensor([sample["prompt_ids"]])
    with torch.no_grad():
        before = adapted(input_ids=ids).logits
        after = adapted.merge_and_unload()(input_ids=ids).logits
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    prompts = [AnsweredPrompt(row.prompt_id, row.prompt, row.target, None) for row in ROWS]
    written = write_merged(StudentSetup(spec, (), SETTINGS, tmp_path), tmp_path / "out", prompts, tmp_path / "merged")
    assert written.parity.passed, written.parity
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(reloaded(input_ids=ids).logits, before, atol=1e-4, rtol=1e-4)
    assert not any("lora" in weight for weight in reloaded.state_dict())
    turns = [{"role": "system", "content": SETTINGS.instructions}, {"role": "user", "content": "An example."}]
    text = served.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert served(text, add_special_tokens=False)["input_ids"] == sample["prompt_ids"], "a server renders the same"


@pytest.mark.parametrize(("name", "like"), [("llama-3.1-8b", "llama-3.1-8b"), ("qwen3-8b", "qwen3-0.6b")])
def test_a_preset_in_4_bits_trains_and_generates(name: PresetName, like: str, tmp_path: Path) -> None:
    write_model(tmp_path / "base", like)
    own: dict[str, Any] = {"model": str(tmp_path / "base"), "dtype": "float32", "answer_tokens": 24}
    spec = StudentSpec(preset=name, **own, epochs=60, learning_rate=1e-2, batch_size=3, patience=None)
    assert spec.method == "qlora"
    log = train_adapter(spec, [], SETTINGS, ROWS, [], tmp_path / "out", tmp_path)
    assert log.losses[-1][2] < 0.1 < log.losses[0][2]
    asked = [row.prompt for row in ROWS]
    found = load_predictor(spec, [], SETTINGS, tmp_path, tmp_path / "out").predict(asked)
    assert [one.raw_text for one in found] == [row.target for row in ROWS], "each answer ends"
    again = load_predictor(spec, [], SETTINGS, tmp_path, tmp_path / "out")
    assert again.predict(asked) == found


def test_labels_are_chosen_behind_a_chat_prompt(tmp_path: Path) -> None:
    """The probabilities are those of the label's first tokens after what a server renders from the saved template."""
    write_model(tmp_path / "base", "qwen3-0.6b")
    labels = [LabelSpec(name=name, description=name) for name in ("stop", "go", "wait")]
    own: dict[str, Any] = {"model": str(tmp_path / "base"), "dtype": "float32", "learning_rate": 1e-2, "batch_size": 3}
    spec = StudentSpec(preset="qwen3-0.6b", **own, epochs=40, patience=None)
    log = train_adapter(spec, labels, SETTINGS, ROWS, [], tmp_path / "out", tmp_path)
    assert log.target_tokens == len("stop") + len("go") + len("wait") + 3
    found = load_predictor(spec, labels, SETTINGS, tmp_path, tmp_path / "out").predict([row.prompt for row in ROWS])
    assert [one.label for one in found] == [row.answer_label for row in ROWS]

    from peft import PeftModel

    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    served = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for row, one in zip(ROWS, found, strict=True):
        turns = [{"role": "system", "content": "Say it."}, {"role": "user", "content": row.prompt.text}]
        text = served.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = served(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1]
        first = served.convert_tokens_to_ids(["s", "g", "w"])
        assert list(one.probs.values()) == pytest.approx(logits[first].softmax(-1).tolist(), abs=1e-3)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_student_is_not_asked_otherwise_than_in_its_training(method: str, tmp_path: Path) -> None:
    """The template of a base changes on the hub, and students that were trained before chat prompts have no sample."""
    write_model(tmp_path / "base", "qwen3-0.6b")
    own = {"model": str(tmp_path / "base"), "architecture": "causal_lm", "dtype": "float32", "method": method}
    spec, out = StudentSpec.model_validate(own | {"epochs": 1}), tmp_path / "out"
    train_adapter(spec, [], SETTINGS, ROWS, [], out, tmp_path)
    load_predictor(spec, [], SETTINGS, tmp_path, out)
    with pytest.raises(ModelError, match=r"has other tokens. Train the student again"):
        load_predictor(spec, [], replace(SETTINGS, instructions="Sing it."), tmp_path, out)
    with pytest.raises(ModelError, match=r"has other tokens. Train the student again"):
        load_predictor(spec.model_copy(update={"prompt": "plain"}), [], SETTINGS, tmp_path, out)
    sample = (out / PROMPT_FILE).read_text()
    (out / PROMPT_FILE).unlink()
    with pytest.raises(ModelError, match=r"its prompts were plain. Train the student again"):
        load_predictor(spec, [], SETTINGS, tmp_path, out)
    load_predictor(spec.model_copy(update={"prompt": "plain"}), [], SETTINGS, tmp_path, out)
    (out / PROMPT_FILE).write_text(sample)
    loaded = (out if method == "full" else tmp_path / "base") / "chat_template.jinja"
    loaded.write_text(loaded.read_text() + "{{ '\nAnswer briefly.' }}")
    with pytest.raises(ModelError, match="Train the student again"):
        load_predictor(spec, [], SETTINGS, tmp_path, out)


LAYER_TYPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sliding window": (
        transformers.Gemma3TextConfig,
        {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "convolution": (transformers.Lfm2Config, {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
    "running state": (
        transformers.Qwen3NextConfig,
        {"layer_types": ["linear_attention", "full_attention"], "num_experts": 0, "linear_num_value_heads": 4}
        | {"linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16},
    ),
}
"""What a layer keeps of a text: less than its keys and values."""


@pytest.mark.parametrize("kept", LAYER_TYPES)
@pytest.mark.parametrize("lengths", [[30], [5], [30, 5, 14]])
def test_labels_behind_a_long_prompt_are_scored_like_whole_sequences(
    kept: str, lengths: list[int], tmp_path: Path
) -> None:
    """Each probe of labels starts from the state after the prompt, whatever the layers keep of it."""
    make_config, values = LAYER_TYPES[kept]
    tokenizer = transformers.AutoTokenizer.from_pretrained(write_tiny_model(tmp_path / "tokenizer", layers=1))
    torch.manual_seed(0)
    config = make_config(vocab_size=len(tokenizer), **SIZES, **values)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    spec = StudentSpec(model=str(tmp_path / "base"), architecture="causal_lm", dtype="float32")
    names = ("stop", "stop now", "go left", "go right", "go right now")
    labels = [LabelSpec(name=name, description=name) for name in names]
    student = CausalStudent(spec, labels, SETTINGS, tmp_path)
    assert len(student.trie.find_probes()) > 1
    asked = [StudentPrompt.from_text(("amber red " * 9)[:length]) for length in lengths]
    found = student.compute_log_probs(asked)
    for row, prompt in enumerate(asked):
        [start] = student.renderer.encode_prompts([prompt])
        logits = []
        for branch in student.trie.branches:
            ids = torch.tensor([[*start.ids, *branch.prefix]])
            with torch.no_grad():
                logits.append(student.model(input_ids=ids, use_cache=False).logits[:, -1, list(branch.children)])
        torch.testing.assert_close(student.trie.compute_log_probs(logits)[0], found[row], atol=1e-4, rtol=1e-4)


def test_what_a_task_sets_itself_wins() -> None:
    for name in PRESETS:
        spec = StudentSpec.model_validate({"preset": name})
        assert (spec.model, spec.architecture) == (PRESETS[name]["model"], "causal_lm")
        assert StudentSpec.model_validate(spec.model_dump()) == spec
    settings = {"preset": "llama-3.1-8b", "method": "dora", "epochs": 9, "lora": {"last_layers": 4}}
    spec = StudentSpec.model_validate(settings)
    assert (spec.method, spec.quantization, spec.epochs, spec.lora.last_layers) == ("dora", "none", 9, 4)
    assert spec.lora.target_modules == PRESETS["llama-3.1-8b"]["lora"]["target_modules"]
    assert StudentSpec(preset="llama-3.1-8b").quantization == "nf4"
    assert StudentSpec(preset="llama-3.1-8b", quantization="none").method == "lora"
    assert StudentSpec(preset="qwen3-0.6b", method="full").method == "full"


def test_without_a_preset_a_model_is_required() -> None:
    with pytest.raises(ValidationError, match="`model` required"):
        StudentSpec(architecture="encoder")
    with pytest.raises(ValidationError, match="`model` and `architecture` required"):
        StudentSpec()
    with pytest.raises(ValidationError, match=r"preset[\s\S]*phi-4-mini"):
        StudentSpec.model_validate({"preset": "phi-5"})
