"""The few-shot examples of a prompt: fixed, or nearest by embeddings."""

from __future__ import annotations

import numpy as np
import pytest

from distill_dagster.config import FewShotSpec
from distill_dagster.prompts.example_choice import FixedExamples, NearestExamples, build_example_choice
from distill_dagster.prompts.few_shot import FewShotExample, build_draws

WORDS = ("refund", "delivery", "login", "late", "twice")
POOL = [
    FewShotExample("e1", "refund twice", "refund"),
    FewShotExample("e2", "refund late", "refund"),
    FewShotExample("e3", "delivery late", "delivery"),
    FewShotExample("e4", "delivery", "delivery"),
    FewShotExample("e5", "login twice", "login"),
]


def embed(texts: list[str]) -> np.ndarray:
    """Which words a text has, with length 1."""
    counts = np.array([[word in text.casefold() for word in WORDS] for text in texts], dtype=np.float32)
    return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


def nearest(pool: list[FewShotExample] = POOL, **few_shot: int) -> NearestExamples:
    return NearestExamples(pool, FewShotSpec(**few_shot), embed)


def ids(found: list[FewShotExample]) -> list[str]:
    return [example.id for example in found]


def test_the_nearest_examples_are_chosen_and_the_most_similar_is_last() -> None:
    assert ids(nearest(nearest=3, draws=1).choose("my refund is late", 0)) == ["e3", "e1", "e2"]


def test_draws_take_turns_so_that_all_are_about_as_near() -> None:
    choice = nearest(nearest=2, draws=2)
    assert ids(choice.choose("my refund is late", 0)) == ["e3", "e2"]
    assert ids(choice.choose("my refund is late", 1)) == ["e4", "e1"]


def test_an_example_with_the_prompts_own_text_is_left_out() -> None:
    assert "e2" not in ids(nearest(nearest=5, draws=1).choose("  Refund  LATE ", 0))


def test_ties_go_to_the_smaller_id_whatever_the_order_of_the_pool() -> None:
    for pool in (POOL, POOL[::-1]):
        assert ids(nearest(pool, nearest=2, draws=1).choose("twice", 0)) == ["e5", "e1"]


def test_preparing_many_prompts_embeds_each_once() -> None:
    seen: list[list[str]] = []

    def counting(texts: list[str]) -> np.ndarray:
        seen.append(texts)
        return embed(texts)

    choice = NearestExamples(POOL, FewShotSpec(nearest=2, draws=1), counting)
    choice.prepare(["a refund", "a login", "a refund"])
    for text in ("a refund", "a login"):
        assert len(choice.choose(text, 0)) == 2
    assert seen == [[example.text for example in POOL], ["a refund", "a login"]]


def test_an_empty_pool_gives_no_examples() -> None:
    assert nearest([], nearest=3, draws=1).choose("a refund", 0) == []


@pytest.mark.parametrize("few_shot", [FewShotSpec(per_label=1, draws=2), FewShotSpec(nearest=2, draws=1)])
def test_the_choice_follows_the_settings(few_shot: FewShotSpec) -> None:
    labels = ["refund", "delivery", "login"]
    choice = build_example_choice(POOL, labels, few_shot, embed)
    if few_shot.nearest:
        assert isinstance(choice, NearestExamples)
    else:
        assert isinstance(choice, FixedExamples)
        assert choice.choose("anything", 1) == build_draws(POOL, labels, few_shot)[1]
