"""What each kind accepts as an answer, when two answers are equal, and which of several samples is chosen."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_dagster.core.json_schema import find_answer_problem, find_schema_problem
from distill_dagster.kinds import InvalidAnswerError, Kind, Question, get_kind
from distill_dagster.kinds.similarity import (
    compute_chrf,
    compute_rouge_l,
    compute_token_f1,
    load_rouge_scorer,
    load_sacrebleu,
    normalize_squad,
)
from tests.support.kinds import ANSWERS, KINDS, build_task

OPTIONS = Question("Where is the ship?\nAnswer Choices:\n(a) park\n(b) a harbour\n(c) harbour master\n(d) I\n")

NONE = Question()


def kind(name: str, **changes: Any) -> Kind:
    return get_kind(build_task(name, **changes))


def canonical(name: str, value: Any, question: Question = NONE, **changes: Any) -> Any:
    return kind(name, **changes).canonicalize(value, question)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_one_canonical_form(name: str) -> None:
    one, answer = kind(name), ANSWERS[name]
    found = one.canonicalize(answer, Question())
    assert found == answer
    assert one.canonicalize(one.format_answer(answer), Question()) == answer, "as it is written in an example"
    assert one.are_equal(answer, answer)
    assert one.score(answer, answer) == 1
    assert one.score(None, answer) == 0
    if one.second_metric and one.second_metric != "macro_f1":
        assert one.score_second(answer, answer) == 1
        assert one.score_second(None, answer) == 0
    assert find_answer_problem(answer, one.build_schema()) is None, "what the provider is asked for fits"
    assert find_schema_problem(one.build_schema()) is None


@pytest.mark.parametrize("name", KINDS)
def test_a_refusal_equals_only_refusals(name: str) -> None:
    one, no = kind(name), {"refusal": "No."}
    assert one.are_equal(no, {"refusal": "I cannot."})
    assert not one.are_equal(no, ANSWERS[name])
    assert one.score(no, ANSWERS[name]) == one.score(ANSWERS[name], no) == 0
    assert one.score(no, {"refusal": "wanted"}) == 1
    assert one.format_answer(no) == "No."


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("classification", "I do not know", "no label is named"),
        ("nli", 3, "no label is named"),
        ("math", "many", "no number"),
        ("math", True, "not a number"),
        ("math", [4], "not a number"),
        ("math", float("inf"), "not a finite number"),
        ("qa", "…", "empty"),
        ("qa", {"a": 1}, "not a text"),
        ("extraction", "no object", "no JSON object"),
        ("extraction", '{"item": "chair"}', "'count' is a required property"),
        ("extraction", {"item": "chair", "count": 0}, "count: 0 is less than the minimum"),
        ("extraction", {"item": "chair", "count": 1, "x": 1}, "'x' was unexpected"),
        ("tool_call", "no call", "no list of tool calls"),
        ("tool_call", [{"name": "rm"}], "not one of the task's tools"),
        ("tool_call", [{"name": "find_order", "arguments": {"number": "x"}}], "do not fit: number"),
        ("tool_call", [{"name": "find_order", "arguments": "x"}], "not a JSON object"),
        ("tool_call", [3], "has no name"),
        ("summarization", "  \n ", "empty"),
        ("generation", 5, "not a text"),
    ],
)
def test_an_invalid_answer_has_a_reason(name: str, value: Any, why: str) -> None:
    with pytest.raises(InvalidAnswerError, match=why):
        canonical(name, value)


def test_numbers_are_equal_within_the_tolerance() -> None:
    assert canonical("math", "1/3") == 0.333333333333
    assert canonical("math", 3.0) == 3
    assert isinstance(canonical("math", 3.0), int)
    assert canonical("math", "So the answer is 12 apples.\nDone") == 12
    assert canonical("math", "Steps.\n#### 1,200") == 1200
    assert kind("math").are_equal(0.3333333, 0.33333333)
    assert not kind("math").are_equal(0.33, 0.34)
    assert kind("math", answer={"tolerance": 0.01}).are_equal(0.33, 0.335)
    assert not kind("math").are_equal(10**400, 10**400 + 1)


def test_options_match_by_letter_or_by_words() -> None:
    one = {"answer": {"choices": True}}
    for text in ("(b)", "b", "B.", "(b) a harbour.", "a harbour", "the Harbour", "it is a harbour"):
        assert canonical("qa", text, OPTIONS, **one) == "a harbour", text
    assert canonical("qa", "(c) harbour master", OPTIONS, **one) == "harbour master"
    assert canonical("qa", "I", OPTIONS, **one) == "I", "an option of one letter"
    for text in ("(e)", "nowhere", "park or harbour"):
        with pytest.raises(InvalidAnswerError, match="not one of the options"):
            canonical("qa", text, OPTIONS, **one)
    with pytest.raises(InvalidAnswerError, match="no options"):
        canonical("qa", "b", Question("Where?"), **one)


def test_short_texts_are_equal_after_normalization() -> None:
    assert kind("qa").are_equal("The Eiffel Tower.", "eiffel  tower")
    assert not kind("qa").are_equal("Eiffel Tower", "Tower")
    assert kind("qa").score_second("the tower of Pisa", "Pisa tower") == pytest.approx(0.8)
    assert normalize_squad("C# is 5% of it!") == "c# is 5% of it"


def test_extracted_objects_compare_by_field() -> None:
    one = kind("extraction")
    assert (
        canonical("extraction", 'Here: ```json\n{"item": " chair ", "count": 2.0}\n``` done') == ANSWERS["extraction"]
    )
    assert one.are_equal({"item": "a  chair", "count": 1}, {"count": 1, "item": "a chair"})
    assert not one.are_equal({"item": "chair", "count": 1}, {"item": "chair", "count": 2})
    found = {"item": "chair", "count": 2, "colours": ["red", "blue"]}
    assert one.score(found, {"item": "chair", "count": 3, "colours": ["blue", "green"]}) == pytest.approx(0.5)
    assert one.score(found, found | {"colours": ["blue", "red"]}) == 1
    assert one.score_second(found, found | {"colours": ["blue", "red"]}) == 0, "lists have an order for an exact match"


def test_tool_calls_compare_by_arguments_in_any_order() -> None:
    one, a, b = kind("tool_call"), ANSWERS["tool_call"][0], {"name": "open_ticket", "arguments": {}}
    assert one.canonicalize('{"name": "open_ticket"}', Question()) == [b]
    assert one.canonicalize([{"name": "find_order", "arguments": '{"number": 7.0}'}], Question()) == [a]
    assert one.canonicalize("[]", Question()) == [], "no tool fits"
    assert one.are_equal([a, b], [b, a])
    assert not one.are_equal([a], [a, a])
    assert one.score_second([a], [a, b]) == pytest.approx(2 / 3)


def test_the_majority_is_chosen() -> None:
    choice = kind("math").choose_candidate([7, 8, 8.0000001, 9])
    assert (choice.index, choice.agreement) == (1, 0.5)
    assert choice.votes == ((8, 0.5), (7, 0.25), (9, 0.25))
    assert kind("math").choose_candidate([7, 8]).index == 0, "the first of equals"
    assert kind("qa").choose_candidate(["Rome", "the Rome", "Paris"]).agreement == pytest.approx(2 / 3)


def test_the_medoid_is_chosen_among_texts() -> None:
    texts = ["buy a blue car", "the old house is red", "the old house was red", "the old house was painted red"]
    choice = kind("generation").choose_candidate(texts)
    assert texts[choice.index] == "the old house was red"
    assert 0 < choice.agreement < 1
    assert choice.votes == ()
    assert kind("summarization").choose_candidate(["one"]).agreement == 1


answers = st.sampled_from(["7", "7.0", 7, "8", 8.5])


@given(st.lists(answers, min_size=1, max_size=9))
def test_the_chosen_answer_is_one_of_the_samples(samples: list[Any]) -> None:
    one = kind("math")
    found = [one.canonicalize(s, Question()) for s in samples]
    choice = one.choose_candidate(found)
    assert choice.agreement == sum(one.are_equal(found[choice.index], f) for f in found) / len(found)
    assert sum(share for _, share in choice.votes) == pytest.approx(1)
    assert choice.agreement == max(share for _, share in choice.votes)


@settings(deadline=None)  # the first example loads the libraries
@given(st.text(max_size=60), st.text(max_size=60))
def test_similarity_is_a_share_and_one_for_equal_texts(a: str, b: str) -> None:
    for similarity in (compute_token_f1, compute_rouge_l, compute_chrf):
        assert 0 <= similarity(a, b) <= 1
        assert similarity(a, a) == 1
    assert compute_rouge_l(a, b) == pytest.approx(compute_rouge_l(b, a))


def test_similarity_of_known_pairs() -> None:
    assert compute_rouge_l("the cat sat", "the cat was here") == pytest.approx(4 / 7)
    assert compute_token_f1("cat sat", "sat cat") == 1
    assert compute_rouge_l("cat sat", "sat cat") == pytest.approx(0.5)
    assert 0 < compute_chrf("Häuser", "Haus") < 1
    assert compute_chrf("", "Haus") == 0
    assert compute_rouge_l("το σπίτι", "το παλιό σπίτι") == pytest.approx(4 / 5), "words of every script"


def test_similarity_of_english_is_that_of_the_libraries() -> None:
    text, reference = "The refund (for 2 rides) was paid at 10:15!", "The refund for two rides wasn't paid until 10:30."
    assert compute_rouge_l(text, reference) == load_rouge_scorer()(["rougeL"]).score(reference, text)["rougeL"].fmeasure
    assert compute_chrf(text, reference) == load_sacrebleu().sentence_chrf(text, [reference]).score / 100


def test_rouge_score_closes_no_stream_when_logging_is_configured_again() -> None:
    code = (
        "import contextlib, io, logging, logging.config\n"
        "from distill_dagster.kinds.similarity import compute_rouge_l\n"
        "stream = io.StringIO()\n"
        "with contextlib.redirect_stderr(stream): compute_rouge_l('a b', 'a c')\n"
        "logging.config.dictConfig({'version': 1})\n"
        "assert not stream.closed"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("thread", [False, True])
def test_sacrebleu_leaves_signals_as_they_are_and_is_loaded_in_any_thread(thread: bool) -> None:
    code = (
        "import signal; from threading import Thread; from distill_dagster.kinds.similarity import compute_chrf\n"
        "found = []; work = lambda: found.append(compute_chrf('a b', 'a c'))\n"
        f"t = Thread(target=work); {thread} and (t.start(), t.join()) or work()\n"
        "assert found and signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN, signal.getsignal(signal.SIGPIPE)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_value_is_an_answer_or_has_a_reason(value: Any) -> None:
    for name in KINDS:
        one = kind(name)
        try:
            found = one.canonicalize(value, Question())
        except InvalidAnswerError:
            continue
        assert one.canonicalize(found, Question()) == found
        assert one.are_equal(found, json.loads(json.dumps(found)))
