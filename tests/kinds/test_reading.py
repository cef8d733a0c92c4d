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
