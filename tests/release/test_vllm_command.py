"""The vLLM command has the options that the student needs, and the merged folder asks as the student was trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing

from distill_dagster.config import LabelSpec, LoraSpec, StudentSpec
from distill_dagster.release.merged import write_merged
from distill_dagster.release.runtimes.types import StudentSetup
from distill_dagster.release.vllm_command import (
    build_hub_template,
    choose_max_lora_rank,
    find_adapter_obstacle,
    finish_merged,
    write_vllm_files,
)
from distill_dagster.student.loading import load_base
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.prompts import LABEL_CUE, PlainRenderer, make_renderer
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainRow
from tests.support.tiny_model import write_tiny_model

SETTINGS = TaskSettings(item="Ticket", instructions="Sort the ticket.")
LABELS = [LabelSpec(name=name, description=name) for name in ("red", "blue's")]
ROWS = [
    TrainRow(text, StudentPrompt.from_text(text), label)
    for label, words in {"red": ["bread", "cake"], "blue's": ["tyre", "chain"]}.items()
    for text in [*words, *(f"a {word}" for word in words)]
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudentSetup, Path]:
    """The setup of a student that learned its rows, and the folder with its adapter and its merged model."""
    folder = tmp_path_factory.mktemp("trained")
    base = write_tiny_model(folder / "base", size=32, characters="abcdefghijklmnopqrstuvwxyz'TC: \n")
    values: dict[str, Any] = {"epochs": 120, "batch_size": 4, "learning_rate": 1e-2, "patience": None, "max_tokens": 64}
    spec = StudentSpec(
        model=str(base), architecture="causal_lm", method="rslora", lora=LoraSpec(rank=9), soft_weight=0.0, **values
    )
    train_adapter(spec, LABELS, SETTINGS, ROWS, [], folder / "adapter", folder)
    write_merged(StudentSetup(spec, tuple(LABELS), SETTINGS, folder), folder / "adapter", [], folder / "merged")
    return StudentSetup(spec, tuple(LABELS), SETTINGS, folder), folder


def load_renderer(setup: StudentSetup) -> Any:
    base = load_base(setup.spec, setup.models, "AutoModelForCausalLM")
    return make_renderer(setup.spec, setup.settings, base.tokenizer)


def run_script(folder: Path, *arguments: str) -> list[str]:
    """The arguments that the script gives to vLLM."""
    vllm = folder / "bin" / "vllm"
    vllm.parent.mkdir()
    vllm.write_text(f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([os.getcwd(), *sys.argv[1:]]))\n")
    vllm.chmod(0o755)
    done = subprocess.run(
        [folder / "vllm.sh", *arguments],
        env=os.environ | {"PATH": f"{vllm.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    where, *found = json.loads(done.stdout)
    assert Path(where) == folder.resolve()
    return found


def get_options(arguments: list[str]) -> dict[str, str]:
    return {name: value for name, value in zip(arguments, [*arguments[1:], ""], strict=True) if name.startswith("--")}


def test_a_merged_folder_answers_a_chat_as_the_student(trained: tuple[StudentSetup, Path]) -> None:
    setup, folder = trained
    renderer = load_renderer(setup)
    finish_merged(folder / "merged", setup, renderer, LABEL_CUE)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "merged")
    student = load_predictor(setup.spec, LABELS, SETTINGS, folder, folder / "adapter")
    for row in ROWS:
        chat = [{"role": "user", "content": row.prompt.text}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        [expected] = renderer.encode_prompts([row.prompt])
        assert inputs["input_ids"][0].tolist() == expected.ids
        written = model.generate(**inputs)[0, len(expected.ids) :]
        assert tokenizer.decode(written, skip_special_tokens=True).strip() == student.predict([row.prompt])[0].label
        assert written[-1] == renderer.end


def test_a_base_that_is_not_on_the_hub_is_served_merged(trained: tuple[StudentSetup, Path]) -> None:
    setup, folder = trained
    renderer = load_renderer(setup)
    written = write_vllm_files(folder, "triage", setup, renderer, LABEL_CUE)
    assert written.note == "vllm.sh serves the merged model, since its base is not on the Hugging Face Hub."
    arguments = run_script(folder, "--port", "8001")
    options = get_options(arguments)
    assert arguments[:2] == ["serve", "./merged"]
    assert options["--served-model-name"] == "triage"
    assert options["--dtype"] == "float32"
    assert (folder / options["--chat-template"]).read_text() == build_hub_template(renderer, LABEL_CUE)
    longest = len(" blue's") + 1  # every character is a token, and one ends the answer
    assert options["--max-model-len"] == str(64 + longest)
    assert options["--generation-config"] == "vllm"  # not the base's
    assert json.loads(options["--override-generation-config"]) == {"temperature": 0, "max_new_tokens": longest}
    assert arguments[-2:] == ["--port", "8001"]
    request = json.loads((folder / "vllm_request.json").read_text())
    assert request["model"] == "triage"
    assert request["structured_outputs"] == {"choice": [" red", " blue's"]}


def test_an_adapter_is_served_on_its_base(trained: tuple[StudentSetup, Path], tmp_path: Path) -> None:
    setup, folder = trained
    (tmp_path / "adapter").symlink_to(folder / "adapter")
    hub = setup.spec.model_copy(update={"model": "org/base-1b", "revision": "v2"})
    written = write_vllm_files(
        tmp_path, "triage", StudentSetup(hub, setup.labels, SETTINGS, folder), load_renderer(setup), LABEL_CUE
    )
    assert written.note == "vllm.sh serves the adapter on org/base-1b."
    assert set(written.files) == {"vllm.sh", "chat_template.jinja", "vllm_request.json"}
    arguments = run_script(tmp_path)
    options = get_options(arguments)
    assert arguments[:2] == ["serve", "org/base-1b"]
    assert options["--revision"] == "v2"
    assert "--enable-lora" in arguments
    assert options["--max-lora-rank"] == "16"
    assert options["--lora-modules"] == "triage=./adapter"


def test_the_rank_is_one_that_vllm_takes() -> None:
    assert [choose_max_lora_rank(rank) for rank in (1, 2, 8, 9, 64, 129, 257, 512)] == [
        1, 8, 8, 16, 64, 256, 320, 512,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"method": "full"}, "all its weights were trained"),
        ({"method": "dora"}, "no DoRA"),
        ({"shrink": {"layers": 1}}, "fewer layers"),
        ({"model": "smollm2-135m-instruct"}, "not on the Hugging Face Hub"),
        ({"target_modules": ["qkv_proj", "o_proj"]}, "adapters for all its layers"),
        ({"target_modules": ".*language_model.*"}, "adapters for all its layers"),
        ({"end": 1}, "end with another token"),
        ({}, None),
    ],
)
def test_what_vllm_cannot_apply_is_served_merged(change: dict[str, Any], reason: str | None, tmp_path: Path) -> None:
    values: dict[str, Any] = {"model": "org/base", "architecture": "causal_lm"}
    spec = StudentSpec(**values | {name: value for name, value in change.items() if name in StudentSpec.model_fields})
    modules = change.get("target_modules", ["q_proj", "v_proj"])
    (tmp_path / "adapter_config.json").write_text(json.dumps({"target_modules": modules, "r": 16}))
    renderer: Any = SimpleNamespace(end=change.get("end", 2), tokenizer=SimpleNamespace(eos_token_id=2))
    found = find_adapter_obstacle(spec, tmp_path, renderer)
    assert found is None if reason is None else reason in (found or "")
    if reason:
        setup = StudentSetup(spec, (), SETTINGS, tmp_path)
        (tmp_path / "adapter").symlink_to(tmp_path)
        written = write_vllm_files(tmp_path, "triage", setup, renderer, LABEL_CUE)
        assert written.files == ()
        assert "Add `merged` to `release.exports`" in written.note


def test_a_token_that_begins_every_text_is_in_the_template(tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(write_tiny_model(tmp_path))
    tokenizer.bos_token = "<unknown>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unknown> $A", special_tokens=[("<unknown>", tokenizer.bos_token_id)]
    )
    renderer = PlainRenderer(tokenizer, SETTINGS, 64)
    tokenizer.chat_template = build_hub_template(renderer, LABEL_CUE)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "One."}], add_generation_prompt=True)["input_ids"]
    assert ids == renderer.encode_prompts([StudentPrompt.from_text("One.")])[0].ids
    assert ids[0] == tokenizer.bos_token_id
