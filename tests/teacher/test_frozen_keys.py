"""request_key of one request of every shape, as literals.

A home that is finished today must not ask a teacher again, so these keys never change. A failure here means that every
stored answer of that shape would be paid for a second time: fix the code, do not update the key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.intake.recordings import Recording
from distill_dagster.tables.messages import make_message
from distill_dagster.teacher.asking.asked_prompt import AskedPrompt, build_asked_prompt
from distill_dagster.teacher.asking.requests import RequestBuilder
from distill_dagster.teacher.imagine.plan import Imaginer
from distill_dagster.teacher.judge.requests import Judge
from distill_dagster.teacher.providers.exchange import Request
from distill_dagster.teacher.providers.replay import ReplayTeacher
from tests.support.kind_folder import write_kind_folder
from tests.support.task import build_request_builder, reload_folder, write_small_task

URL = "http://127.0.0.1:9/v1"
TEXT = 'The parcel\nnever came: "where" is it, é?'
RUBRIC = [{"name": "correct", "description": "the category fits"}]
JUDGE = {"model": "openai/judge", "rubric": RUBRIC, "response_format": "json_schema"}
ROW = {"messages": [{"role": "user", "content": TEXT}], "answer": '"refund"', "reasoning": "It says so."}
SAMPLED: dict[str, Any] = {"samples": 2, "temperature": 0.7}


def labels(folder: Path, sample: int = 0, spelled: str = "", **teacher: Any) -> Request:
    """A request for labels."""
    return build_request_builder(write_small_task(folder, teacher=teacher)).build(AskedPrompt(TEXT), sample, spelled)


def stated(folder: Path, soft_labels: str, sample: int = 0, reasoning: bool = False, **teacher: Any) -> Request:
    """A request for stated probabilities or ranks of labels."""
    made = write_small_task(folder, teacher=teacher | {"api": "chat", "soft_labels": soft_labels})
    examples = made.path / "examples.jsonl"
    if reasoning:
        (made.path / "task.yaml").write_text((made.path / "task.yaml").read_text() + "reasoning: true\n")
        examples.write_text(examples.read_text().replace("}", ', "reasoning": "It says so."}'))
    return build_request_builder(reload_folder(made)).build(AskedPrompt(TEXT), sample)


def free_text(folder: Path, kind: str, sample: int = 0, reasoning: bool = False, **teacher: Any) -> Request:
    """A request for an answer of a kind without labels, or behind reasoning."""
    made = write_kind_folder(folder, kind, URL, reasoning, teacher={"few_shot": {"per_label": 1, "draws": 2}} | teacher)
    return build_request_builder(made).build(AskedPrompt(TEXT), sample)


def conversation(folder: Path) -> Request:
    made = write_kind_folder(folder, "conversation", URL)
    turns = (("system", "Be short."), ("user", "one"), ("assistant", "two"), ("user", "three"))
    return build_request_builder(made).build(build_asked_prompt([make_message(*turn) for turn in turns]), 0)


def replayed(folder: Path) -> Request:
    made = build_request_builder(write_small_task(folder, teacher={"api": "chat", "soft_labels": "votes"}))
    recorded = ReplayTeacher({TEXT.casefold().replace("\n", " "): [Recording("refund", model="m")]}, lambda text: text)
    endpoint = dataclasses.replace(made.endpoint, recorded=recorded)
    return RequestBuilder(made.task, made.templates, [], endpoint).build(AskedPrompt(TEXT), 0)


def attempted(folder: Path) -> Request:
    return dataclasses.replace(free_text(folder, "qa", response_format="json_schema"), attempt=1)


def judged(folder: Path, options: list[str] | None = None, **judge: Any) -> Request:
    task = write_small_task(folder, judge=JUDGE | judge).task
    return Judge(task, {}, "judge-identity").build_request(ROW, options, 0)


def imagined(folder: Path, method: str, **imagine: Any) -> Request:
    axes = {"difficulty": ["easy", "tricky"], "persona": ["student", "clerk"]}
    teacher = {"api": "chat", "soft_labels": "votes", "response_format": "json_schema"}
    made = write_small_task(folder, teacher=teacher, imagine={"axes": axes, "seed": 3} | imagine)
    slice_ = made.read_slice("shop").model_copy(update={"target": 50})
    imaginer = Imaginer(made.task, "shop", slice_, [*made.golden, *made.dev], {}, "imaginer-identity")
    jobs = imaginer.plan_jobs(slice_.imagination, 47)
    return imaginer.build_request(next(job for job in jobs if job.method == method), slice_.imagination.generation)


CASES: dict[str, tuple[Callable[[Path], Request], str]] = {
    "labels, text, draw 0": (lambda f: labels(f), "ba9d0c98bce8599fb850c056ed463e2945aef74cbc13ecbc2348f518f8cdbaaf"),
    "labels, text, draw 1": (
        lambda f: labels(f, 1),
        "217548ec6d5c046829c7c08a6d188c27a5105a8378099be8e810016f1df86385",
    ),
    "labels, text, resolved": (
        lambda f: labels(f, 0, "log", resolve_labels=True),
        "96f27e54cf46b5b151339e6b0e2bb906cfe525310fce2ec0c7c83972e0f65276",
    ),
    "labels, text, boosted": (
        lambda f: labels(f, 1, boost_labels=True),
        "64b6438babc5c2945aa75d399f24950ff29b3ee1efed3594ccb34dca18d8438c",
    ),
    "labels, text, votes with seed": (
        lambda f: labels(f, 3, soft_labels="votes", **SAMPLED),
        "0af4fadf123aedf4f8a74f98390bcf968444527e058695cd82faae39850c6015",
    ),
    "labels, chat, logprobs": (
        lambda f: labels(f, 1, api="chat", top_logprobs=5),
        "23b5e5616d451929f8ed686c6afeecc7f20eee95ae8843e7976503f995c7cf28",
    ),
    "labels, chat, votes": (
        lambda f: labels(f, 0, api="chat", soft_labels="votes"),
        "7cd3c3676c1639930c9aa99d751b073a7376223ddb24d81dcc7c1d91f014cb88",
    ),
    "labels, chat, votes with seed": (
        lambda f: labels(f, 2, api="chat", soft_labels="votes", **SAMPLED),
        "5b18e0c1733a74ea35677890a29d1a795a52ba5bb7d71b66792fa4893a46a4fc",
    ),
    "labels behind reasoning, schema": (
        lambda f: free_text(f, "nli", reasoning=True, response_format="json_schema"),
        "aab645066db5d1bd736fa7ef4c300c662857e02d006cf37ebbf24976165b798f",
    ),
    "labels behind reasoning, text": (
        lambda f: free_text(f, "classification", reasoning=True, api="text"),
        "74335a34e9ec2e974c113165fabfd7f21f5615f9d830281a98857aeecb15fff7",
    ),
    "stated probabilities, prompt": (
        lambda f: stated(f, "verbalized", response_format="prompt"),
        "9cea78b71abbf7e41ba814c12e923c28135792e9dfd4b836e208409fcb1e53aa",
    ),
    "stated probabilities, schema, draw 1": (
        lambda f: stated(f, "verbalized", 1, response_format="json_schema"),
        "603994b5adc2e7a077b1a6de714976da26043be19d2a0883085060858c4e8ae5",
    ),
    "stated probabilities behind reasoning": (
        lambda f: stated(f, "verbalized", reasoning=True, response_format="prompt"),
        "507707d24b7fb35d3ddce82fc48c8d058fdcce1707747b1d953751041bb5135c",
    ),
    "ranking, prompt": (
        lambda f: stated(f, "ranking", response_format="prompt"),
        "53138f2a5a2eb441ca7176d41709d19412cf9c899e49bc139a3849ae5aaea627",
    ),
    "ranking, schema": (
        lambda f: stated(f, "ranking", response_format="json_schema"),
        "833224ab9155150cea3b96667d37eb2f23a035ccc86dbc6de8bd8e8ff767411c",
    ),
    "extraction, schema": (
        lambda f: free_text(f, "extraction", 1, response_format="json_schema"),
        "2dd203b808713aaf0d0d0e2b5c7111599edb898b380f233610d537b68a8931d5",
    ),
    "extraction, prompt": (
        lambda f: free_text(f, "extraction", response_format="prompt"),
        "f048dbd43b41779b766f7314d71cb47621c9a46621b1b549e1b314969946ccbe",
    ),
    "tool_call, tools": (
        lambda f: free_text(f, "tool_call", response_format="json_schema"),
        "c338b9e82645d6cb63dcc6537b1d58b5e69ff9ab7a1154da7d5b1a8ec688cf18",
    ),
    "tool_call, prompt": (
        lambda f: free_text(f, "tool_call", response_format="prompt"),
        "e4d97f1b104096deaf2d1bcd4631974ce8dd5e21d882c34d1ca481409a22eddf",
    ),
    "qa, reasoning, with seed": (
        lambda f: free_text(f, "qa", 3, reasoning=True, response_format="prompt", **SAMPLED),
        "09f85c5ebf556e8a64192227638f4cd6bc07fd745b0889df3f9d6669a7fa952d",
    ),
    "qa, asked again": (attempted, "8678809de12894096198c49ddf7af910d272a94a5004120df6adb68f40599dd3"),
    "math, text": (
        lambda f: free_text(f, "math", api="text", reasoning=True),
        "7ea6554a4d5b360b025e703d1dc88b3ea483fca5b60221deaf6f0fab8f47f6c8",
    ),
    "summarization, chat": (
        lambda f: free_text(f, "summarization", response_format="prompt"),
        "5d49781b8cf6f4cf66e8cffe03a75af7d8f3aeb3a4f17decaa5400c13364a3d5",
    ),
    "conversation, turns": (conversation, "4ad28579fa2068986bcabddcb33685c428391c67d15308b31f2a8c994b03b61e"),
    "replay": (replayed, "1c0b18474436d1ad3b3afef3a310fad1c8635d0b9b3840a98eda9bf530eef505"),
    "judge, score": (lambda f: judged(f), "437fc8e67306c284df021a666451805e3f3e78b5101a89e478212325aea5a49f"),
    "judge, best of, text": (
        lambda f: judged(f, ['"refund"', '"login"'], mode="best_of", api="text"),
        "1f284c563f3e57157da9f1b77bd00b9c5583a5ae8c24a1ae4916a00cfc0bfe9b",
    ),
    "imagine, grid": (
        lambda f: imagined(f, "grid"),
        "cda6081463e4bfc031f83529077ba30583d117f8bf09a79dea19b7465c279fef",
    ),
    "imagine, self-instruct": (
        lambda f: imagined(f, "self_instruct"),
        "27c3311e41180ebf8d30a21eb4d331d3d9229d4c673dc08c2371bbdb66423416",
    ),
    "imagine, evolve": (
        lambda f: imagined(f, "evolve"),
        "11a6b2b10943c027b1944481c8387045f35871c5ee0e2d25726c614e19b93da8",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_key_never_changes(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-test")
    make, key = CASES[case]
    assert make(tmp_path).key == key


def test_no_two_shapes_share_a_key() -> None:
    assert len({key for _, key in CASES.values()}) == len(CASES)
