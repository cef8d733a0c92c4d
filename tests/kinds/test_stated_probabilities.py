"""Probabilities as models and recordings state them, and the distributions that become of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from distill_dagster.kinds.stated_probabilities import LEAST_LEAD, build_distribution, parse_probabilities

LABELS = ["refund", "delivery", "login", "other"]
STATED = {"refund": 0.9, "login": 0.1}


@pytest.mark.parametrize(
    "value",
    [
        STATED,
        {"refund": "0.9", "login": "0,1"},
        {"refund": "90%", "login": "10 %"},
        {"refund": 0.9, "login": 0.1, "delivery": None},
        [["refund", 0.9], ["login", 0.1]],
        [["refund", 0.9], ["login", 0.1], ["refund", 0.9]],
        [{"label": "refund", "probability": 0.9}, {"label": "login", "probability": 0.1}],
        [{"category": "refund", "confidence": "90%"}, {"name": "login", "p": 0.1}],
        [{"refund": 0.9}, {"login": 0.1}],
        json.dumps(STATED),
    ],
)
def test_every_form_states_the_same_numbers(value: Any) -> None:
    assert parse_probabilities(value) == pytest.approx(STATED)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([0.9, 0.1], "no object"),
        ({}, "no object"),
        (0.9, "no object"),
        ("refund 0.9", "not JSON"),
        ({"refund": None}, "no number"),
        ({"refund": "high"}, "'high' for 'refund'"),
        ({"refund": True}, "'refund'"),
        ({"refund": -0.1}, "-0.1 for 'refund'"),
        ({"refund": float("nan")}, "nan"),
        ({"refund": 10**400}, "inf"),
        ([{"label": "refund"}], "no object"),
    ],
)
def test_other_forms_are_refused_with_a_reason(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_probabilities(value)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"refund": 0.9, "login": 0.1}, {"refund": 0.9, "login": 0.1}),
        ({"Refund ": 0.9, '"LOGIN"': 0.1}, {"refund": 0.9, "login": 0.1}),
        ({"refund": 90, "login": 10}, {"refund": 0.9, "login": 0.1}),
        ({"refund": 9, "login": 1}, {"refund": 0.9, "login": 0.1}),  # weights
        ({"refund": 0.9, "login": 0.6}, {"refund": 0.6, "login": 0.4}),  # each judged by itself
        ({"refund": 0.9, "nonsense": 0.1}, {"refund": 1.0}),
        ({"refund": 0.9, "login": 0.1, "Refund": 0.9}, {"refund": 0.9, "login": 0.1}),  # the first one counts
        ({"refund": 1.0, "login": 0.0}, {"refund": 1.0}),
        ({"refund": 0.33, "login": 0.33, "delivery": 0.33}, dict.fromkeys(("refund", "login", "delivery"), 1 / 3)),
        ({"refund": 0.7}, {"refund": 0.7, "delivery": 0.1, "login": 0.1, "other": 0.1}),
        ({"refund": 70, "login": 22}, {"refund": 0.7, "login": 0.22, "delivery": 0.04, "other": 0.04}),
        # what is not named never becomes more probable than what is
        ({"refund": 0.02, "login": 0.01}, {"refund": 0.4, "login": 0.2, "delivery": 0.2, "other": 0.2}),
    ],
)
def test_stated_numbers_become_a_distribution(stated: dict[str, float], expected: dict[str, float]) -> None:
    found = build_distribution(stated, LABELS)
    assert found == pytest.approx(expected)
    assert found is not None
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize("stated", [{}, {"nonsense": 1.0}, {"refund": 0.0}])
def test_without_a_number_for_a_label_there_is_no_distribution(stated: dict[str, float]) -> None:
    assert build_distribution(stated, LABELS, "refund") is None


def test_the_stated_label_is_the_likeliest() -> None:
    swapped = build_distribution({"refund": 0.2, "login": 0.5, "delivery": 0.3}, LABELS, "refund")
    assert swapped == pytest.approx({"refund": 0.5, "login": 0.2, "delivery": 0.3})
    unnamed = build_distribution({"login": 0.6, "delivery": 0.4}, LABELS, "refund")
    assert unnamed == pytest.approx({"refund": 0.6, "delivery": 0.4})
    tie = build_distribution({"login": 0.5, "refund": 0.5}, LABELS, "refund")
    assert tie == pytest.approx({"refund": 0.5, "login": 0.5}, abs=2 * LEAST_LEAD)
    assert tie is not None
    assert round(tie["refund"], 6) > round(tie["login"], 6)
    three = build_distribution({"login": 0.4, "delivery": 0.4, "refund": 0.2}, LABELS, "refund")
    assert three is not None
    assert max(three, key=lambda label: three[label]) == "refund"
    assert sum(three.values()) == pytest.approx(1)
