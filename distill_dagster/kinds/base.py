"""The base class of kinds: what a kind of task knows about its answers."""

from __future__ import annotations

import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill_dagster.kinds.refusals import REFUSAL_KEY, is_refusal

if TYPE_CHECKING:
    from distill_dagster.config import Task

REASONING_MARK, ANSWER_MARK = "Reasoning:", "Answer:"
"""Reasoning first, then the answer: the form of few-shot examples, of raw completions and of what students write."""


class InvalidAnswerError(Exception):
    """A value is not an answer of this kind. The message says why, as a phrase for the `error` column."""


@dataclass(frozen=True)
class Question:
    """What an answer is read against.

    `text` is the prompt, which may list options to choose from. `refusal_wanted`: only a refusal is a right answer.
    """

    text: str = ""
    refusal_wanted: bool = False


@dataclass(frozen=True)
class MajorityVote:
    """The candidate among several samples.

    `index` is the position of the chosen sample. `agreement` says how far the samples agree with it, 0 to 1. `votes`
    has each distinct answer with its share, the most frequent first; it is empty for free texts, which rarely repeat.
    """

    index: int
    agreement: float
    votes: tuple[tuple[Any, float], ...] = ()


class Kind(ABC):
    """One kind of task, with the settings of one task. Answers are JSON values as `canonicalize` returns them."""

    answer_kind: str
    """The value of the `answer_kind` column: label, number, text, object or tool_calls."""
    metric: str = "accuracy"
    """The name of what a report measures: the mean of `score` over items."""
    second_metric: str | None = None
    """The name of a second figure, the mean of `score_second`; None for kinds without one."""
    has_labels = False
    """Answers are labels of the task, so soft labels, encoder students and confusion tables make sense."""
    one_line = True
    """An answer ends with its line. What a model writes below it is ignored."""
    structured = True
    """The teacher is asked for JSON even without reasoning. Otherwise an answer without reasoning is plain text."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @abstractmethod
    def build_schema(self) -> dict[str, Any]:
        """Return the JSON schema of an answer, without reasoning."""

    @abstractmethod
    def canonicalize(self, value: Any, question: Question) -> Any:
        """Return a text or a JSON value that a model gave as an answer in this kind's canonical form.

        Raises:
            InvalidAnswerError: the value is not an answer of this kind.
        """

    def are_equal(self, first: Any, second: Any) -> bool:
        """Whether two canonical answers are equal. All refusals are equal; a refusal never equals an answer."""
        if is_refusal(first) or is_refusal(second):
            return is_refusal(first) and is_refusal(second)
        return self._are_equal(first, second)

    def _are_equal(self, first: Any, second: Any) -> bool:
        return bool(first == second)

    def score(self, answer: Any, reference: Any) -> float:
        """Score an answer against a reference, 0 to 1: `metric` for one item. A missing answer (None) scores 0."""
        return float(answer is not None and self.are_equal(answer, reference))

    def score_second(self, answer: Any, reference: Any) -> float:
        """Score an answer against a reference, 0 to 1: `second_metric` for one item."""
        raise NotImplementedError(f"{type(self).__name__} has no second metric")

    def _score_by(self, similarity: Callable[[Any, Any], float], answer: Any, reference: Any) -> float:
        """Score by a similarity, or by equality if the answer is missing or one of the two is a refusal."""
        if answer is None or is_refusal(answer) or is_refusal(reference):
            return Kind.score(self, answer, reference)
        return similarity(answer, reference)

    def choose_candidate(self, answers: Sequence[Any]) -> MajorityVote:
        """Choose the candidate among samples: by default the most frequent answer, the first one on a tie."""
        return find_majority(answers, self.are_equal)

    def format_answer(self, answer: Any) -> str:
        """Format an answer as the text that follows `Answer:` in few-shot examples and in students' output."""
        if is_refusal(answer):
            return str(answer[REFUSAL_KEY])
        return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)

    def format_target(self, answer: str, reasoning: str | None) -> str:
        """Format what a student learns to write: the answer, after its reasoning if the task has reasoning.

        Students of kinds with labels choose one, so their target is only the label. A student with
        `students.<name>.reasoning` puts the reasoning before the label itself.

        Args:
            answer: canonical JSON text.
        """
        words = self.format_answer(json.loads(answer))
        if self.has_labels:
            return words
        return format_with_reasoning(reasoning if self.task.reasoning else None, words)


def format_with_reasoning(reasoning: str | None, answer: str) -> str:
    """Format "Reasoning: …" with "Answer: …" below it, or only the answer if there is no reasoning."""
    return f"{REASONING_MARK} {reasoning.strip()}\n{ANSWER_MARK} {answer}" if reasoning else answer


def find_majority(answers: Sequence[Any], are_equal: Callable[[Any, Any], bool]) -> MajorityVote:
    """Find the largest group of equal answers; on a tie, the group whose first member came first.

    Equality need not be transitive (numbers within a tolerance), so an answer joins the first group whose first member
    it equals.
    """
    groups: list[list[int]] = []
    for index, answer in enumerate(answers):
        group = next((g for g in groups if are_equal(answers[g[0]], answer)), None)
        if group is None:
            groups.append([index])
        else:
            group.append(index)
    groups.sort(key=lambda g: -len(g))
    votes = tuple((answers[g[0]], len(g) / len(answers)) for g in groups)
    return MajorityVote(groups[0][0], votes[0][1], votes)


def fold_unicode(text: str) -> str:
    """Normalize to Unicode NFKC and collapse white space to single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).split())
