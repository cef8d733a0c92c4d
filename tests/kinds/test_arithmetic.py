"""Numbers and arithmetic as models write them; nothing is ever evaluated as code."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_dagster.kinds.arithmetic import MAX_CHARS, NotANumberError, evaluate_expression, parse_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("-7", -7),
        ("(7 * 36)", 252),
        ("10 - (3 + 6)", 1),
        ("84 / 2", 42),
        ("1/3", Fraction(1, 3)),
        ("2 ** 10", 1024),
        ("2^10", 1024),
        ("$1,250.50", Fraction("1250.5")),
        ("1,000,000", 1_000_000),
        ("3 × 4", 12),
        ("3 x 4", 12),
        ("12 ÷ 5", Fraction("2.4")),
        ("48 / 2 = 24", 24),
        ("5 dollars + 3 dollars = 8 dollars", 8),
        ("36 marbles", 36),
        ("She has 7 apples.", 7),
        ("**12**", 12),
        ("so it is \\boxed{12}", 12),
        ("\\boxed{1{,}234}", 1234),
        ("\\boxed{3 * (4 + 1)}", 15),
        ("0.1 + 0.2", Fraction("0.3")),
        ("007", 7),
        ("25%", 25),
        ("6.", 6),
    ],
)
def test_values(text: str, value: int | Fraction) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no number"),
        ("none", "no number"),
        ("7 rows of 36", "several numbers"),
        ("3:30", "several numbers"),
        ("1 / 0", "division by zero"),
        ("9 ** 9 ** 9", "power"),
        ("2 ** 0.5", "power"),
        ("(((1)", "not an arithmetic expression"),
        ("9" * 100 + " ** 9", "too large"),
        ("1 + " * 60 + "1", "longer than"),
        ("9 ** 64 ** 64", "too large|power"),
    ],
)
def test_a_text_without_exactly_one_number_has_a_reason(text: str, why: str) -> None:
    with pytest.raises(NotANumberError, match=why):
        parse_number(text)


@pytest.mark.parametrize(
    "text", ["__import__('os')", "(lambda: 1)()", "[1][0]", "True", "1 if 1 else 2", "1e9", "1_000", "a", "1 < 2", "1j"]
)
def test_only_arithmetic_is_accepted(text: str) -> None:
    with pytest.raises(NotANumberError):
        evaluate_expression(text)


numbers = st.integers(0, 999).map(str)
expressions = st.recursive(
    numbers, lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})")
)


@given(expressions.filter(lambda text: len(text) <= MAX_CHARS))
def test_values_equal_those_of_python(text: str) -> None:
    try:
        found = evaluate_expression(text)
    except NotANumberError:
        assert abs(eval(text)) > 2**900, "generated above: digits, brackets, + - *"
        return
    assert found == eval(text)


@given(st.text(max_size=220) | st.text("0123456789+-*/().=$, x^{}\\boxed", max_size=220))
def test_any_text_is_a_number_or_a_reason(text: str) -> None:
    try:
        found = parse_number(text)
    except NotANumberError:
        return
    assert isinstance(found, Fraction)
