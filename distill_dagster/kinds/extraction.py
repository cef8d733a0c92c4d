"""extraction: a JSON value by the task's `answer_schema`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from distill_dagster.core.hashing import canonical_json
from distill_dagster.core.json_schema import answer_problem
from distill_dagster.core.json_text import json_in
from distill_dagster.kinds.base import InvalidAnswer, Kind, Question, folded, is_refusal
from distill_dagster.kinds.similarity import bag_f1


class Extraction(Kind):
    """Scored by F1 over fields: pairs of a path and a value, where a list's elements have no order."""

    answer_kind = "object"
    metric = "field_f1"
    second = "exact_match"
    one_line = False

    def schema(self) -> dict[str, Any]:
        return dict(self.task.answer_schema or {})

    def canonical(self, value: Any, question: Question) -> Any:
        found = json_in(value) if isinstance(value, str) else value
        if found is None:
            raise InvalidAnswer("the answer holds no JSON object")
        plain = plain_value(found)
        if why := answer_problem(plain, self.schema()):
            raise InvalidAnswer(f"the answer does not fit answer_schema: {why}")
        return plain

    def _equal(self, first: Any, second: Any) -> bool:
        return canonical_json(_compared(first)) == canonical_json(_compared(second))

    def score(self, answer: Any, reference: Any) -> float:
        if answer is None or is_refusal(answer) or is_refusal(reference):
            return super().score(answer, reference)
        return bag_f1(_fields(_compared(answer)), _fields(_compared(reference)))

    def second_score(self, answer: Any, reference: Any) -> float:
        return super().score(answer, reference)


def plain_value(value: Any) -> Any:
    """White space at the ends of texts removed, and 3.0 written as 3: one form for what means the same."""
    if isinstance(value, dict):
        return {str(name): plain_value(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain_value(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value.strip() if isinstance(value, str) else value


def _compared(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _compared(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_compared(inner) for inner in value]
    return folded(value) if isinstance(value, str) else value


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _fields(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from _fields(inner, f"{path}[]")
    elif value is not None:  # a field that is null says as much as one that is left out
        yield path, canonical_json(value)
