"""The base class of kinds whose answer is a free text: summarization, conversation and generation.

The candidate among several samples is the medoid: the text most similar to all the others. So no outlier is chosen, as
in minimum Bayes risk decoding (Kumar and Byrne 2004). Its agreement is its mean similarity to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from distill_dagster.kinds.base import InvalidAnswerError, Kind, MajorityVote, Question, fold_unicode
from distill_dagster.kinds.similarity import compute_token_f1


class FreeTextKind(Kind):
    """Equal except for case and white space."""

    answer_kind = "text"
    one_line = False
    structured = False
    second_metric = "token_f1"
    similarity: Callable[[str, str], float]
    """How similar a text is to a reference, 0 to 1."""

    def build_schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}

    def canonicalize(self, value: Any, question: Question) -> str:
        if not isinstance(value, str):
            raise InvalidAnswerError("the answer is not a text")
        text = "\n".join(line.rstrip() for line in value.strip().splitlines())
        if not text:
            raise InvalidAnswerError("the answer is empty")
        return text

    def _are_equal(self, first: Any, second: Any) -> bool:
        return fold_unicode(first).casefold() == fold_unicode(second).casefold()

    def score(self, answer: Any, reference: Any) -> float:
        return self._score_by(type(self).similarity, answer, reference)

    def score_second(self, answer: Any, reference: Any) -> float:
        return self._score_by(compute_token_f1, answer, reference)

    def choose_candidate(self, answers: Sequence[Any]) -> MajorityVote:
        if len(answers) == 1:
            return MajorityVote(0, 1.0)
        mean = [
            sum(self.score_second(a, b) for j, b in enumerate(answers) if i != j) / (len(answers) - 1)
            for i, a in enumerate(answers)
        ]
        best = max(range(len(answers)), key=lambda i: mean[i])
        return MajorityVote(best, mean[best])
