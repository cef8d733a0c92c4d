"""Write the command that serves a student with vLLM, and what makes its merged folder ask as the student was trained.

vLLM reads the chat template of the base, not of an adapter, and its sampling defaults from generation_config.json. So
the command names the student's own template, and answers are greedy.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.core.models import HUB_ID, PACKAGED_MODELS
from distill_dagster.student.loading import get_torch_dtype

if TYPE_CHECKING:
    from distill_dagster.config import StudentSpec
    from distill_dagster.release.runtimes.types import StudentSetup
    from distill_dagster.student.prompts import PromptRenderer

VLLM_FILE, REQUEST_FILE = "vllm.sh", "vllm_request.json"
TEMPLATE_FILE, GENERATION_FILE = "chat_template.jinja", "generation_config.json"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of `--max-lora-rank` in vLLM 0.32."""
LORA_LAYERS = frozenset({"down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"})
"""Layers whose adapters vLLM applies for every architecture that has them under these names."""


@dataclass(frozen=True)
class VllmFiles:
    """What was written. `note` is a sentence for the model card; it says why there is no command, if there is none."""

    files: tuple[str, ...]
    note: str


def finish_merged(merged: Path, setup: StudentSetup, renderer: PromptRenderer, cue: str) -> None:
    """Let a merged folder ask and answer as the student in every program that reads chat templates.

    Its chat template becomes the one that renders the student's prompt, and generation is greedy, with the student's
    ends and length. Call this last: the exports that are made from the folder read the base's template.
    """
    (merged / TEMPLATE_FILE).write_text(build_hub_template(renderer, cue), encoding="utf-8")
    config = merged / "tokenizer_config.json"
    value = json.loads(config.read_text(encoding="utf-8"))
    if value.pop("chat_template", None) is not None:
        config.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    generation = {
        "do_sample": False,
        "eos_token_id": renderer.stops,
        "max_new_tokens": _count_tokens(setup, renderer),
        "pad_token_id": renderer.tokenizer.pad_token_id,
    }
    (merged / GENERATION_FILE).write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def build_hub_template(renderer: PromptRenderer, cue: str) -> str:
    """The student's chat template for transformers and vLLM, which add no token before what a template renders."""
    template = renderer.build_served_template(cue)
    tokenizer = renderer.tokenizer
    starts = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return "{{- bos_token -}}" + template if starts and renderer.style == "plain" else template


def write_vllm_files(folder: Path, task: str, setup: StudentSetup, renderer: PromptRenderer, cue: str) -> VllmFiles:
    """Write the command, the template and an example of a request to the folder of a release.

    The adapter is served on its base if vLLM applies it, else the merged folder.

    Args:
        task: the name under which the student is served.
    """
    obstacle = find_adapter_obstacle(setup.spec, folder / "adapter", renderer)
    if obstacle and not (folder / "merged").is_dir():
        return VllmFiles((), f"There is no {VLLM_FILE}: {obstacle}. Add `merged` to `release.exports`.")
    (folder / TEMPLATE_FILE).write_text(build_hub_template(renderer, cue), encoding="utf-8")
    request = _build_request(task, setup, renderer)
    (folder / REQUEST_FILE).write_text(json.dumps(request, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    script = folder / VLLM_FILE
    script.write_text(_build_script(folder, task, setup, renderer, obstacle), encoding="utf-8")
    script.chmod(0o755)
    served = f"the merged model, since {obstacle}" if obstacle else f"the adapter on {setup.spec.model}"
    return VllmFiles((VLLM_FILE, TEMPLATE_FILE, REQUEST_FILE), f"{VLLM_FILE} serves {served}.")


def choose_max_lora_rank(rank: int) -> int:
    """The smallest value that vLLM takes for an adapter of this rank."""
    return next(allowed for allowed in LORA_RANKS if allowed >= rank)


def find_adapter_obstacle(spec: StudentSpec, adapter: Path, renderer: PromptRenderer) -> str | None:
    """Why vLLM cannot apply the adapter to the base as it is on the Hub, as a clause. None if it can."""
    if spec.method == "full":
        return "all its weights were trained"
    if spec.method == "dora":
        return "vLLM has no DoRA adapters"
    if spec.shrink is not None:
        return "it has fewer layers than its base"
    if spec.model in PACKAGED_MODELS or not HUB_ID.fullmatch(spec.model) or Path(spec.model).exists():
        return "its base is not on the Hugging Face Hub"
    layers = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["target_modules"]
    if isinstance(layers, str) or not LORA_LAYERS.issuperset(layer.rpartition(".")[2] for layer in layers):
        return "vLLM does not have adapters for all its layers"
    if renderer.end != renderer.tokenizer.eos_token_id:
        return "its answers end with another token than its base's"
    return None


def _build_script(folder: Path, task: str, setup: StudentSetup, renderer: PromptRenderer, obstacle: str | None) -> str:
    spec = setup.spec
    dtype = str(get_torch_dtype(spec.dtype)).removeprefix("torch.")
    generation = {"temperature": 0, "max_new_tokens": _count_tokens(setup, renderer)}
    options = [
        ["--chat-template", TEMPLATE_FILE],
        ["--max-model-len", str(spec.max_tokens + _count_tokens(setup, renderer))],
        ["--dtype", dtype],  # "auto" would make float16 of float32
        # Without the base's own settings, such as a penalty for repetition. Its end tokens stay.
        ["--generation-config", "vllm", "--override-generation-config", json.dumps(generation)],
        ["--host", "127.0.0.1"],
    ]
    if obstacle:
        model, named = "./merged", [["--served-model-name", task]]
    else:
        rank = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))["r"]
        model = spec.model
        named = [["--revision", spec.revision]] if spec.revision else []
        named += [["--enable-lora", "--max-lora-rank", str(choose_max_lora_rank(rank))]]
        named += [["--lora-modules", f"{task}=./adapter"]]
    lines = [f"exec vllm serve {shlex.quote(model)}", *(shlex.join(option) for option in [*named, *options]), '"$@"']
    command = " \\\n  ".join(lines)
    return f"""\
#!/bin/sh
# Serve this student with vLLM, on this machine alone: ./{VLLM_FILE} --port 8000
# Then ask it: curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d @{REQUEST_FILE}
# The server refuses prompts of more than {spec.max_tokens} tokens. The student's own server cuts them.
set -eu
cd "$(dirname "$0")"
{command}
"""


def _build_request(task: str, setup: StudentSetup, renderer: PromptRenderer) -> dict[str, Any]:
    request: dict[str, Any] = {"model": task, "messages": [{"role": "user", "content": "Replace this text."}]}
    if setup.chooses_label:
        # The space before a label is part of its first token.
        space = " " if renderer.style == "plain" else ""
        request["structured_outputs"] = {"choice": [f"{space}{name}" for name in setup.label_names]}
    return request


def _count_tokens(setup: StudentSetup, renderer: PromptRenderer) -> int:
    """The length of the longest answer, with its end token."""
    if not setup.chooses_label:
        return setup.spec.answer_tokens
    return max(len(renderer.encode_answer(name)) for name in setup.label_names) + 1
