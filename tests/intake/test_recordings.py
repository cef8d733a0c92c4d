"""Recorded completions in the logs of providers, gateways and trace stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.config import ReplaySpec
from distill_dagster.core.errors import InputError
from distill_dagster.intake.recordings import (
    FAILED,
    NO_COMPLETION,
    WITH_PICTURE,
    RecordingSet,
    parse_recordings,
    read_recordings,
    scan_recordings,
)
from tests.support.task import jsonl

ASKED = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
CHAT = {"model": "m", "choices": [{"message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}]}
SHAPES: dict[str, Any] = {
    "alpaca": {"instruction": "q", "input": "", "output": "a"},
    "question and answer": {"question": "q", "answer": "a"},
    "prompt as messages": {"prompt": ASKED, "completion": [{"role": "assistant", "content": "a"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "cells of a trace store": {"input": json.dumps(ASKED), "output": json.dumps({"role": "assistant", "content": "a"})},
    "cells of a gateway": {"request_body": json.dumps({"messages": ASKED}), "response_body": json.dumps(CHAT)},
    "python's notation": {"messages": str(ASKED), "response": "a"},
    "traces of langfuse": {"input": {"messages": ASKED}, "output": {"role": "assistant", "content": "a"}},
    "runs of langsmith": {
        "inputs": {"messages": ASKED},
        "outputs": {"generations": [[{"text": "a", "message": {"content": "a"}}]]},
    },
    "outputs with a name": {"inputs": {"question": "x", "messages": ASKED}, "outputs": {"answer": "a"}},
    "anthropic batch": {
        "custom_id": "1",
        "request": {"messages": ASKED},
        "result": {"type": "succeeded", "message": {"role": "assistant", "content": [{"type": "text", "text": "a"}]}},
    },
    "gemini": {
        "request": {"contents": [{"role": "user", "parts": [{"text": "q"}]}]},
        "response": {"candidates": [{"content": {"role": "model", "parts": [{"text": "a"}]}, "finishReason": "STOP"}]},
    },
    "bedrock batch": {
        "recordId": "1",
        "modelInput": {"messages": ASKED},
        "modelOutput": {"content": [{"type": "text", "text": "a"}], "stop_reason": "end_turn"},
    },
    "bedrock converse": {
        "request": {"messages": [{"role": "user", "content": [{"text": "q"}]}]},
        "response": {
            "output": {"message": {"role": "assistant", "content": [{"text": "a"}]}},
            "stopReason": "end_turn",
        },
    },
    "generic": {"generic_request": {"messages": ASKED}, "raw_response": CHAT, "response_message": "a"},
    "gateway log": {"messages": json.dumps(ASKED), "response": json.dumps(CHAT), "model": "m", "prompt_tokens": "12"},
    "ollama": {"request": {"messages": ASKED}, "response": {"message": {"role": "assistant", "content": "a"}}},
    "a chat that ends with the user": {
        "messages": [*ASKED, {"role": "assistant", "content": "a"}, {"role": "user", "content": "thanks!"}]
    },
    "null completion beside a chat": {"messages": [*ASKED, {"role": "assistant", "content": "a"}], "output": None},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_that_need_no_settings(shape: str) -> None:
    [found] = parse_recordings(SHAPES[shape], ReplaySpec())
    assert (found.prompt, found.completion) == ("q", "a")
    assert parse_recordings(found.to_json(), ReplaySpec()) == [found], "an import is read as it was written"


def test_the_completion_of_a_chat_is_the_last_turn_of_the_assistant() -> None:
    first, second = {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}
    more = {"role": "user", "content": "and then?"}
    [found] = parse_recordings(
        {"messages": [*ASKED, first, more, second, {"role": "user", "content": "bye"}]}, ReplaySpec()
    )
    assert (found.prompt, found.conversation, found.completion) == ("and then?", "q\nand then?", "b")
    call = {"role": "assistant", "content": None, "function_call": {"name": "find_order", "arguments": '{"number": 7}'}}
    for end in ([], [{"role": "tool", "content": "on its way"}], [{"role": "function", "name": "x", "content": "y"}]):
        [found] = parse_recordings({"messages": [*ASKED, call, *end]}, ReplaySpec())
        assert (found.completion, found.tool_calls) == ("", [{"name": "find_order", "arguments": '{"number": 7}'}])


@pytest.mark.parametrize(
    ("response", "finish"),
    [
        ({"choices": [{"text": "a", "finish_reason": "length"}]}, "length"),
        ({"content": [{"type": "text", "text": "a"}], "stop_reason": "max_tokens"}, "length"),
        ({"content": [{"type": "text", "text": "a"}], "stop_reason": "pause_turn"}, "pause_turn"),
        (
            {
                "object": "response",
                "status": "incomplete",
                "incomplete_details": {"reason": "max_output_tokens"},
                "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]}],
            },
            "length",
        ),
        ({"candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": "MAX_TOKENS"}]}, "length"),
        ({"message": {"role": "assistant", "content": "a"}, "done_reason": "length"}, "length"),
        ({"candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": "SAFETY"}]}, "SAFETY"),
    ],
)
def test_an_answer_that_was_cut_says_so(response: dict[str, Any], finish: str) -> None:
    [found] = parse_recordings({"prompt": "q", "response": response}, ReplaySpec())
    assert (found.completion, found.finish_reason) == ("a", finish)


def scan(folder: Path, rows: list[Any], **replay: str) -> RecordingSet:
    path = folder / "log.jsonl"
    path.write_text(jsonl(rows))
    return scan_recordings(path, ReplaySpec(**replay))  # type: ignore[arg-type]


GOOD: dict[str, Any] = {"prompt": "q", "completion": "a", "out": {"text": "a"}}
FAILED_CALLS: dict[str, Any] = {
    "error": {"prompt": "q", "error": {"message": "timeout"}},
    "error beside null": {"prompt": "q", "error": "timeout", "out": None, "completion": None},
    "status 0": {"custom_id": "1", "response": {"status_code": 0, "request_id": "", "body": {}}, "error": None},
    "status 429": {
        "request": {"messages": ASKED},
        "response": {"status": 429, "body": {"error": {"message": "slow down"}}},
    },
    "status as text": {"prompt": "q", "response": None, "status_code": "503"},
    "errored": {"custom_id": "1", "result": {"type": "errored", "error": {"type": "invalid_request"}}},
    "expired": {"custom_id": "1", "result": {"type": "expired"}},
    "no choices": {"prompt": "q", "response": {"choices": []}},
    "blocked": {"prompt": "q", "response": {"candidates": [], "promptFeedback": {"blockReason": "SAFETY"}}},
    "blocked prompt": {"prompt": "q", "response": {"promptFeedback": {"blockReason": "SAFETY"}}},
    "errors of a response": {
        "generic_request": {"messages": ASKED},
        "response_message": None,
        "response_errors": ["x"],
    },
    "exception": {"inputs": {"messages": ASKED}, "output": None, "exception": "APIError"},
    "level": {"input": json.dumps(ASKED), "output": None, "level": "ERROR", "statusMessage": "no route"},
    "success": {"prompt": "q", "output": "", "success": False},
    "error of the choice": {
        "prompt": "q",
        "response": {"choices": [{"error": {"code": 502}, "message": {"content": ""}}]},
    },
}


@pytest.mark.parametrize("name", FAILED_CALLS)
@pytest.mark.parametrize("replay", [{}, {"completion": "out.text", "prompt": "prompt"}])
def test_failed_calls_are_passed_over_and_counted(tmp_path: Path, name: str, replay: dict[str, str]) -> None:
    found = scan(tmp_path, [GOOD, FAILED_CALLS[name]], **replay)
    assert ([r.completion for r in found.recordings], found.left_out, found.problems) == (["a"], {FAILED: 1}, ())
    assert len(read_recordings(tmp_path / "log.jsonl", ReplaySpec(**replay))) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "q", "completion": ""},
        {"prompt": "q", "completion": None},
        {"prompt": "q", "response": {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}},
        {"messages": ASKED},
        {"messages": [*ASKED, {"role": "assistant", "content": None}]},
        {"messages": [*ASKED, {"role": "assistant", "content": "", "tool_calls": []}]},
    ],
)
def test_records_without_a_completion_are_counted(tmp_path: Path, record: dict[str, Any]) -> None:
    found = scan(tmp_path, [GOOD, record])
    assert (len(found.recordings), found.left_out) == (1, {NO_COMPLETION: 1})
    with pytest.raises(InputError, match="no completion was found"):
        scan(tmp_path, [record])


def test_a_filtered_answer_without_a_text_is_an_answer() -> None:
    [found] = parse_recordings({"prompt": "q", "response": {"candidates": [{"finishReason": "SAFETY"}]}}, ReplaySpec())
    assert (found.completion, found.finish_reason) == ("", "SAFETY")


def test_a_path_that_leads_nowhere_is_a_problem(tmp_path: Path) -> None:
    found = scan(tmp_path, [GOOD, {"prompt": "q", "other": 1}, {"prompt": "q", "out": {}}], completion="out.text")
    assert [(problem.line, problem.field) for problem in found.problems] == [(2, "completion")]
    assert "nothing at 'out.text'" in found.problems[0].message
    assert found.left_out == {NO_COMPLETION: 1}
    unknown = scan(tmp_path, [GOOD, {"prompt": "q", "output": {"verdict": "a"}}])
    assert [problem.message for problem in unknown.problems] == ["no completion was found."]


def test_a_completion_may_be_a_message_or_a_list_of_parts() -> None:
    message = {"role": "assistant", "content": [{"type": "text", "text": "a"}], "reasoning_content": "because"}
    for value in (message, [*ASKED, message], {"choices": [{"message": message}]}, json.dumps(message)):
        [found] = parse_recordings({"id": "7", "said": value}, ReplaySpec(completion="said"))
        assert (found.completion, found.reasoning) == ("a", "because")
    [found] = parse_recordings({"id": "7", "said": message["content"]}, ReplaySpec(completion="said"))
    assert found.completion == "a"
    with pytest.raises(ValueError, match="not a text"):
        parse_recordings({"id": "7", "said": 7}, ReplaySpec(completion="said"))


def test_pictures_are_left_out(tmp_path: Path) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    answer = {"role": "assistant", "content": "a"}
    rows = [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, picture]}, answer]},
        {"messages": [{"role": "user", "content": [picture]}, answer]},
        {"messages": [{"role": "user", "content": [picture]}, answer, ASKED[1], answer]},
        {"conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}], "images": ["a.jpg"]},
        {"prompt": "q", "completion": "a", "images": ["a.jpg"]},
        {"prompt": "q", "completion": "a", "images": []},
    ]
    found = scan(tmp_path, rows)
    assert (len(found.recordings), found.left_out, found.problems) == (1, {WITH_PICTURE: 5}, ())


def test_odd_numbers_are_left_out() -> None:
    usage = {"prompt_tokens": 10**30, "completion_tokens": "12"}
    record = {"prompt": "q", "response": CHAT | {"usage": usage, "created": "yesterday"}, "cost_usd": float("inf")}
    [found] = parse_recordings(record, ReplaySpec())
    assert (found.prompt_tokens, found.completion_tokens, found.created, found.cost_usd) == (None, 12, None, None)


@pytest.mark.parametrize(("answer", "text"), [(27, "27"), (-1.5, "-1.5"), ("27", "27")])
def test_an_answer_may_be_a_number(answer: Any, text: str) -> None:
    record = {"text": "How many?", "reasoning": "12 + 15 = 27.", "answer": answer}
    [recording] = parse_recordings(record, ReplaySpec())
    assert (recording.prompt, recording.completion, recording.reasoning) == ("How many?", text, "12 + 15 = 27.")
    with pytest.raises(ValueError, match="no completion"):  # a flag is no answer
        parse_recordings({"text": "How many?", "completion": True}, ReplaySpec())


def test_an_instruction_is_part_of_the_prompt() -> None:
    record = {"instruction": "Turn it into the past tense.", "input": "He sells lamps.", "output": "He sold lamps."}
    [found] = parse_recordings(record, ReplaySpec())
    assert found.prompt == "Turn it into the past tense.\n\nHe sells lamps."
    [found] = parse_recordings({"instruction": "s", "prompt": "q", "completion": "a"}, ReplaySpec())
    assert found.prompt == "q", "the prompt is named"
    with pytest.raises(ValueError, match="'context' and 'question'"):
        parse_recordings({"context": "a page", "question": "q", "answer": "a"}, ReplaySpec())
