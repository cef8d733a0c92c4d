"""Labels read from texts and from token log-probabilities of models that think first."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_dagster.kinds import ParsedAnswer
from distill_dagster.kinds.classification import parse_label
from distill_dagster.kinds.reading import CUT, STILL_THINKING
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.teacher.asking.ask import run_ask
from distill_dagster.teacher.asking.label_answers import read_label, skip_thinking
from distill_dagster.teacher.asking.soft_labels import LEAST_MASS, LEAST_MASS_UNCHOSEN, compute_label_mass
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers.exchange import Position
from tests.support.provider import FakeProvider, Fault
from tests.support.task import build_asker, write_small_task

LABELS = ["refund", "login", "data", "data loss"]


def read(text: str, cut: bool = False) -> ParsedAnswer:
    return read_label(text, LABELS, cut=cut)


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("<think>\n", "\n</think>\n\n"),
        ("", "</think>"),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("analysis", "assistantfinal"),
    ],
)
@pytest.mark.parametrize("thought", ["Login is not the matter.", "Refund or data loss?", "İade?", "Hm."])
def test_a_label_in_the_thinking_is_no_answer(opening: str, closing: str, thought: str) -> None:
    assert read(f"{opening}{thought}{closing}refund") == ParsedAnswer("ok", '"refund"', thought)


@pytest.mark.parametrize("opening", ["<think>", "[THINK]", "<|channel|>analysis<|message|>"])
@pytest.mark.parametrize("cut", [False, True])
def test_thinking_that_never_ended_is_truncated(opening: str, cut: bool) -> None:
    found = read(f"{opening}\nThe customer cannot log in? No, login is not meant", cut)
    assert (found.status, found.answer, found.error) == ("truncated", None, STILL_THINKING)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("refund", "refund"),
        ("refund, because the parcel", "refund"),
        ("**Refund**\nThe parcel", "refund"),
        ("data loss since", "data loss"),
        ("The customer asks about login. But it", None),
        ("data", None),
        ("data lo", None),
        ('"dat', None),
        ("", None),
    ],
)
def test_a_cut_text_names_the_label_that_it_begins_with(text: str, label: str | None) -> None:
    found = read(text, cut=True)
    assert found.answer == (None if label is None else json.dumps(label))
    assert (found.status == "ok") == (label is not None)
    assert label is not None or found.error in (CUT, STILL_THINKING)


def test_a_text_without_a_label_says_so() -> None:
    assert read("something else") == ParsedAnswer("ok", None, None, "no label is named in 'something else'")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ('{"label": "refund"}', "refund"),
        ('Here it is:\n```json\n{"label": "refund", "why": "it is not about login"}\n```', "refund"),
        ('{"category": "login", "not": "refund"}', "login"),
        ('{"first": "login", "second": "refund"}', None),
        ('{"reasoning": "login", "label": "refund"}', "refund"),
        ("Thinking: login?\nFinal answer: refund", "refund"),
        ("It is not about login.\n\n**Category:** refund\nSo no login.", "refund"),
        ("login or refund\nLabel: login or refund", "login"),
        ("It may be login.\nLabel: none", None),
        ("<answer>refund</answer>\nNot login.", "refund"),
        ("“refund”", "refund"),
        ("İADE", "iade"),
        ("iade", "iade"),
    ],
)
def test_a_label_is_found_where_it_stands(text: str, label: str | None) -> None:
    assert parse_label(text, ["refund", "login", "iade"]) == label


@given(st.sampled_from(LABELS), st.text(st.characters(categories=["L", "N", "Zs"]), max_size=40))
def test_any_thought_before_any_label(label: str, thought: str) -> None:
    found = read(f"<think>{thought} login or refund</think>{label}")
    assert found.answer == json.dumps(label)


def position(*tokens: tuple[str, float]) -> Position:
    return [(token, math.log(share)) for token, share in tokens]


def test_positions_after_the_thinking_are_those_of_the_answer() -> None:
    answer = [position(("refund", 0.75), ("login", 0.25))]
    thinking = [position((token, 0.9), ("login", 0.1)) for token in ("<think>", "Log", "in", "?", "</think>", "\n\n")]
    assert skip_thinking([*thinking, *answer]) == (answer, "Login?")
    assert skip_thinking(answer) == (answer, None)
    assert skip_thinking(thinking[:3]) == (None, "Login")
    assert skip_thinking(thinking) == ([], "Login?")
    assert skip_thinking([]) == ([], None)


@pytest.mark.parametrize(
    ("tokens", "is_answer"),
    [
        ([("<x>", 0.9), ("refund", 0.0025)], False),
        ([("The", 0.6), ("refund", 0.3)], False),
        ([("The", 0.4), ("refund", 0.3), ("login", 0.25)], True),
        ([("refund", 0.2), ("login", 0.05)], True),
        ([("refund", 0.015), ("The", 0.014)], False),
    ],
)
def test_an_answer_needs_a_share_of_the_mass(tokens: list[tuple[str, float]], is_answer: bool) -> None:
    mass = compute_label_mass([position(*tokens)], LABELS)
    assert (mass.total >= mass.least) is is_answer
    assert mass.least == (LEAST_MASS if mass.chosen else LEAST_MASS_UNCHOSEN)


def build_body(text: str, positions: list[list[tuple[str, float]]], finish: str = "length") -> str:
    content = [
        {
            "token": tokens[0][0],
            "logprob": math.log(tokens[0][1]),
            "top_logprobs": [{"token": token, "logprob": math.log(share)} for token, share in tokens],
        }
        for tokens in positions
    ]
    message = {"role": "assistant", "content": text}
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "message": message}
    choice |= {"logprobs": {"content": content}} if content else {}
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    return json.dumps({"id": "r", "object": "chat.completion", "created": 1, "choices": [choice], "usage": usage})


@pytest.mark.parametrize(
    ("soft_labels", "body", "status", "answer", "error"),
    [
        ("votes", build_body("<think>\nNo, login is not", []), "truncated", None, STILL_THINKING),
        ("votes", build_body("Login is not meant.</think>refund", [], "stop"), "ok", '"refund"', None),
        (
            "logprobs",
            build_body("<think>\nThe", [[("<think>", 0.99), ("login", 0.0025)], [("\n", 1.0)], [("The", 0.9)]]),
            "truncated",
            None,
            STILL_THINKING,
        ),
        (
            "logprobs",
            build_body("It is", [[("It", 0.99), ("login", 0.0025)], [(" is", 1.0)]]),
            "ok",
            None,
            "no label was begun: all labels have 0.25% of the probability, less than 50%",
        ),
        (
            "logprobs",
            build_body(
                "<think>No login</think>refund",
                [[("<think>", 0.9)], [("No", 0.9)], [(" login", 0.9)], [("</think>", 1.0)], [("refund", 0.9)]],
                "stop",
            ),
            "ok",
            '"refund"',
            None,
        ),
    ],
)
def test_a_teacher_that_thinks_in_its_text(
    tmp_path: Path, soft_labels: str, body: str, status: str, answer: str | None, error: str | None
) -> None:
    with FakeProvider(["refund", "login"], fail=lambda seen, times: Fault(body=body)) as provider:
        settings = {"api_base": provider.url, "api": "chat", "soft_labels": soft_labels, "reasks": 0, "min_success": 0}
        folder = write_small_task(tmp_path, teacher=settings)
        store = CompletionStore.open_in_folder(tmp_path / "store")
        prompts = build_seed_prompts("shop", folder.read_slice("shop"), answers=False)
        rows = run_ask(build_asker(folder, store), prompts).completions.to_dicts()
        store.close()
    assert {(row["status"], row["answer"], row["error"]) for row in rows} == {(status, answer, error)}
    assert all((row["soft_labels"] is None) == (answer is None or soft_labels == "votes") for row in rows)
