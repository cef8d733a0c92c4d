"""Kinds that answer with a text: summarization, conversation, generation.

Of several samples the medoid is the candidate: the text most like all the others, so that no outlier stands for them
(as in minimum Bayes risk decoding, Kumar and Byrne 2004). Its agreement is its mean likeness to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from distill_dagster.kinds.base import InvalidAnswerError, Kind, MajorityVote, Question, fold_unicode
from distill_dagster.kinds.refusals import is_refusal
from distill_dagster.kinds.similarity import compute_chrf, compute_rouge_l, compute_token_f1


class FreeTextKind(Kind):
    answer_kind = "text"
    one_line = False
    structured = False
    second_metric = "token_f1"
    like: Callable[[str, str], float]

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
        if answer is None or is_refusal(answer) or is_refusal(reference):
            return super().score(answer, reference)
        return type(self).like(answer, reference)

    def score_second(self, answer: Any, reference: Any) -> float:
        if answer is None or is_refusal(answer) or is_refusal(reference):
            return super().score(answer, reference)
        return compute_token_f1(answer, reference)

    def choose_candidate(self, answers: Sequence[Any]) -> MajorityVote:
        if len(answers) == 1:
            return MajorityVote(0, 1.0)
        mean = [
            sum(self.score_second(a, b) for j, b in enumerate(answers) if i != j) / (len(answers) - 1)
            for i, a in enumerate(answers)
        ]
        best = max(range(len(answers)), key=lambda i: mean[i])
        return MajorityVote(best, mean[best])


class SummaryKind(FreeTextKind):
    """ROUGE-L against a reference summary."""

    metric = "rouge_l"
    like = staticmethod(compute_rouge_l)


class ConversationKind(FreeTextKind):
    """The next turn of a conversation."""

    metric = "rouge_l"
    like = staticmethod(compute_rouge_l)


class GenerationKind(FreeTextKind):
    """Rewrites, drafts, translations: characters are compared, so that word endings and other scripts count."""

    metric = "chrf"
    like = staticmethod(compute_chrf)
