"""Batch mode with a runner: requests are files, which a program named `vllm` answers. Here it is a small stand-in.

`tests/scale/test_vllm.py` asks the real one.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from distill_dagster.config import TeacherSpec
from distill_dagster.config.batch import BatchSpec
from distill_dagster.core.errors import TeacherError
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.tasks import Slice
from distill_dagster.teacher.asking.ask import AskResult, run_ask
from distill_dagster.teacher.completions.batch_store import BatchStore
from distill_dagster.teacher.completions.batches import BatchPendingError, collect_batches, forget_batch
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers.client import find_missing_key, resolve_endpoint
from distill_dagster.teacher.providers.prices import find_price
from distill_dagster.teacher.providers.terms import find_terms
from tests.support.provider import FakeProvider
from tests.support.task import LABELS, build_asker, write_small_task

TEXTS = ("a refund please", "my delivery", "the login")
VLLM = """\
#!{python} -S
import json, os, sys
arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    print(json.dumps(arguments), file=log)
lines = [json.loads(line) for line in open(arguments[arguments.index("-i") + 1], encoding="utf-8")]
with open({asked!r}, "a") as asked:
    for line in lines:
        print(line["custom_id"], file=asked)
if os.path.exists({fail!r}):
    sys.exit(3)
with open(arguments[arguments.index("-o") + 1], "w", encoding="utf-8") as out:
    for number, line in enumerate(reversed(lines)):
        text = line["body"]["messages"][-1]["content"]
        label = next((label for label in {labels!r} if label in text), "refund")
        message = {{"role": "assistant", "content": label}}
        body = {{"choices": [{{"index": 0, "finish_reason": "stop", "message": message}}], "model": "m",
                "usage": {{"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}}}}
        response, error = {{"status_code": 200, "request_id": "r", "body": body}}, None
        if "{refused}" in text:
            error = {{"error": {{"message": "too many tokens", "type": "BadRequestError", "code": 400}}}}
            response = {{"status_code": 400, "request_id": "r", "body": None}}
        print(json.dumps({{"id": "v", "custom_id": line["custom_id"], "response": response, "error": error}}), file=out)
"""
Ask = Callable[..., AskResult]


class Runner:
    """The stand-in for vLLM, and what it was asked."""

    def __init__(self, path: Path, home: Path) -> None:
        self.path, self.home = path, home
        path.mkdir()
        self.refuse("nothing")

    def refuse(self, word: str) -> None:
        """Answer requests with this word as vLLM answers those that it refuses."""
        files = {"log": str(self.path / "log"), "asked": str(self.path / "asked"), "fail": str(self.path / "fail")}
        program = self.path / "vllm"
        program.write_text(VLLM.format(python=sys.executable, labels=LABELS, refused=word, **files))
        program.chmod(0o755)

    @property
    def folder(self) -> Path:
        [folder] = (self.home / "batches").iterdir()
        return folder

    @property
    def asked(self) -> list[str]:
        return (self.path / "asked").read_text().split()

    @property
    def starts(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.path / "log").read_text().splitlines()]

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PATH": f"{self.path}:{os.environ['PATH']}"}
        command = [sys.executable, str(self.folder / "run_vllm.py"), *options]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return Runner(tmp_path / "bin", tmp_path / "home")


def build_spec(**teacher: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"model": "openai/Qwen/Qwen3-8B", "mode": "batch", "batch": {"runner": "vllm"}}
    base |= {"api": "chat", "api_base": None, "soft_labels": "votes", "boost_labels": None, "resolve_labels": None}
    return base | {"min_success": 0.0} | teacher


@pytest.fixture
def ask(tmp_path: Path, store: CompletionStore, runner: Runner) -> Ask:
    calls = iter(range(100))

    def do(texts: tuple[str, ...] = TEXTS, slice_: str = "shop", **teacher: Any) -> AskResult:
        folder = write_small_task(tmp_path / str(next(calls)), teacher=build_spec(**teacher))
        asker = build_asker(folder, store)
        asker.origin = f"shop_mail/teacher_completions[{slice_}]"
        seeds = Slice.model_validate({"description": "d", "seeds": list(texts)})
        return run_ask(asker, build_seed_prompts(slice_, seeds))

    return do


def test_files_go_to_the_runner_and_its_answers_come_back_by_key(
    ask: Ask, runner: Runner, store: CompletionStore
) -> None:
    with pytest.raises(BatchPendingError, match=r"0 of 6 requests are answered.*run `python .*run_vllm\.py`"):
        ask()
    with pytest.raises(BatchPendingError):
        ask()
    assert len(list(runner.folder.glob("*.requests.jsonl"))) == 1, "nothing is written twice"
    ended = runner.run("--tensor-parallel-size", "2")
    assert ended.returncode == 0, ended.stderr
    [start] = runner.starts
    assert start[:2] == ["run-batch", "-i"]
    assert start[5:] == ["--model", "Qwen/Qwen3-8B", "--tensor-parallel-size", "2"]
    asked = ask()
    assert set(asked.completions["status"]) == {"ok"}
    assert set(asked.completions["mode"]) == {"batch"}
    assert {json.loads(answer) for answer in asked.completions["answer"]} == set(LABELS)
    assert sorted(runner.asked) == sorted(asked.completions["request_key"])
    assert set(store.read_ledger()["state"]) == {"settled"}
    assert sorted(path.name for path in runner.folder.iterdir()) == ["run_vllm.py", "vllm_options.json"]
    assert ask().usage.calls == 0
    with FakeProvider(LABELS) as provider:
        online = ask(mode="online", api_base=provider.url)
        assert (online.usage.calls, provider.requests) == (0, []), "online and runner have the same keys"


def test_a_killed_runner_goes_on_and_asks_nothing_twice_that_it_has_answered(ask: Ask, runner: Runner) -> None:
    for key in ("one", "two"):
        with pytest.raises(BatchPendingError):
            ask(tuple(f"{text} {key}" for text in TEXTS), key, batch={"runner": "vllm", "max_requests": 4})
    assert len(list(runner.folder.glob("*.requests.jsonl"))) == 4
    assert runner.run("--at-once", "1").returncode == 0
    assert [len(runner.starts), len(runner.asked)] == [4, 12], "a file is never divided"
    for path in sorted(runner.folder.glob("*.answers.jsonl"))[:2]:
        path.unlink()
    (runner.path / "fail").touch()
    ended = runner.run()
    assert (ended.returncode, "exit code 3" in ended.stderr) == (3, True)
    (runner.path / "fail").unlink()
    assert runner.run().returncode == 0
    assert len(runner.starts) == 6, "files are answered together, and only those without answers"
    assert runner.run().returncode == 0
    assert len(runner.starts) == 6
    for key in ("one", "two"):
        assert ask(tuple(f"{text} {key}" for text in TEXTS), key).missing_rows == 0


def test_a_file_that_another_runner_works_on_is_left_to_it(ask: Ask, runner: Runner) -> None:
    with pytest.raises(BatchPendingError):
        ask()
    [requests] = runner.folder.glob("*.requests.jsonl")
    with requests.open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert runner.run().returncode == 0
    assert not (runner.path / "log").exists()
    assert runner.run().returncode == 0
    assert len(runner.asked) == 6


def test_what_the_runner_refuses_is_a_failed_row_with_its_words(ask: Ask, runner: Runner) -> None:
    runner.refuse("login")
    with pytest.raises(BatchPendingError):
        ask()
    assert runner.run().returncode == 0
    asked = ask()
    assert set(asked.completions.filter(pl.col("status") == "failed")["error"]) == {"HTTP 400: too many tokens"}
    runner.refuse("nothing")
    with pytest.raises(BatchPendingError, match="0 of 2"):
        ask()
    assert runner.run().returncode == 0
    assert ask().missing_rows == 0
    assert len(runner.asked) == 8


def test_a_batch_whose_process_was_killed_before_it_noted_the_file_is_adopted(
    ask: Ask, runner: Runner, store: CompletionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchStore, "note_submitted", lambda *_: None)
    with pytest.raises(BatchPendingError):
        ask(batch={"runner": "vllm", "wait_s": 0})
    monkeypatch.undo()
    monkeypatch.setenv("DISTILL_HOME", str(runner.home))
    [note] = BatchStore(store).list_open()
    assert note.batch_id is None
    BatchStore(store).abandon(note.submission)
    assert runner.run().returncode == 0
    assert ask().missing_rows == 0
    assert len(runner.asked) == len(set(runner.asked)) == 6


def test_a_forgotten_batch_leaves_no_files(ask: Ask, runner: Runner, store: CompletionStore) -> None:
    with pytest.raises(BatchPendingError):
        ask()
    endpoint = resolve_endpoint(TeacherSpec(**{k: v for k, v in build_spec().items() if v is not None}))
    [note] = BatchStore(store).list_open()
    forget_batch(store, note.submission, [endpoint])
    assert list(runner.folder.glob("*.jsonl")) == []
    with pytest.raises(BatchPendingError):
        ask()
    [note] = BatchStore(store).list_open()
    next(runner.folder.glob("*.requests.jsonl")).unlink()
    spec = TeacherSpec(model="openai/Qwen/Qwen3-8B", mode="batch", batch=BatchSpec(runner="vllm"))
    with pytest.raises(TeacherError, match=r"no requests and no answers.*--forget"):
        collect_batches(endpoint, spec, store, "shop_mail")


def test_a_teacher_without_a_server_needs_no_key_and_is_not_asked_online(ask: Ask, runner: Runner) -> None:
    spec = TeacherSpec(model="openai/gpt-oss-20b", mode="batch", batch=BatchSpec(runner="vllm"))
    assert find_missing_key(spec) is None
    assert find_price(spec) is None, "OpenAI's prices are not those of your GPU"
    assert find_terms(spec).provider != "OpenAI"
    assert (spec.batch.wait_s, spec.batch.max_requests) == (0, 10_000)
    with pytest.raises(TeacherError, match=r"only a batch runner answers it. Set teacher\.api_base"):
        ask(mode="online")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "anthropic/claude-sonnet-4-5"}, "openai/ or hosted_vllm/"),
        ({"api": "text"}, "needs `api: chat`"),
        ({"batch": {"runner": "sglang"}}, "Input should be 'vllm'"),
    ],
)
def test_settings_that_no_runner_can_answer_are_errors(changes: dict[str, Any], words: str) -> None:
    settings = {"model": "openai/Qwen/Qwen3-8B", "mode": "batch", "batch": {"runner": "vllm"}}
    with pytest.raises(ValidationError, match=words):
        TeacherSpec.model_validate(settings | changes)
