"""Tool calls that a model left in its text, in the forms of many models: read, or reported, and never lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_dagster.kinds import ParsedAnswer, Question, get_kind, read_answer
from tests.support.kinds import TOOLS, build_task

KIND = get_kind(build_task("tool_call"))
ONE = '{"name": "find_order", "arguments": {"number": 7}}'
TWO = '{"name": "open_ticket", "arguments": {}}'
SEP, BEGIN, END = "<｜tool▁sep｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
CALLED = [{"name": "find_order", "arguments": {"number": 7}}]
NO_CALLS: tuple[list[Any] | None, ...] = ([], None)
BOTH = [*CALLED, {"name": "open_ticket", "arguments": {}}]

ONE_CALL = {
    "JSON": ONE,
    "JSON with parameters": '{"name": "find_order", "parameters": {"number": 7}}',
    "JSON with arguments as text": json.dumps({"name": "find_order", "arguments": '{"number": 7}'}),
    "JSON by name": '{"find_order": {"number": 7}}',
    "OpenAI": '{"tool_calls": [{"id": "c", "type": "function", "function": ' + ONE + "}]}",
    "OpenAI before 2024": '{"function_call": {"name": "find_order", "arguments": "{\\"number\\": 7}"}}',
    "a prefix": '{"name": "functions.find_order", "arguments": {"number": 7}}',
    "a fence": f"I look it up.\n```json\n{ONE}\n```",
    "Hermes, Qwen": f"<tool_call>\n{ONE}\n</tool_call>",
    "Hermes, the end lost": f"<tool_call>\n{ONE}",
    "tools": f"<tools>{ONE}</tools>",
    "Glaive": '<functioncall> {"name": "find_order", "arguments": \'{"number": 7}\'}',
    "Granite": f"<|tool_call|>[{ONE}]",
    "Mistral": f"[TOOL_CALLS] [{ONE}]",
    "Mistral 11": '[TOOL_CALLS]find_order[CALL_ID]a1[ARGS]{"number": 7}',
    "Llama 3.1": f"<|python_tag|>{ONE}<|eom_id|>",
    "Llama 3.1, tags": '<function=find_order>{"number": 7}</function>',
    "Phi": f"functools[{ONE}]",
    "DeepSeek R1": f"<｜tool▁calls▁begin｜>{BEGIN}function{SEP}find_order\n```json\n"
    + '{"number": 7}\n```'
    + f"{END}<｜tool▁calls▁end｜>",
    "DeepSeek V3.1": f"<｜tool▁calls▁begin｜>{BEGIN}find_order{SEP}" + '{"number": 7}' + f"{END}<｜tool▁calls▁end｜>",
    "DeepSeek V3.2": '<｜DSML｜function_calls><｜DSML｜invoke name="find_order">'
    '<｜DSML｜parameter name="number" string="false">7</｜DSML｜parameter></｜DSML｜invoke></｜DSML｜function_calls>',
    "Kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.find_order:0<|tool_call_argument_begin|>"
    '{"number": 7}<|tool_call_end|><|tool_calls_section_end|>',
    "Qwen3 Coder": "<tool_call>\n<function=find_order>\n<parameter=number>\n7\n</parameter>\n</function>\n</tool_call>",
    "GLM": "<tool_call>find_order\n<arg_key>number</arg_key>\n<arg_value>7</arg_value>\n</tool_call>",
    "MiniMax": '<minimax:tool_call>\n<invoke name="find_order">\n<parameter name="number">7</parameter>\n</invoke>\n'
    "</minimax:tool_call>",
    "gpt-oss": '<|channel|>commentary to=functions.find_order <|constrain|>json<|message|>{"number": 7}<|call|>',
    "gpt-oss, the name first": "<|start|>assistant to=functions.find_order<|channel|>commentary json<|message|>"
    '{"number": 7}<|call|>',
    "Cohere": '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "find_order", "parameters": {"number": 7}}]'
    "<|END_ACTION|>",
    "Gemma": "<|tool_call>call:find_order{number:7}<tool_call|>",
    "FunctionGemma": "<start_function_call>call:find_order{number:7}<end_function_call>",
    "Llama 4": "[find_order(number=7)]",
    "LFM": "<|tool_call_start|>[find_order(number=7)]<|tool_call_end|>",
    "Gemini": "```tool_code\nprint(default_api.find_order(number=7))\n```",
    "ReAct": 'Thought: an order.\nAction: find_order\nAction Input: {"number": 7}',
    "ChatGLM": 'find_order\n{"number": 7}',
    "a heading": '**find_order**\n```json\n{"number": 7}\n```',
    "Granite, Python": "<function_calls>\n[find_order(number=7)]\n</function_calls>",
    "several at once": '{"tool_uses": [{"recipient_name": "functions.find_order", "parameters": {"number": 7}}]}',
    "LM Studio": f"[TOOL_REQUEST]{ONE}[END_TOOL_REQUEST]",
    "after thinking": f"<think>find_order or open_ticket?</think>\n<tool_call>{ONE}</tool_call>",
    "a comma too many": '[{"name": "find_order", "arguments": {"number": 7,}},]',
}
TWO_CALLS = {
    "a list": f"[{ONE}, {TWO}]",
    "lines": f"{ONE}\n{TWO}",
    "the wrapper": f'{{"answer": [{ONE}, {TWO},]}}',
    "two wrappers": f'{{"answer": {ONE}}}\n{{"answer": [{TWO}]}}',
    "Hermes": f"<tool_call>\n{ONE}\n</tool_call>\n<tool_call>\n{TWO}\n</tool_call>",
    "Llama": f"<|python_tag|>{ONE}; {TWO}",
    "Mistral": '[TOOL_CALLS]find_order[ARGS]{"number": 7}[TOOL_CALLS]open_ticket[ARGS]{}',
    "DeepSeek": f"{BEGIN}find_order{SEP}" + '{"number": 7}' + f"{END}\n{BEGIN}open_ticket{SEP}" + "{}" + END,
    "Qwen3 Coder": "<tool_call>\n<function=find_order>\n<parameter=number>7</parameter>\n</function>\n</tool_call>\n"
    "<tool_call>\n<function=open_ticket>\n</function>\n</tool_call>",
    "GLM": "<tool_call>find_order\n<arg_key>number</arg_key>\n<arg_value>7</arg_value>\n</tool_call>\n"
    "<tool_call>open_ticket\n</tool_call>",
    "Python": "[find_order(number=7), open_ticket()]",
    "Python lines": "find_order(number=7)\nopen_ticket()",
}


def read(text: str, **response: Any) -> ParsedAnswer:
    return read_answer(KIND, text, Question(), **response)


def read_calls(text: str, **response: Any) -> Any:
    found = read(text, **response)
    assert found.error is None
    return json.loads(found.answer or "null")


@pytest.mark.parametrize("form", ONE_CALL)
@pytest.mark.parametrize("offered", [True, False])
def test_a_call_in_the_text_is_read(form: str, offered: bool) -> None:
    assert read_calls(ONE_CALL[form], tool_calls=[] if offered else None) == CALLED


@pytest.mark.parametrize("form", TWO_CALLS)
@pytest.mark.parametrize("offered", [True, False])
def test_two_calls_in_the_text_are_both_read(form: str, offered: bool) -> None:
    assert read_calls(TWO_CALLS[form], tool_calls=[] if offered else None) == BOTH


@pytest.mark.parametrize("form", [*ONE_CALL, *sorted(TWO_CALLS.keys() - {"two wrappers"})])
@given(data=st.data())
def test_a_call_that_is_cut_is_never_no_call_and_never_fewer_calls(form: str, data: st.DataObject) -> None:
    whole = (ONE_CALL | TWO_CALLS)[form]
    expected = CALLED if form in ONE_CALL else BOTH
    place = data.draw(st.integers(whole.index("find_order") + len("find_order") + 1, len(whole)))
    for offered in NO_CALLS:
        found = read(whole[:place], tool_calls=offered, finish_reason="length")
        if found.answer is not None:
            assert json.loads(found.answer) == expected
        else:
            assert found.status in ("truncated", "refused")


@pytest.mark.parametrize(
    "text",
    [
        '{"answer": [' + ONE + ', {"name": "find_o',
        f"{ONE}\n" + '{"name": "open_ti',
        f"<tool_call>\n{ONE}\n</tool_call>\n<tool_call>\n" + '{"name": "open_ti',
        f"<tool_call>\n{ONE}\n</tool_call>\n<tool_call>",
        f"<tool_call>\n{ONE}\n</tool_call>",
        ONE,
        "<tool_call>\n<function=find_order>\n<parameter=number>\n7",
        "I look it up",
    ],
)
def test_a_cut_answer_is_truncated(text: str) -> None:
    found = read(text, tool_calls=[], finish_reason="length")
    assert (found.status, found.answer, found.error) == ("truncated", None, "the answer was cut at max_tokens")


def test_a_whole_list_before_the_cut_is_complete() -> None:
    for text in (f"[{ONE}]", f'{{"answer": [{ONE}]}}', ONE_CALL["Kimi"]):
        assert read_calls(text, tool_calls=[], finish_reason="length") == CALLED


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<tool_call>\nfind the order 7\n</tool_call>", "cannot be read"),
        ('<tool_call>\n{"name": "find_order" "arguments": {}}\n</tool_call>', "cannot be read"),
        (f"<tool_call>{ONE}</tool_call><tool_call>???</tool_call>", "cannot be read"),
        ('{"name": "find_order", "arguments": {"number": ', "is cut"),
        ("I use find_order(number=7) for this.", "cannot be read"),
        ("<|python_tag|>", "cannot be read"),
        ('{"number": 7}', "cannot be read"),
        ("find_order(7)", "cannot be read"),
        ('{"name": "look_up", "arguments": {"number": 7}}', "'look_up' is not one of the task's tools"),
        ('{"name": "find_order", "arguments": {"number": "x"}}', "do not fit"),
    ],
)
def test_a_call_that_cannot_be_read_is_reported(text: str, why: str) -> None:
    found = read(text, tool_calls=[])
    assert (found.status, found.answer) == ("ok", None)
    assert why in (found.error or "")


@pytest.mark.parametrize(
    "text",
    [
        "Hello! How can I help?",
        "See [1] and {this}.",
        'Your data: {"name": "Ann", "age": 4}',
        "The tool find_order is not needed.",
        "[]",
        '{"tool_calls": []}',
        '{"answer": []}',
        "<think>find_order?</think>Good morning.",
    ],
)
def test_a_text_without_a_call_means_that_no_tool_fits(text: str) -> None:
    assert read_calls(text, tool_calls=[]) == []


def test_a_call_that_the_provider_announces_and_does_not_send_is_reported() -> None:
    for text in ("", "I look it up."):
        found = read(text, tool_calls=[], finish_reason="tool_calls")
        assert found.answer is None
        assert found.error == "the provider says that the model called a tool, and sent no call"
    assert read("", tool_calls=[]).error == "no answer was found in the text"


def test_calls_next_to_a_call_in_the_text() -> None:
    sent = [{"name": "find_order", "arguments": '{"number": 7}'}]
    assert read_calls(f"<tool_call>{ONE}</tool_call>", tool_calls=sent) == CALLED, "sent twice"
    found = read(f"<tool_call>{TWO}</tool_call>", tool_calls=sent)
    assert (found.answer, found.error) == (None, "a tool call was left in the text next to the others")
    assert read("", tool_calls=sent, finish_reason="length").status == "truncated", "more calls may have followed"


def test_a_call_of_several_tools_at_once_is_read() -> None:
    uses = json.dumps({"tool_uses": [{"recipient_name": "functions.find_order", "parameters": {"number": 7}}]})
    assert read_calls("", tool_calls=[{"name": "multi_tool_use.parallel", "arguments": uses}]) == CALLED
    found = read("", tool_calls=[{"name": "multi_tool_use.parallel", "arguments": "{}"}])
    assert found.error == "a call of several tools at once cannot be read"


NUMBERED = [TOOLS[0], TOOLS[0] | {"name": "cancel_order"}]


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ('{"number": 7}', [7]),
        ({"number": 7}, [7]),
        ('"{\\"number\\": 7}"', [7]),
        ('{"number": 7}{"number": 8}', [7, 8]),
        ('{"number": 7}\n{"number": 8},{"number": 9}', [7, 8, 9]),
        ('{"number": 7}<|call|>', [7]),
        (" {'number': 7,} ", [7]),
    ],
)
def test_arguments_in_every_form(arguments: Any, numbers: list[int]) -> None:
    kind = get_kind(build_task("tool_call", tools=TOOLS[:1]))
    found = read_answer(kind, "", Question(), tool_calls=[{"name": "find_order", "arguments": arguments}])
    assert [call["arguments"]["number"] for call in json.loads(found.answer or "[]")] == numbers


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ('{"number": 7', "are cut"),
        ('{"number": 7}{"number"', "are cut"),
        ('{"number": 7} and more', "not a JSON object"),
        ('{"number": 7}{"number": 8}', "may be those of another tool"),
        ("[7]", "not a JSON object"),
        ('"7"', "not a JSON object"),
        ('"7', "not a JSON object"),
        (None, "'number' is a required property"),
        ("", "'number' is a required property"),
    ],
)
def test_arguments_that_are_not_one_object_are_reported(arguments: Any, why: str) -> None:
    kind = get_kind(build_task("tool_call", tools=NUMBERED))
    found = read_answer(kind, "", Question(), tool_calls=[{"name": "find_order", "arguments": arguments}])
    assert found.answer is None
    assert why in (found.error or "")


def test_another_kind_that_got_a_tool_call_has_no_answer() -> None:
    kind, calls = get_kind(build_task("qa")), [{"name": "search", "arguments": "{}"}]
    found = read_answer(kind, "I look it up.", Question(), tool_calls=calls, finish_reason="tool_calls")
    assert (found.answer, found.error) == (None, "the model called a tool and gave no answer")
    assert read_answer(kind, "Oslo", Question(), tool_calls=calls).answer == '"Oslo"'


@given(
    st.text()
    | st.lists(st.sampled_from([*ONE_CALL.values(), "<tool_call>", "{", '"', "[", "find_order("])).map("".join)
)
def test_any_text_is_read_or_has_a_reason(text: str) -> None:
    for offered in NO_CALLS:
        found = read(text, tool_calls=offered)
        assert (found.answer is None) != (found.error is None)
