"""Extraction: an answer is a JSON value that fits the task's `answer_schema`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.core.json_schema import find_answer_problem
from distill_dagster.core.json_text import read_json
from distill_dagster.kinds.base import InvalidAnswerError, Kind, Question, fold_unicode
from distill_dagster.kinds.similarity import compute_bag_f1


class ExtractionKind(Kind):
    """Scored by F1 over fields, which are pairs of a path and a value. The order of a list does not count."""

    answer_kind = "object"
    metric = "field_f1"
    second_metric = "exact_match"
    one_line = False

    def build_schema(self) -> dict[str, Any]:
        return dict(self.task.answer_schema or {})

    def canonicalize(self, value: Any, question: Question) -> Any:
        if not isinstance(value, str):
            return self._fit(value)
        found = read_json(value)
        if found.is_cut:
            raise InvalidAnswerError("the JSON of the answer is cut")
        if not found.values:
            raise InvalidAnswerError("the answer contains no JSON object")
        fitting: dict[str, Any] = {}
        problems: list[InvalidAnswerError] = []
        for one in found.values:
            try:
                plain = self._fit(one)
                fitting[to_canonical_json(plain)] = plain
            except InvalidAnswerError as error:
                problems.append(error)
        if len(fitting) > 1:
            raise InvalidAnswerError("the answer contains several different objects that fit answer_schema")
        if not fitting:
            raise problems[0]
        return next(iter(fitting.values()))

    def _fit(self, value: Any) -> Any:
        plain = simplify_value(value)
        if why := find_answer_problem(plain, self.build_schema()):
            raise InvalidAnswerError(f"the answer does not fit answer_schema: {why}")
        return plain

    def _are_equal(self, first: Any, second: Any) -> bool:
        return to_canonical_json(_fold_value(first)) == to_canonical_json(_fold_value(second))

    def score(self, answer: Any, reference: Any) -> float:
        return self._score_by(_compute_field_f1, answer, reference)

    def score_second(self, answer: Any, reference: Any) -> float:
        return super().score(answer, reference)


def _compute_field_f1(answer: Any, reference: Any) -> float:
    return compute_bag_f1(_walk_fields(_fold_value(answer)), _walk_fields(_fold_value(reference)))


def simplify_value(value: Any) -> Any:
    """Strip texts and write 3.0 as 3, so that values with the same meaning have one form."""
    if isinstance(value, dict):
        return {str(name): simplify_value(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [simplify_value(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value.strip() if isinstance(value, str) else value


def _fold_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _fold_value(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_fold_value(inner) for inner in value]
    return fold_unicode(value) if isinstance(value, str) else value


def _walk_fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _walk_fields(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from _walk_fields(inner, f"{path}[]")
    elif value is not None:  # a field that is null counts like one that is left out
        yield path, to_canonical_json(value)
