"""Turns of chats, whichever program wrote them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from distill_dagster.intake.chats import ChatTurn, find_turns, is_chat, parse_cell, read_calls, read_chat, read_turn

PLAIN = [ChatTurn("user", "q"), ChatTurn("assistant", "a")]
FORMS: dict[str, Any] = {
    "openai": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
    ],
    "strings as parts": [{"role": "user", "content": ["q"]}, {"role": "assistant", "content": ["a"]}],
    "sharegpt": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
    "gemini": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}],
    "langchain": [{"type": "human", "data": {"content": "q"}}, {"type": "ai", "data": {"content": "a"}}],
    "langchain constructors": [
        {"type": "constructor", "id": ["langchain", "schema", "HumanMessage"], "kwargs": {"content": "q"}},
        {"type": "constructor", "id": ["langchain", "schema", "AIMessage"], "kwargs": {"content": "a"}},
    ],
    "names in capitals": [{"role": "User", "content": "q"}, {"role": "ASSISTANT", "content": "a"}],
    "null fields": [
        {"role": "user", "content": "q", "name": None, "images": None},
        {"role": "assistant", "content": "a", "tool_calls": None, "function_call": None, "audio": None},
    ],
    "assistants": [
        {"role": "user", "content": [{"type": "text", "text": {"value": "q", "annotations": []}}]},
        {"role": "assistant", "content": "a"},
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_turns_in_every_form(form: str) -> None:
    assert is_chat(FORMS[form])
    assert read_chat(FORMS[form]) == PLAIN


@pytest.mark.parametrize("name", ["messages", "conversations", "conversation", "input", "prompt", "contents"])
def test_turns_are_found_in_a_record_also_as_text(name: str) -> None:
    assert find_turns({name: FORMS["openai"]}) == PLAIN
    assert find_turns({name: json.dumps(FORMS["sharegpt"])}) == PLAIN
    assert find_turns({name: {"object": "list", "data": FORMS["openai"]}}) == PLAIN
    with_system = find_turns({"system": "Be kind.", name: FORMS["openai"]})
    assert with_system == [ChatTurn("system", "Be kind."), *PLAIN]


@pytest.mark.parametrize(
    "value",
    [
        [],
        ["user", "assistant"],
        [{"role": "user", "text": "q"}],
        [{"role": "manager", "content": "q"}],
        [{"role": "user", "content": "q"}, {"label": "x"}],
        {"role": "user", "content": "q"},
    ],
)
def test_other_lists_are_no_chats(value: Any) -> None:
    assert not is_chat(value)


CALL = {"name": "find_order", "arguments": '{"number":7}'}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": CALL}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": CALL | {"arguments": {"number": 7}}}]},
        {"role": "assistant", "content": None, "tool_calls": {"function": CALL}},
        {"role": "assistant", "content": None, "function_call": CALL},
        {"role": "assistant", "content": "", "tool_calls": [], "function_call": CALL | {"arguments": {"number": 7}}},
        {"role": "assistant", "content": [{"type": "tool_use", "name": "find_order", "input": {"number": 7}}]},
        {"role": "model", "parts": [{"functionCall": {"name": "find_order", "args": {"number": 7}}}]},
        {"from": "function_call", "value": '{"name": "find_order", "arguments": {"number": 7}}'},
    ],
)
def test_tool_calls_in_every_form(message: dict[str, Any]) -> None:
    turn = read_turn(message)
    assert (turn.role, turn.text, turn.tool_calls) == ("assistant", "", [CALL])


def test_what_is_no_call_is_none() -> None:
    assert read_calls({"tool_calls": [{"function": {"name": " "}}, 7], "function_call": "x"}) is None
    assert read_turn({"from": "function_call", "value": "not JSON"}).text == "not JSON"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "x"}}]},
        {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}]},
        {"role": "user", "content": [{"type": "document", "source": {}}, {"type": "text", "text": "q"}]},
        {"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": "x"}}, {"text": "q"}]},
        {"role": "user", "content": "<image>\nq"},
        {"from": "human", "value": "q <video>"},
        {"role": "user", "content": "q", "images": ["a.png"]},
        {"role": "user", "content": "q", "attachments": [{"name": "a.pdf"}]},
    ],
)
def test_attachments_are_noticed(message: dict[str, Any]) -> None:
    assert read_turn(message).has_attachment


def test_thinking_and_tool_results_are_no_attachments() -> None:
    parts = [
        {"type": "thinking", "thinking": "because", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
        {"type": "tool_use", "name": "f", "input": {}},
        {"type": "tool_result", "content": "x"},
    ]
    turn = read_turn({"role": "assistant", "content": parts, "images": [], "attachments": []})
    assert (turn.text, turn.reasoning, turn.has_attachment) == ("a", "because", False)


def test_cells_of_tables_are_read_as_what_they_contain() -> None:
    chat = FORMS["openai"]
    assert parse_cell(json.dumps(chat)) == chat
    assert parse_cell(f"  {json.dumps(chat, indent=2)}\n") == chat
    assert parse_cell(str(chat)) == chat, "pandas writes lists in Python's notation"
    body = {"model": "m", "messages": chat}
    assert parse_cell(json.dumps(body)) == body
    assert parse_cell(json.dumps(chat[1])) == chat[1]


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "[see page 3]",
        "{name}, where is my parcel?",
        '{"order": 7, "items": ["lamp"]}',
        '[{"name": "find_order", "arguments": {}}]',
        '["a", "b"]',
        "[" * 5_000,
        "[{'a': " * 200,
        "__import__('os').getcwd()",
        "[{'role': __import__('os').getcwd(), 'content': 'x'}]x",
    ],
)
def test_other_texts_stay_texts(text: str) -> None:
    assert parse_cell(text) == text


@pytest.mark.parametrize(
    "cut",
    ['[{"role": "user", "content": "a long te', "[{'role': 'user', 'content': 'a lo", '{"messages": [{"role": "us'],
)
def test_a_chat_that_a_spreadsheet_cut_is_an_error(cut: str) -> None:
    with pytest.raises(ValueError, match="begins as a list of messages"):
        parse_cell(cut)
