"""vLLM itself: as a teacher behind a server, as a batch runner, and with a released student.

This project does not install it. Name its program: `DISTILL_TEST_VLLM=/path/to/bin/vllm`. docs/own-teachers.md says how
to get one that needs no GPU.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers

from distill_dagster.config import LabelSpec, LoraSpec, StudentSpec, TeacherSpec
from distill_dagster.core.errors import TeacherError
from distill_dagster.core.models import resolve_model
from distill_dagster.release.merged import write_merged
from distill_dagster.release.runtimes.types import StudentSetup
from distill_dagster.release.vllm_command import finish_merged, write_vllm_files
from distill_dagster.student.loading import load_base
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.prompts import LABEL_CUE, make_renderer
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainRow
from distill_dagster.teacher.asking.soft_labels import compute_label_mass
from distill_dagster.teacher.completions.batches import BatchPendingError, BatchRunner
from distill_dagster.teacher.completions.engine import CompletionEngine
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers.capabilities import build_response_format
from distill_dagster.teacher.providers.client import resolve_endpoint
from distill_dagster.teacher.providers.connection_check import check_connection
from distill_dagster.teacher.providers.event_loop import run_in_loop
from distill_dagster.teacher.providers.exchange import Request, Response
from tests.support.waiting import wait_until

VLLM = os.environ.get("DISTILL_TEST_VLLM", "")
pytestmark = [
    pytest.mark.scale,
    pytest.mark.slow,
    pytest.mark.skipif(not VLLM, reason="DISTILL_TEST_VLLM does not name the program vllm"),
]
SETTINGS = TaskSettings(item="Ticket", instructions="Sort the ticket.")
LABELS = [LabelSpec(name=name, description=name) for name in ("food", "vehicle")]
TEXTS = {"food": ["bread", "cake", "a bread", "a cake"], "vehicle": ["tyre", "chain", "a tyre", "a chain"]}
ROWS = [TrainRow(text, StudentPrompt.from_text(text), label) for label, texts in TEXTS.items() for text in texts]
HUB_ID, NAME = "org/base", "tickets"
OPTIONS = ("--enforce-eager", "--max-model-len", "256")


class Released(NamedTuple):
    """A released student whose base is in a cache of the Hub: with its adapter, and merged."""

    adapter: Path
    merged: Path
    answers: dict[str, str]
    environment: dict[str, str]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    folder = tmp_path_factory.mktemp("vllm")
    cached = folder / "hub" / "hub" / "models--org--base"
    base = cached / "snapshots" / ("0" * 40)
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    write_base(base, folder)
    values: dict[str, Any] = {"epochs": 120, "batch_size": 4, "learning_rate": 1e-2, "patience": None, "max_tokens": 64}
    values |= {"method": "rslora", "lora": LoraSpec(rank=9), "dtype": "float32", "soft_weight": 0.0}
    spec = StudentSpec(model=str(base), architecture="causal_lm", **values)
    train_adapter(spec, LABELS, SETTINGS, ROWS, [], folder / "adapter", folder)
    setup = StudentSetup(spec, tuple(LABELS), SETTINGS, folder)
    renderer = make_renderer(spec, SETTINGS, load_base(spec, folder, "AutoModelForCausalLM").tokenizer)
    for name, model in (("with_adapter", HUB_ID), ("with_merged", str(base))):
        (folder / name).mkdir()
        (folder / name / "adapter").symlink_to(folder / "adapter")
        served = StudentSetup(spec.model_copy(update={"model": model}), tuple(LABELS), SETTINGS, folder)
        if model != HUB_ID:
            write_merged(setup, folder / "adapter", [], folder / name / "merged")
            finish_merged(folder / name / "merged", setup, renderer, LABEL_CUE)
        write_vllm_files(folder / name, NAME, served, renderer, LABEL_CUE)
    student = load_predictor(spec, LABELS, SETTINGS, folder, folder / "adapter")
    answers = {row.prompt.text: str(student.predict([row.prompt])[0].label) for row in ROWS}
    assert set(answers.values()) == set(TEXTS), "a student that knows both labels"
    environment = {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment |= {
        "VLLM_NO_USAGE_STATS": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "PATH": f"{Path(VLLM).parent}:{os.environ['PATH']}",
    }
    return Released(folder / "with_adapter", folder / "with_merged", answers, os.environ | environment)


def write_base(folder: Path, models: Path) -> None:
    """A small model with random weights and a real tokenizer. vLLM takes heads of 32 values or more."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct", models).location)
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = transformers.LlamaConfig(**sizes, **ends, vocab_size=len(tokenizer), initializer_range=0.1)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def serve(folder: Path, released: Released) -> Iterator[str]:
    """The address of a server that the command of a release starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(folder / "vllm.sh"), "--port", str(port), *OPTIONS]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=released.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def is_healthy() -> bool:
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as got:
                return bool(got.status == 200)
        except OSError:
            return False

    try:
        wait_until(is_healthy, "vLLM to be healthy", pause_s=0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def build_spec(**changes: Any) -> TeacherSpec:
    settings = {"model": f"openai/{NAME}", "timeout_s": 300, "terms": {"acknowledged": True}}
    return TeacherSpec.model_validate(settings | changes)


def ask(spec: TeacherSpec, store: CompletionStore, *requests: Request) -> list[Response]:
    async def ask_engine() -> list[Response]:
        engine = CompletionEngine(resolve_endpoint(spec), spec, store)
        try:
            return [await engine.answer(request) for request in requests]
        finally:
            await engine.close()

    return run_in_loop(ask_engine())


def build_request(text: str, spec: TeacherSpec, **params: Any) -> Request:
    messages = [{"role": "user", "content": text}]
    return Request(resolve_endpoint(spec).identity, 0, {"temperature": 0, "max_tokens": 4} | params, messages=messages)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CompletionStore]:
    store = CompletionStore.open_in_folder(tmp_path / "store")
    yield store
    store.close()


def test_a_released_adapter_and_its_base_are_teachers(released: Released, store: CompletionStore) -> None:
    with serve(released.adapter, released) as address:
        student, base = build_spec(api_base=address), build_spec(api_base=address, model=f"openai/{HUB_ID}")
        assert run_in_loop(check_connection(student)) is None
        assert run_in_loop(check_connection(base)) is None
        found = run_in_loop(check_connection(build_spec(api_base=address, model="openai/other")))
        assert found is not None
        assert (found.severity, f"It lists {HUB_ID}, {NAME}." in found.remedy) == ("error", True)

        asked = [build_request(text, student, logprobs=True, top_logprobs=20) for text in released.answers]
        for response, label in zip(ask(student, store, *asked), released.answers.values(), strict=True):
            assert response.text.strip() == label
            assert len(response.positions[0]) >= 20
            mass = compute_label_mass(response.positions, list(TEXTS), ended=response.finish_reason == "stop")
            assert max(mass.labels, key=mass.labels.__getitem__) == label
            assert mass.total > mass.least
            assert response.prompt_tokens is not None
            assert response.prompt_tokens > 0
        [plain] = ask(base, store, build_request("bread", base))
        assert plain.model_reported == HUB_ID
        text = Request(
            resolve_endpoint(base).identity, 0, {"temperature": 0, "max_tokens": 2, "logprobs": 5}, "Ticket:"
        )
        [written] = ask(build_spec(api_base=address, model=base.model, api="text"), store, text)
        assert len(written.positions) == 2
        with pytest.raises(TeacherError, match=r"HTTP 400.*logprobs"):
            ask(student, store, build_request("bread", student, logprobs=True, top_logprobs=21))

        schema: dict[str, Any] = {"type": "object", "properties": {"label": {"enum": list(TEXTS)}}}
        schema |= {"required": ["label"], "additionalProperties": False}
        forced = Request(
            resolve_endpoint(base).identity,
            0,
            {"temperature": 0, "max_tokens": 60},
            messages=[{"role": "user", "content": "bread"}],
            response_format=build_response_format(schema),
        )
        [answer] = ask(base, store, forced)
        # Random weights write white space until the limit, where JSON allows it.
        assert [text.lstrip().startswith("{") for text in (plain.text, answer.text)] == [False, True]


def test_a_merged_release_answers_as_the_student(released: Released) -> None:
    request = json.loads((released.merged / "vllm_request.json").read_text())
    with serve(released.merged, released) as address:
        for text, label in released.answers.items():
            body = request | {"messages": [{"role": "user", "content": text}]}
            sent = urllib.request.Request(
                f"{address}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(sent, timeout=300) as got:
                assert json.load(got)["choices"][0]["message"]["content"].strip() == label


def test_the_batch_runner_answers_files(
    released: Released, store: CompletionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path))
    spec = build_spec(mode="batch", batch={"runner": "vllm"}, soft_labels="logprobs")
    requests = [build_request(text, spec, logprobs=True, top_logprobs=20) for text in released.answers]
    endless = build_request("bread " * 400, spec, logprobs=True, top_logprobs=20)

    def run() -> dict[str, str]:
        return run_in_loop(BatchRunner(resolve_endpoint(spec), spec, store).run([*requests, endless], "t/a[b]"))

    with pytest.raises(BatchPendingError):
        run()
    [program] = (tmp_path / "batches").glob("*/run_vllm.py")
    options = ["--model", HUB_ID, "--enable-lora", "--max-lora-rank", "16", "--dtype", "float32", *OPTIONS]
    options += ["--lora-modules", f"{NAME}={released.adapter / 'adapter'}"]
    options += ["--chat-template", str(released.adapter / "chat_template.jinja"), "--generation-config", "vllm"]
    done = subprocess.run(
        [sys.executable, str(program), *options],
        env=released.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    errors = run()
    assert list(errors) == [endless.key]
    assert "HTTP 400" in errors[endless.key]
    stored = store.get([request.key for request in requests])
    assert [stored[request.key].text.strip() for request in requests] == list(released.answers.values())
    assert all(stored[request.key].positions for request in requests)
