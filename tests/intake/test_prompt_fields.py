"""Where the prompt of a record is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from distill_dagster.intake.prompt_fields import PromptFieldError, find_prompt

CHAT = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "last"},
    {"role": "assistant", "content": "b"},
]


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"text": "t", "label": "x"}, "t"),
        ({"prompt": "t"}, "t"),
        ({"question": "t", "answer": "x"}, "t"),
        ({"input": "t"}, "t"),
        ({"query": "t"}, "t"),
        ({"text": "", "prompt": "t"}, "t"),
        ({"instruction": "Do it.", "input": "with this", "output": "o"}, "Do it.\n\nwith this"),
        ({"instruction": "Do it.", "input": "", "output": "o"}, "Do it."),
        ({"instruction": "Do it.", "output": "o"}, "Do it."),
        ({"instruction": "Do it.", "input": "this", "output": "o", "text": "### Instruction: …"}, "Do it.\n\nthis"),
        ({"instruction": "Do it.", "context": "in here", "response": "o"}, "Do it.\n\nin here"),
        ({"messages": CHAT}, "last"),
        (CHAT, "last"),
        ({"request": {"messages": CHAT}}, "last"),
        ({"request": {"body": {"messages": CHAT}}}, "last"),
        ({"request_body": json.dumps({"messages": CHAT})}, "last"),
        ({"input": json.dumps(CHAT)}, "last"),
        ({"input": {"messages": CHAT}}, "last"),
        ({"input": {"role": "user", "content": "last"}}, "last"),
        ({"input": json.dumps({"role": "user", "content": "last"})}, "last"),
        ({"text": '{"order": 7}'}, '{"order": 7}'),
        ({"input": "{order}"}, "{order}"),
        ({"generic_request": {"messages": CHAT}}, "last"),
        ({"inputs": {"messages": CHAT}, "outputs": {}}, "last"),
        ({"conversations": [{"from": "human", "value": "last"}, {"from": "gpt", "value": "b"}]}, "last"),
    ],
)
def test_usual_places(record: Any, text: str) -> None:
    found = find_prompt(record)
    assert (found.text, found.has_attachment) == (text, False)


@pytest.mark.parametrize(
    ("record", "message", "remedy"),
    [
        ({"instruction": "Sort it.", "text": "t", "label": "x"}, "'instruction' and 'text'", "--text-field text"),
        ({"instruction": "Sort it.", "prompt": "t", "output": "o"}, "'instruction' and 'prompt'", "both"),
        ({"context": "a page", "question": "q"}, "'context' and 'question'", "--text-field context"),
        ({"body": "t", "label": "x"}, "the text is missing", "The record has: body, label"),
        ({"text": 7}, "the text is missing", "--text-field"),
        ({"text": " "}, "the text is empty", "remove the record"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "the text is missing", "messages"),
        ({"input": '{"n": 1, "mail": "my parcel"}'}, "is a JSON object", "--text-field input.mail"),
        ({"input": '[{"role": "user", "content": "cut'}, "not valid JSON", "cuts long cells"),
    ],
)
def test_what_is_not_clear_is_not_guessed(record: Any, message: str, remedy: str) -> None:
    with pytest.raises(PromptFieldError, match=message) as caught:
        find_prompt(record)
    assert remedy in caught.value.remedy


def test_named_fields() -> None:
    record = {"premise": "It rains.", "hypothesis": "It is wet.", "chat": CHAT, "deep": {"text": "d"}, "none": None}
    assert find_prompt(record, ["premise", "hypothesis"]).text == "It rains.\n\nIt is wet."
    assert find_prompt(record, ["premise", "none"]).text == "It rains."
    assert find_prompt(record, ["chat"]).text == "last"
    assert find_prompt(record, ["chat.1.content"]).text == "first"
    assert find_prompt(record, ["deep.text"]).text == "d"
    assert find_prompt({"input": '{"order": 7}'}, ["input"]).text == '{"order": 7}', "who names a field gets it"
    assert find_prompt({"text": "late", "image_url": "x", "attachments": [{"name": "bill.pdf"}]}).text == "late"
    parts = {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert find_prompt(parts, ["content"]).text == "ab"
    with pytest.raises(PromptFieldError, match="not a string"):
        find_prompt({"number": 7}, ["number"])
    with pytest.raises(PromptFieldError, match="missing"):
        find_prompt(record, ["nowhere"])


def test_turns_of_a_conversation_end_with_the_user() -> None:
    turns = find_prompt({"messages": CHAT}).turns
    assert [(turn.role, turn.text) for turn in turns] == [(m["role"], m["content"]) for m in CHAT[:4]]
    record = {"instruction": "And now?", "input": "", "output": "o", "history": [["Hello", "Hi"]]}
    assert [(turn.role, turn.text) for turn in find_prompt(record).turns] == [
        ("user", "Hello"),
        ("assistant", "Hi"),
        ("user", "And now?"),
    ]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": "<image> what is it?"}], "images": ["a.png"]},
        {"question": "what is it?", "image": {"bytes": b"x", "path": None}},
        {"prompt": "what is it?", "images": ["a.png"]},
        {"instruction": "what is it?", "input": "", "output": "o", "images": ["a.png"]},
        {"text": "what is it? ![](data:image/png;base64,iVBORw0KGgo=)"},
        {"prompt": "what is it?", "attachments": [{"name": "a", "mime": "image/png", "contentString": "x"}]},
        {"image": "000.jpg", "conversations": [{"from": "human", "value": "<image>\nwhat is it?"}]},
    ],
)
def test_pictures_are_noticed(record: Any) -> None:
    assert find_prompt(record).has_attachment
