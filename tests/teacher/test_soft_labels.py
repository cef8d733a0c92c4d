"""From tokens to a distribution over labels: examples worked out by hand, and properties for any tokens."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_dagster.kinds.classification import parse_label
from distill_dagster.teacher.asking.soft_labels import (
    LabelMass,
    compute_label_mass,
    divide_shared,
    fill_missing_mass,
    normalize_mass,
)
from distill_dagster.teacher.providers.exchange import Position


def position(**shares: float) -> Position:
    """One position of an answer; `_` is a space, and the first token is the chosen one."""
    return [(token.replace("_", " "), math.log(share)) for token, share in shares.items()]


def mass(positions: list[Position], labels: list[str], **kwargs: object) -> tuple[dict[str, float], dict[str, float]]:
    found = compute_label_mass(positions, labels, **kwargs)  # type: ignore[arg-type]
    return ({k: round(v, 9) for k, v in found.labels.items()}, {k: round(v, 9) for k, v in found.shared.items()})


def test_first_tokens_that_tell_labels_apart() -> None:
    first = position(_refu=0.5, _deliv=0.25, _login=0.125, _hello=0.0625)
    assert mass([first], ["refund", "delivery", "login"]) == ({"refund": 0.5, "delivery": 0.25, "login": 0.125}, {})


def test_all_spellings_of_a_label_add_up() -> None:
    first = [(" card", -math.log(2)), ("card", -math.log(4)), (" CARD", -math.log(8)), (" login", -math.log(16))]
    assert mass([first], ["Card", "login"]) == ({"Card": 0.875, "login": 0.0625}, {})


def test_a_shorter_token_next_to_the_label_begins_another_word() -> None:
    first = position(_noti=0.5, _notifications=0.3, _n=0.1, _login=0.1)
    assert mass([first], ["notifications", "login"]) == ({"notifications": 0.3, "login": 0.1}, {})
    cut = position(_notif=0.5, _noti=0.1)
    assert mass([cut], ["notifications", "login"]) == ({"notifications": 0.5}, {})


def test_a_fragment_of_three_letters_says_nothing_but_a_whole_word_does() -> None:
    first = position(_not=0.5, _up=0.3, _data=0.1)
    assert mass([first], ["notifications", "up time", "data loss"]) == ({"up time": 0.3, "data loss": 0.1}, {})


def test_labels_that_are_not_listed_get_the_probability_of_the_least_likely_token() -> None:
    assert fill_missing_mass({"a": 0.5, "b": 0.0}, [("a", math.log(0.5)), ("x", math.log(0.125))]) == pytest.approx(
        {"a": 0.5, "b": 0.125}
    )


def test_white_space_before_the_answer_is_skipped() -> None:
    tokens = [[("\n", math.log(0.8)), (" refund", math.log(0.2))], position(refund=0.5, login=0.5)]
    assert mass(tokens, ["refund", "login"]) == ({"refund": 0.6, "login": 0.4}, {})


CARDS = ["card arrival", "card linking", "login"]


def test_the_next_token_separates_labels_with_the_same_first_token() -> None:
    tokens = [position(_card=0.8, _login=0.2), position(_arrival=0.75, _linking=0.25)]
    assert mass(tokens, CARDS) == ({"login": 0.2, "card arrival": 0.6, "card linking": 0.2}, {})


def test_mass_is_shared_if_the_answer_ends_before_labels_differ() -> None:
    found = compute_label_mass([position(_card=0.8, _login=0.2)], CARDS)
    assert found.labels == pytest.approx({"login": 0.2})
    assert found.shared == pytest.approx({"card": 0.8})
    assert divide_shared(found, CARDS) == pytest.approx({"card arrival": 0.4, "card linking": 0.4, "login": 0.2})


def test_a_branch_that_was_not_chosen_stays_shared() -> None:
    found = compute_label_mass([position(_login=0.6, _card=0.4)], CARDS)
    assert found.labels == pytest.approx({"login": 0.6})
    assert found.shared == pytest.approx({"card": 0.4})


def test_a_beginning_that_was_already_spelled_is_continued() -> None:
    assert mass([position(_linking=0.9, _arrival=0.1)], CARDS, spelled="card") == (
        {"card linking": 0.9, "card arrival": 0.1},
        {},
    )


DATA = ["data loss", "data", "login"]


@pytest.mark.parametrize("end", ["\n", ".", "</s>"])
def test_a_label_that_another_begins_with(end: str) -> None:
    tokens = [position(_data=1.0), [(end, math.log(0.75)), (" loss", math.log(0.25))]]
    found = compute_label_mass(tokens, DATA)
    assert found.labels == pytest.approx({"data": 0.75, "data loss": 0.25})


def test_an_answer_that_ended_is_the_short_label_and_one_that_was_cut_may_be_both() -> None:
    tokens = [position(_data=0.9, _login=0.1)]
    assert divide_shared(compute_label_mass(tokens, DATA, ended=True), DATA) == pytest.approx(
        {"data": 0.9, "data loss": 0, "login": 0.1}
    )
    assert divide_shared(compute_label_mass(tokens, DATA), DATA) == pytest.approx(
        {"data": 0.45, "data loss": 0.45, "login": 0.1}
    )


def test_a_folded_label_may_be_longer_than_the_label() -> None:
    assert mass([[("Straße", -0.0)], [("n", -0.0)]], ["Straße", "login"])[0] == {"Straße": 1.0}
    assert compute_label_mass([[("STRASSE,", -0.0)]], ["Straße", "login"]).labels == {"Straße": 1.0}


def test_words_that_only_begin_like_a_label_have_no_mass() -> None:
    assert mass([position(_login=0.5, _loginname=0.25, _logs=0.25)], ["login", "refund"]) == ({"login": 0.5}, {})


WORDS = st.sampled_from(
    ["card", "card arrival", "card linking", "data", "data loss", "Login", "ab", "abc", "a b", "straße"]
)
TOKEN = st.sampled_from(
    [" card", "card", "Card", " arr", "ival", " linking", " data", " loss", "\n", "", " ", "log", "in"]
)
LABELS = st.lists(WORDS, min_size=2, max_size=6, unique=True)


@st.composite
def answers(draw: st.DrawFn) -> list[Position]:
    """Up to four positions, each with shares that sum to at most 1; any of its tokens may be the chosen one."""
    out = []
    for _ in range(draw(st.integers(1, 4))):
        tokens = draw(st.lists(st.one_of(TOKEN, st.text(max_size=3)), min_size=1, max_size=6, unique=True))
        weights = [draw(st.floats(0.001, 1)) for _ in tokens]
        scale = draw(st.floats(0.1, 1)) / sum(weights)
        out.append([(token, math.log(weight * scale)) for token, weight in zip(tokens, weights, strict=True)])
    return out


@given(answers(), LABELS, st.booleans())
def test_mass_is_never_created(positions: list[Position], labels: list[str], ended: bool) -> None:
    given_ = sum(math.exp(lp) for _, lp in positions[0])
    found = compute_label_mass(positions, labels, ended=ended)
    total = sum(found.labels.values()) + sum(found.shared.values())
    assert total <= given_ + 1e-9
    assert set(found.labels) <= set(labels)
    divided = divide_shared(found, labels)
    assert sum(divided.values()) == pytest.approx(total)
    assert list(divided) == labels
    assert all(share >= 0 for share in divided.values())


@given(st.dictionaries(WORDS, st.floats(0, 1), min_size=1))
def test_normalized_shares_add_up_to_one(shares: dict[str, float]) -> None:
    found = normalize_mass(shares)
    if sum(shares.values()) > 1e-9:
        assert found is not None
        assert sum(found.values()) == pytest.approx(1)
        assert found[max(shares, key=lambda k: shares[k])] == max(found.values())
    else:
        assert found is None


def test_no_mass_is_no_distribution() -> None:
    assert normalize_mass(divide_shared(LabelMass(), ["a", "b"])) is None
    assert normalize_mass({}) is None


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("refund", "refund"),
        ("  Refund.\n", "refund"),
        ('"data loss"', "data loss"),
        ("**data loss**", "data loss"),
        ("\n\n`DATA`\nsince it is lost", "data"),
        ("data loss, since all is gone", "data loss"),
        ("data: the rest", "data"),
        ("refund or login", "refund"),
        ("The category is data loss.", "data loss"),
        ("I would say: login", "login"),
        ("It is about login or refund", None),
        ("database", None),
        ("refunds", None),
        ("", None),
        ("something else", None),
        ("c++", "c++"),
        ("It is c++.", "c++"),
        (".net", ".net"),
        ("- .NET\n", ".net"),
        ("an art or a party", None),
        ("a party", "party"),
    ],
)
def test_the_label_that_an_answer_names(text: str, label: str | None) -> None:
    assert parse_label(text, ["data", "data loss", "refund", "login", "c++", ".net", "art", "party"]) == label


@given(LABELS)
def test_every_label_names_itself(labels: list[str]) -> None:
    for label in labels:
        for text in (label, label.upper(), f" {label}\n", f'"{label}".', f"{label}\nbecause"):
            assert parse_label(text, labels) == label
