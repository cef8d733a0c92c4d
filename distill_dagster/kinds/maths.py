"""Math: an answer is one number, written as a number or as arithmetic."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

from distill_dagster.kinds.arithmetic import NotANumberError, parse_number
from distill_dagster.kinds.base import InvalidAnswerError, Kind, Question

_RESULT_MARK = re.compile(r"####|answer is|answer:", re.IGNORECASE | re.ASCII)
"""Texts before a result, for models that ignore the format."""


class MathKind(Kind):
    """Equal within `answer.tolerance`."""

    answer_kind = "number"

    def build_schema(self) -> dict[str, Any]:
        return {"type": "number"}

    def canonicalize(self, value: Any, question: Question) -> int | float:
        """Return a whole number as int, and any other rounded to 12 significant digits."""
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
        except OverflowError:  # whole numbers too large for a float
            return bool(first == second)


def _extract_result(text: str) -> str:
    """Return what follows the last mark on its line, or the whole text."""
    marks = list(_RESULT_MARK.finditer(text))
    if not marks:
        return text
    rest = text[marks[-1].end() :].lstrip(" :*")
    return (rest.splitlines() or [""])[0]
