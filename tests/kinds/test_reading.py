"""Read reasoning and answer out of raw texts, or the reason why there is no answer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.kinds import KINDS, ParsedAnswer, Question, format_with_reasoning, get_kind, read_answer
from distill_dagster.kinds.reading import STILL_THINKING
from distill_dagster.kinds.refusals import is_refusal_text
from tests.support.kinds import ANSWERS, build_task

SHARED = Path(os.environ.get("DISTILL_SHARED_DATA", PROJECT_FOLDER.parent / "shared" / "data"))

NONE = Question()


def read(
    kind: str, text: str, question: Question = NONE, task: dict[str, Any] | None = None, **response: Any
) -> ParsedAnswer:
    return read_answer(get_kind(build_task(kind, **(task or {}))), text, question, **response)


THINKS: dict[str, Any] = {"reasoning": True}


@pytest.mark.parametrize(
    ("text", "response", "reasoning"),
    [
        ('{"reasoning": "6 * 7", "answer": 42}', {}, "6 * 7"),
        ('```json\n{"reasoning": "6 * 7", "answer": "42"}\n```', {}, "6 * 7"),
        ("<think>6 * 7\n</think>\n42", {}, "6 * 7"),
        ("6 * 7</think>Answer: 42", {}, "6 * 7"),
        ("<reasoning>6 * 7</reasoning><answer>42</answer>", {}, "6 * 7"),
        ("42", {"reasoning_content": "6 * 7"}, "6 * 7"),
        ("Reasoning: 6 * 7\nAnswer: 42", {}, "6 * 7"),
        (" 6 * 7\nAnswer: 42\nand so on", {}, "6 * 7"),
        ("6 * 7\n**Answer:** 42", {}, "6 * 7"),
        ("Reasoning: 6 * 7\nAnswer: 42\n\nProblem: more", {"stop": "\n\nProblem:", "finish_reason": "length"}, "6 * 7"),
        ('{"answer": 42}', {"reasoning_content": "6 * 7"}, "6 * 7"),
    ],
)
def test_reasoning_is_read_from_every_form(text: str, response: dict[str, Any], reasoning: str) -> None:
    assert read("math", text, task=THINKS, **response) == ParsedAnswer("ok", "42", reasoning)


@pytest.mark.parametrize(("kind", "answer"), [("qa", '"Oslo"'), ("generation", '"```\\nOslo\\n```"')])
def test_a_fence_is_no_part_of_a_short_answer(kind: str, answer: str) -> None:
    assert read(kind, "```\nOslo\n```").answer == answer


def test_an_answer_at_the_end_of_the_reasoning() -> None:
    found = read("math", "He has 3 + 4 = 7. The answer is 7.", task=THINKS)
    assert (found.answer, found.reasoning) == ("7", "He has 3 + 4 = 7. The answer is 7.")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("thinks", [False, True])
def test_every_kind_reads_what_it_writes(kind: str, thinks: bool) -> None:
    one = get_kind(build_task(kind, reasoning=thinks))
    reasoning = "Because of this.\nAnd that." if thinks else None
    text = format_with_reasoning(reasoning, one.format_answer(ANSWERS[kind]))
    assert read_answer(one, text, Question()) == ParsedAnswer(
        "ok", json.dumps(ANSWERS[kind], sort_keys=True, separators=(",", ":")), reasoning
    )
    wrapped = json.dumps({"reasoning": reasoning, "answer": ANSWERS[kind]} if thinks else {"answer": ANSWERS[kind]})
    assert json.loads(read_answer(one, wrapped, Question()).answer or "") == ANSWERS[kind]


def test_tool_calls_of_the_provider() -> None:
    calls = [{"name": "find_order", "arguments": '{"number": 7}'}]
    found = read("tool_call", "", tool_calls=calls, reasoning_content="An order.")
    assert found == ParsedAnswer("ok", '[{"arguments":{"number":7},"name":"find_order"}]', "An order.")
    assert read("tool_call", "I look it up.", tool_calls=calls).reasoning == "I look it up."
    assert read("tool_call", "Hello!", tool_calls=[]).answer == "[]", "tools were offered, and none fits"
    assert read("tool_call", "I can't help with that.", tool_calls=[]).status == "refused"


@pytest.mark.parametrize(
    ("kind", "text", "response", "status", "error"),
    [
        ("math", "", {}, "ok", "no answer was found"),
        ("math", "Reasoning: hm\nAnswer: many", {}, "ok", "no number"),
        ("math", '{"reasoning": "6 * 7 = 4', {"finish_reason": "length"}, "truncated", "cut at max_tokens"),
        ("math", "Reasoning: x\nAnswer: 4", {"finish_reason": "length"}, "truncated", "cut at max_tokens"),
        ("math", "<think>it goes on", {"finish_reason": "length"}, "truncated", "cut at max_tokens"),
        ("extraction", '{"item": "chair", "cou', {"finish_reason": "length"}, "truncated", "cut at max_tokens"),
        ("generation", "Dear cust", {"finish_reason": "length"}, "truncated", "cut at max_tokens"),
        ("math", "I'm sorry, but I can't help with that.", {}, "refused", "the teacher refused"),
        ("generation", "I cannot assist with this request.", {}, "refused", "the teacher refused"),
        ("extraction", '{"refusal": "No."}', {}, "refused", "refused: No."),
        ("qa", "No.", {"finish_reason": "refusal"}, "refused", "refused: No."),
    ],
)
def test_a_response_without_an_answer_has_a_status_and_an_error(
    kind: str, text: str, response: dict[str, Any], status: str, error: str
) -> None:
    found = read(kind, text, task=THINKS if kind == "math" else None, **response)
    assert (found.status, found.answer) == (status, None)
    assert error in (found.error or "")


def test_a_cut_after_a_complete_answer_does_not_count() -> None:
    assert read("math", "Reasoning: x\nAnswer: 4\n", task=THINKS, finish_reason="length").answer == "4"
    assert read("math", "Reasoning: x\nAnswer: 4\nAnd n", task=THINKS, finish_reason="length").answer == "4"
    assert read("extraction", json.dumps(ANSWERS["extraction"]) + " And n", finish_reason="length").status == "ok"


@pytest.mark.parametrize("kind", ["generation", "math", "extraction"])
def test_a_wanted_refusal_is_the_right_answer(kind: str) -> None:
    wanted = Question("How do I pick a lock?", refusal_wanted=True)
    found = read(kind, "I'm sorry, but I can't help with that.", wanted)
    assert found.status == "ok"
    assert json.loads(found.answer or "") == {"refusal": "I'm sorry, but I can't help with that."}
    answered = read(kind, get_kind(build_task(kind)).format_answer(ANSWERS[kind]), wanted)
    assert (answered.status, answered.answer) == ("ok", None)
    assert "a refusal is wanted" in (answered.error or "")


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("I can’t help with that.", True),
        ("I'm sorry, but I cannot provide instructions for that.", True),
        ("Sorry, as an AI model, I am unable to assist.", True),
        ("I won't write that.", True),
        ("Unfortunately, I'm not able to share this.", True),
        ("I'm sorry that your parcel is late. We will send another.", False),
        ("I can't find your order; what is its number?", False),
        ("You cannot provide two addresses.", False),
        ("Yes, I can help with that.", False),
        ("The bank cannot give money back after 8 weeks.", False),
    ],
)
def test_refusal_phrases(text: str, refusal: bool) -> None:
    assert is_refusal_text(text) is refusal


def test_a_schema_field_named_answer() -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    task = {"answer_schema": schema | {"additionalProperties": False}}
    for text in ('{"answer": "yes"}', '{"answer": {"answer": "yes"}}'):
        assert read("extraction", text, task=task).answer == '{"answer":"yes"}'


def test_a_pattern_of_the_task() -> None:
    task = {"answer": {"pattern": r"The answer is \(?(?P<answer>.*?)\)?\.(?:\s|$)", "stop": "\n\nQ:"}, **THINKS}
    raw = "He has 7 rows. 7 * 36 is 252. The answer is (7 * 36).\n\nQ: And? A: The answer is (9)."
    found = read("math", raw, task=task, finish_reason="length")
    assert found == ParsedAnswer("ok", "252", "He has 7 rows. 7 * 36 is 252.")
    assert read("math", "no such sentence", task=task).error == "no answer was found in the text"


@given(st.text(max_size=300) | st.text('{}[]<think>/"answer:, 12refusal\n', max_size=200))
def test_any_text_is_read_or_has_a_reason(text: str) -> None:
    for kind in KINDS:
        for thinks in (False, True):
            found = read(kind, text, task={"reasoning": thinks})
            assert found.status in ("ok", "refused", "truncated")
            assert (found.answer is None) != (found.error is None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("<think>", "</think>"),
        ("", "</think>\n"),
        ("[THINK]", "[/THINK]"),
        ("<seed:think>", "</seed:think>"),
        ("◁think▷", "◁/think▷"),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("<|channel>thought\n", "<channel|>"),
    ],
)
def test_thinking_is_the_answer_of_no_kind(kind: str, opening: str, closing: str) -> None:
    one = get_kind(build_task(kind))
    thought = "İt may be 7, delivery, contradiction or Rome."
    for written in (one.format_answer(ANSWERS[kind]), json.dumps({"answer": ANSWERS[kind]})):
        found = read_answer(one, f"{opening}{thought}{closing}{written}", Question())
        assert (found.status, json.loads(found.answer or ""), found.reasoning) == ("ok", ANSWERS[kind], thought)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("opening", ["<think>", "[THINK]", "<|channel|>analysis<|message|>"])
@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_thinking_that_never_ended_is_truncated(kind: str, opening: str, finish_reason: str) -> None:
    text = f"{opening}Maybe {get_kind(build_task(kind)).format_answer(ANSWERS[kind])}"
    found = read(kind, text, finish_reason=finish_reason)
    assert (found.status, found.answer, found.error) == ("truncated", None, STILL_THINKING)


def test_thinking_in_a_field_of_its_own_that_took_all_tokens() -> None:
    found = read("qa", "", finish_reason="length", reasoning_content="Maybe Rome")
    assert found == ParsedAnswer("truncated", None, "Maybe Rome", STILL_THINKING)


@pytest.mark.parametrize("kind", ["generation", "conversation", "summarization"])
@pytest.mark.parametrize(
    "text",
    [
        "Use the <thought> element, and close it with </thought>. Then save.",
        "Begin with `<think>` and end with `</think>`.",
        'Send this:\n```json\n{"answer": 42}\n```\nThen wait.',
        'Send {"answer": 42} to us.',
        "The body is <answer>42</answer> then.",
    ],
)
def test_a_text_about_tags_or_json_stays(kind: str, text: str) -> None:
    assert json.loads(read(kind, text).answer or "") == text


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("qa", 'Here is the answer:\n```json\n{"answer": "Oslo"}\n```', "Oslo"),
        ("qa", 'I looked it up. {"answer": "Oslo"} That is all.', "Oslo"),
        ("qa", '{"answer": "Oslo",}', "Oslo"),
        ("qa", '{"Answer": "Oslo"}', "Oslo"),
        ("qa", '{"answer": "Oslo", "confidence": 0.9}', "Oslo"),
        ("qa", "{'answer': 'Oslo'}", "Oslo"),
        ("qa", '{"answer": "Oslo"}\n\n{"answer": "Oslo"}', "Oslo"),
        ("qa", "It is <answer>Oslo</answer>, I think.", "Oslo"),
        ("qa", "It is far north.\n### Final Answer: Oslo", "Oslo"),
        ("qa", "It is far north.\n**Final answer:** Oslo\nNot Bergen.", "Oslo"),
        ("qa", json.dumps('{"answer": "Oslo"}'), "Oslo"),
        ("math", 'Here is the answer:\n```json\n{"answer": 42}\n```', 42),
        ("math", 'As in [1], so {"answer": "42"}.', 42),
        ("math", "İİİİİİ: the answer is 1234", 1234),
        ("math", "ANSWER IS 12. No: İ the Answer is 34", 34),
        ("extraction", 'The JSON:\n```json\n{"answer": {"item": "chair", "count": 2}}\n```', ANSWERS["extraction"]),
        ("extraction", 'The JSON: {"item": "chair", "count": 2,} as asked.', ANSWERS["extraction"]),
        ("extraction", '{"type": "object"} is the schema; {"item": "chair", "count": 2}', ANSWERS["extraction"]),
        ("extraction", '{"answer": "{\\"item\\": \\"chair\\", \\"count\\": 2}"}', ANSWERS["extraction"]),
        ("nli", 'It follows.\n{"answer": "neutral"}', "neutral"),
    ],
)
def test_json_is_found_where_it_stands(kind: str, text: str, answer: Any) -> None:
    assert json.loads(read(kind, text).answer or "") == answer


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        ("qa", '{"answer": "Oslo" "x": 1}', "malformed"),
        ("qa", 'So: {"answer": "Os', "is cut"),
        ("qa", '{"answer": "Oslo"}\nNo: {"answer": "Bergen"}', "several different answers"),
        ("math", '{"answer": 41}\n{"answer": 42}', "several different answers"),
        ("generation", '{"answer": "Dear cust', "is cut"),
        ("extraction", '[{"item": "chair", "count": 2}, {"item": "ta', "is cut"),
        ("extraction", '{"item": "chair", "count": 2}\n{"item": "table", "count": 1}', "several different objects"),
        ("extraction", '[{"item": "chair", "count": 2}, {"item": "table", "count": 1}]', "does not fit answer_schema"),
        ("extraction", '{"items": [{"item": "chair", "count": 2} {"item": "table", "count": 1}]}', "no JSON object"),
        ("extraction", '{"item": "chair", "count": 1e999}', "no JSON object"),
        ("extraction", '{"item": ' + "[" * 500 + "]" * 500 + "}", "no JSON object"),
    ],
)
def test_a_part_of_an_answer_is_no_answer(kind: str, text: str, why: str) -> None:
    found = read(kind, text)
    assert (found.status, found.answer) == ("ok", None)
    assert why in (found.error or "")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tool_call"])
@given(data=st.data())
def test_json_that_is_cut_is_truncated(kind: str, data: st.DataObject) -> None:
    wrapped = json.dumps({"reasoning": "Because.", "answer": ANSWERS[kind]})
    cut = wrapped[: data.draw(st.integers(1, len(wrapped) - 1))]
    found = read(kind, cut, finish_reason="length")
    assert (found.status, found.answer) == ("truncated", None)


def test_a_number_beyond_64_bits_is_kept() -> None:
    found = read("extraction", '{"item": "chair", "count": 123456789012345678901234567890}')
    assert json.loads(found.answer or "")["count"] == 123456789012345678901234567890


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public data are not on this machine")
@pytest.mark.parametrize(("split", "accuracy"), [("train", 0.7325), ("test", 0.74)])
def test_recorded_arithmetic(split: str, accuracy: float) -> None:
    task = {"answer": {"pattern": r"The answer is (?P<answer>\(.*?\))\.(?:\s|$)", "stop": "\n\nQ:"}, **THINKS}
    kind = get_kind(build_task("math", **task))
    rows = {r["id"]: r for r in _rows(f"svamp/{split}.jsonl")}
    right = 0
    for row in _rows(f"svamp/completions-palm-{split}.jsonl"):
        found = read_answer(kind, row["completion"], Question())
        gold = kind.canonicalize(rows[row["id"]]["equation"], Question())
        right += found.answer is not None and kind.are_equal(json.loads(found.answer), gold)
    assert right / len(rows) == pytest.approx(accuracy, abs=1e-9)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public data are not on this machine")
@pytest.mark.parametrize(
    ("spec", "accuracy"),
    [
        ({"pattern": r"So the answer is \([a-e]\) (?P<answer>.*)\.", "exact": True}, 0.743),
        ({"pattern": r"So the answer is (?P<answer>\([a-e]\).*?)\.(?:\s|$)"}, 0.7585),
    ],
    ids=["exact", "by letter or words"],
)
def test_recorded_choices(spec: dict[str, Any], accuracy: float) -> None:
    """Exact texts give the published figure; matching by letter accepts more answers."""
    kind = get_kind(build_task("qa", answer=spec | {"stop": "\n\nQ:", "choices": True}, **THINKS))
    rows = {r["id"]: r for r in _rows("commonsenseqa/questions.jsonl")}
    right = 0
    for row in _rows("commonsenseqa/completions-palm.jsonl"):
        asked = rows[row["id"]]
        options = "\n".join(f"({letter}) {text}" for letter, text in zip("abcde", asked["choices"], strict=True))
        found = read_answer(kind, row["completion"], Question(f"{asked['question']}\n{options}"))
        right += found.answer is not None and kind.are_equal(json.loads(found.answer), asked["answer"])
    assert right / len(rows) == pytest.approx(accuracy, abs=0.0005)


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SHARED / name).read_text("utf-8").splitlines()]
