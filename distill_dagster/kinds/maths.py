"""math: the answer is one number, written as such or as arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from distill_dagster.kinds.arithmetic import NotANumberError, parse_number
from distill_dagster.kinds.base import InvalidAnswerError, Kind, Question

RESULT_MARKS = ("####", "answer is", "answer:")
"""What a result is announced by where a model does not keep to the format; looked for without regard to case."""


class MathKind(Kind):
    answer_kind = "number"

    def build_schema(self) -> dict[str, Any]:
        return {"type": "number"}

    def canonicalize(self, value: Any, question: Question) -> int | float:
        """A whole number as int, any other rounded to 12 significant digits."""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InvalidAnswerError("the answer is not a number")
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidAnswerError("the answer is not a finite number")
        try:
            exact = parse_number(_extract_result(value)) if isinstance(value, str) else Fraction(str(value))
            number = float(exact)
        except (NotANumberError, OverflowError) as error:
            raise InvalidAnswerError(f"the answer is not a number: {error} in {str(value)[:80]!r}") from None
        return int(exact) if exact.denominator == 1 else float(f"{number:.12g}")

    def _are_equal(self, first: Any, second: Any) -> bool:
        tolerance = self.task.answer.tolerance
        try:
            return math.isclose(first, second, rel_tol=tolerance, abs_tol=tolerance)
        except OverflowError:  # whole numbers that no float can hold
            return bool(first == second)


def _extract_result(text: str) -> str:
    """What stands behind the last mark on its line, else the whole text."""
    lower = text.lower()
    end, mark = max((lower.rfind(m), m) for m in RESULT_MARKS)
    if end < 0:
        return text
    rest = text[end + len(mark) :].lstrip(" :*")
    return (rest.splitlines() or [""])[0]
