"""The turns of a prompt: as text, one by one or as a column, and with the answer after them."""

from __future__ import annotations

import unicodedata

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from distill_dagster.core.text import normalize_text
from distill_dagster.prompts.seeds import compute_prompt_id
from distill_dagster.tables.messages import (
    append_answer,
    format_messages,
    get_user_text,
    make_message,
    make_user_messages,
    normalized_expr,
    split_answer,
    user_text_expr,
)
from distill_dagster.tables.schemas import PROMPTS, build_frame

TURNS = [
    make_message(role, content)
    for role, content in (("system", "rules"), ("user", "first"), ("assistant", "answer"), ("user", "second"))
]


def test_the_query_and_the_function_fold_every_character_alike() -> None:
    """`normalize` builds the keys of golden and dev, `normalized_expr` those they are compared with."""
    known = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs")]
    texts = [f"A {c} b{c}" for c in known]
    folded = pl.DataFrame({"text": texts}).select(normalized_expr(pl.col("text")))["text"].to_list()
    assert [(c, a) for c, t, a in zip(known, texts, folded, strict=True) if a != normalize_text(t)] == []


@given(st.text(), st.text(alphabet=" \t\n\u3000\u00a0\x1f", min_size=1))
def test_folding_a_text_ignores_the_white_space_around_and_within(text: str, space: str) -> None:
    folded = pl.DataFrame({"t": [space + text.replace(" ", space) + space]}).select(normalized_expr(pl.col("t")))
    assert folded["t"].to_list() == [normalize_text(text)]


def test_the_text_of_a_prompt_is_its_user_turns() -> None:
    rows = [dict.fromkeys(PROMPTS) | {"prompt_id": "p", "messages": TURNS}]
    prompts = build_frame(rows, PROMPTS, ("prompt_id",))
    assert get_user_text(TURNS) == "first\nsecond"
    assert prompts.select(user_text_expr()).item() == "first\nsecond"


def test_a_conversation_is_one_text_with_its_roles() -> None:
    assert format_messages(make_user_messages("only this")) == "only this"
    assert format_messages(TURNS) == "System: rules\nUser: first\nAssistant: answer\nUser: second"


def test_an_answer_is_appended_and_split_off() -> None:
    with_answer = append_answer(TURNS, "the answer")
    assert with_answer[:-1] == TURNS
    assert (with_answer[-1]["role"], with_answer[-1]["content"]) == ("assistant", "the answer")
    assert split_answer(with_answer) == (TURNS, "the answer")


def test_a_prompt_id_reads_messages_and_tools_alone() -> None:
    assert compute_prompt_id(make_user_messages("a")) == compute_prompt_id(make_user_messages("a"))
    assert (
        len(
            {
                compute_prompt_id(make_user_messages("a")),
                compute_prompt_id(make_user_messages("b")),
                compute_prompt_id(make_user_messages("a"), "[]"),
            }
        )
        == 3
    )
