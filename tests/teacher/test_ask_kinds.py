"""Every kind with a real HTTP server: the requests, the answers that are read, and the stored columns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.curation.candidates.choose import choose_candidates
from distill_dagster.kinds import WANTED_REFUSAL, get_kind
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.tables.messages import make_message
from distill_dagster.tables.schemas import PROMPTS, TEACHER_PRIOR, build_frame
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.asking.ask import run_ask
from distill_dagster.teacher.asking.asked_prompt import build_asked_prompt, read_asked_prompts
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers.exchange import Request
from tests.support.kind_folder import write_kind_folder
from tests.support.kinds import ANSWERS, KINDS, SCHEMA
from tests.support.provider import FakeProvider
from tests.support.task import build_asker

WRITTEN = tuple(kind for kind in KINDS if kind not in ("classification", "nli"))


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider([]) as provider:
        yield provider


def asked(folder: TaskFolder, store: CompletionStore, key: str = "one") -> pl.DataFrame:
    prompts = build_seed_prompts(key, folder.read_slice(key), answers=not folder.task.has_labels)
    return run_ask(build_asker(folder, store), prompts).completions


def candidates(folder: TaskFolder, store: CompletionStore, key: str = "one") -> list[dict[str, Any]]:
    prompts = build_seed_prompts(key, folder.read_slice(key), answers=not folder.task.has_labels)
    completions = run_ask(build_asker(folder, store), prompts).completions
    return choose_candidates(folder.task, prompts, completions, TEACHER_PRIOR.to_frame()).to_dicts()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("api", ["chat", "text"])
def test_every_kind_with_reasoning(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore, kind: str, api: str
) -> None:
    folder = write_kind_folder(tmp_path, kind, provider.url, reasoning=True, teacher={"api": api})
    assert check_task_folder(folder) == []
    text = get_kind(folder.task).format_answer(json.loads(to_canonical_json(ANSWERS[kind])))
    wrapped = json.dumps({"reasoning": "Because.", "answer": ANSWERS[kind]})
    # A base-like model goes on with the next item.
    ran_on = f" Because.\nAnswer: {text}\n\nMessage: another\nReasoning: x\nAnswer: none"
    provider.answer = lambda seen: wrapped if api == "chat" else ran_on
    rows = asked(folder, store).to_dicts()
    assert len(rows) == 2
    for row in rows:
        assert (row["status"], row["error"], row["reasoning"]) == ("ok", None, "Because.")
        assert json.loads(row["answer"]) == ANSWERS[kind]
        assert row["answer_kind"] == get_kind(folder.task).answer_kind
    body = provider.requests[0].body
    if api == "text":
        assert body["prompt"].endswith("\nReasoning:")
        assert body["prompt"].count(f"Reasoning: It says so.\nAnswer: {text}") >= 2
        assert body["stop"] == ["\n\nMessage:"]
    else:
        shown = [m["content"] for m in body["messages"] if m["role"] == "assistant"]
        system = body["messages"][0]["content"]
        assert "JSON schema" in system, "nobody knows whether this model takes one by itself"
        if kind == "tool_call":
            assert system.count("Reasoning: It says so.") == 2
        else:
            assert json.loads(shown[0]) == {"reasoning": "It says so.", "answer": _first_label(kind, shown[0])}
            assert list(json.loads(shown[0])) == ["reasoning", "answer"], "reasoning comes first"


def _first_label(kind: str, shown: str) -> Any:
    """Examples of labels are shuffled."""
    return json.loads(shown)["answer"] if kind in ("classification", "nli") else ANSWERS[kind]


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_schema_is_sent_if_the_provider_supports_one(
    tmp_path: Path, provider: FakeProvider, store: CompletionStore, kind: str
) -> None:
    teacher = {"response_format": "json_schema"}
    folder = write_kind_folder(tmp_path, kind, provider.url, teacher=teacher)
    free = kind in ("summarization", "conversation", "generation")
    provider.answer = lambda seen: (
        get_kind(folder.task).format_answer(ANSWERS[kind]) if free else json.dumps({"answer": ANSWERS[kind]})
    )
    if kind == "tool_call":
        [call] = ANSWERS[kind]
        function = {"name": call["name"], "arguments": json.dumps(call["arguments"])}
        provider.message = {"content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]}
    rows = asked(folder, store).to_dicts()
    assert [json.loads(row["answer"]) for row in rows] == [ANSWERS[kind]] * 2
    body = provider.requests[0].body
    assert ("response_format" in body) == (not free and kind != "tool_call")
    if kind == "extraction":
        sent = body["response_format"]["json_schema"]
        assert sent["schema"]["properties"]["answer"] == SCHEMA
        assert sent["strict"] is False, "`colours` may be left out, which strict mode forbids"
    if kind == "math":
        assert body["response_format"]["json_schema"]["strict"] is True
    if kind == "tool_call":
        assert [tool["function"]["name"] for tool in body["tools"]] == ["find_order", "open_ticket"]
    calls = len(provider.requests)
    assert asked(folder, store)["answer"].to_list() == [row["answer"] for row in rows]
    assert len(provider.requests) == calls, "answered by the store, tool calls too"


def test_reasoning_in_a_field_of_its_own(tmp_path: Path, provider: FakeProvider, store: CompletionStore) -> None:
    provider.answer = lambda seen: '{"answer": 42}'
    provider.message = {"reasoning_content": "6 * 7"}
    rows = asked(write_kind_folder(tmp_path, "math", provider.url), store).to_dicts()
    assert [(row["answer"], row["reasoning"]) for row in rows] == [("42", "6 * 7")] * 2


@pytest.mark.parametrize(
    ("text", "finish", "message", "status", "error"),
    [
        ("nonsense", None, {}, "ok", "the answer is not a number"),
        ("", None, {"refusal": "I decline."}, "refused", "I decline."),
        ("I'm sorry, but I can't help with that.", None, {}, "refused", "can't help"),
        ('{"answer": 4', "length", {}, "truncated", "cut at max_tokens"),
        ("", "content_filter", {}, "filtered", None),
    ],
)
def test_bad_answers(
    tmp_path: Path,
    provider: FakeProvider,
    store: CompletionStore,
    text: str,
    finish: str | None,
    message: dict[str, Any],
    status: str,
    error: str | None,
) -> None:
    provider.answer, provider.finish, provider.message = (lambda seen: text), finish, message
    folder = write_kind_folder(tmp_path, "math", provider.url, teacher={"min_success": 0})
    rows = asked(folder, store).to_dicts()
    assert [(row["status"], row["answer"]) for row in rows] == [(status, None)] * 2
    assert (error or "") in (rows[0]["error"] or "")
    assert candidates(folder, store)[0]["answer"] is None


@pytest.mark.parametrize(
    ("text", "finish", "answer", "status", "error"),
    [
        ('<tool_call>\n{"name": "find_order", "arguments": {"number": 7}}\n</tool_call>', "stop", "call", "ok", None),
        ("<think>7?</think>[find_order(number=7)]", "stop", "call", "ok", None),
        ("Hello!", "stop", "[]", "ok", None),
        ("", "tool_calls", None, "ok", "sent no call"),
        ('<tool_call>{"name": "find_order", "arguments": {"number"', "stop", None, "ok", "is cut"),
        ("I look it up", "length", None, "truncated", "cut at max_tokens"),
    ],
)
def test_a_server_that_leaves_tool_calls_in_the_text(
    tmp_path: Path,
    provider: FakeProvider,
    store: CompletionStore,
    text: str,
    finish: str,
    answer: str | None,
    status: str,
    error: str | None,
) -> None:
    provider.answer, provider.finish = (lambda seen: text), finish
    teacher = {"response_format": "json_schema", "min_success": 0, "reasks": 0}
    rows = asked(write_kind_folder(tmp_path, "tool_call", provider.url, teacher=teacher), store).to_dicts()
    assert "tools" in provider.requests[0].body
    expected = to_canonical_json(ANSWERS["tool_call"]) if answer == "call" else answer
    assert [(row["status"], row["answer"]) for row in rows] == [(status, expected)] * 2
    assert (error or "") in (rows[0]["error"] or "")


def test_samples_vote(tmp_path: Path, provider: FakeProvider, store: CompletionStore) -> None:
    folder = write_kind_folder(
        tmp_path,
        "math",
        provider.url,
        reasoning=True,
        teacher={"samples": 4, "temperature": 0.8, "few_shot": {"draws": 1}},
    )
    answers = {0: 7, 1: 8, 2: 8.0, 3: 9}
    provider.answer = lambda seen: json.dumps(
        {"reasoning": f"sample {seen.body['seed']}", "answer": answers[seen.body["seed"]]}
    )
    for row in candidates(folder, store):
        assert (row["answer"], row["agreement"], row["confidence"]) == ("8", 0.5, 0.5)
        assert row["reasoning"] == "sample 1", "of a sample whose answer it is"
        assert row["soft_labels"] == [{"label": v, "prob": p} for v, p in (("8", 0.5), ("7", 0.25), ("9", 0.25))]
        assert len(row["completion_ids"]) == 4


def test_a_safety_slice_wants_refusals(tmp_path: Path, provider: FakeProvider, store: CompletionStore) -> None:
    folder = write_kind_folder(tmp_path, "generation", provider.url)
    path = folder.path / "slices" / "one.yaml"
    path.write_text(path.read_text() + "refusal: wanted\n")
    folder = TaskFolder(folder.path)
    assert check_task_folder(folder) == []
    assert (
        build_seed_prompts("one", folder.read_slice("one"), answers=True)["reference"].to_list() == [WANTED_REFUSAL] * 2
    )
    sorry = "I'm sorry, but I can't help with that."
    provider.answer = lambda seen: sorry if "first" in seen.text else "Here it is."
    by_text = {row["messages"][0]["content"]: row for row in candidates(folder, store)}
    refused, given = by_text["one first text"], by_text["one second text"]
    assert json.loads(refused["answer"]) == {"refusal": sorry}
    assert (given["status"], given["answer"]) == ("ok", None)
    assert "a refusal is wanted" in given["error"]
    folder.task.teacher.__dict__["min_success"] = 0
    other = asked(folder, store, "two").to_dicts()
    assert sorted(row["status"] for row in other) == ["ok", "refused"], "elsewhere a refusal is none"


def test_conversations_keep_their_turns(tmp_path: Path, provider: FakeProvider, store: CompletionStore) -> None:
    folder = write_kind_folder(tmp_path, "conversation", provider.url)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello, how can I help?"},
        {"role": "user", "content": "one more thing"},
    ]
    (folder.path / "slices" / "one.yaml").write_text(json.dumps({"description": "d", "seeds": [{"messages": turns}]}))
    folder = TaskFolder(folder.path)
    assert check_task_folder(folder) == []
    provider.answer = lambda seen: "Of course."
    [row] = candidates(folder, store)
    sent = provider.requests[0].body["messages"]
    assert sent[0]["content"].endswith("Be brief.")
    assert sent[-3:] == turns[1:]
    assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant", "user"]
    assert row["answer"] == '"Of course."'


def test_tools_and_schema_are_part_of_the_key() -> None:
    plain = Request("t", 0, {"max_tokens": 4}, prompt="a")
    assert plain.key == Request("t", 0, {"max_tokens": 4}, prompt="a", tools=None, response_format=None).key
    keys = {
        plain.key,
        Request("t", 0, {"max_tokens": 4}, prompt="a", tools=[{"type": "function"}]).key,
        Request("t", 0, {"max_tokens": 4}, prompt="a", response_format={"type": "json_schema"}).key,
    }
    assert len(keys) == 3


@pytest.mark.parametrize("refusals", [False, True])
def test_the_prompts_of_a_table(refusals: bool) -> None:
    turn = make_message
    turns = {
        "one": [turn("user", "a text\n")],
        "empty": [turn("user", None)],
        "told": [turn("system", "only this")],
        "several": [turn("user", "one"), turn("assistant", None), turn("user", "two")],
        "wanted": [turn("user", "how to break in")],
        "quoted": [turn("user", "how to cite it")],
    }
    references = {"wanted": WANTED_REFUSAL, "quoted": '{"refusals": 2}', "one": "refund"}
    rows: list[dict[str, object]] = [
        dict.fromkeys(PROMPTS) | {"prompt_id": id_, "messages": messages, "reference": references.get(id_)}
        for id_, messages in turns.items()
    ]
    found = read_asked_prompts(build_frame(rows, PROMPTS, ("prompt_id",)), refusals)
    assert found == {
        id_: build_asked_prompt(messages, references.get(id_) if refusals else None) for id_, messages in turns.items()
    }
    assert [id_ for id_, prompt in found.items() if prompt.messages] == ["several"]
    assert [id_ for id_, prompt in found.items() if prompt.refusal_wanted] == ["wanted"] * refusals
