"""What a kind of task knows about its answers, and nothing of who is asked or how."""

from __future__ import annotations

import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill_dagster.kinds.refusals import REFUSAL_KEY, is_refusal

if TYPE_CHECKING:
    from distill_dagster.config import Task

REASONING_MARK, ANSWER_MARK = "Reasoning:", "Answer:"
"""The written form of few-shot examples, of base-like models and of students: reasoning first, then the answer."""


class InvalidAnswerError(Exception):
    """Why what was found is no answer of this kind; the message is a sentence for people."""


@dataclass(frozen=True)
class Question:
    """What an answer is read against: the prompt's text, which may hold options to choose from."""

    text: str = ""
    refusal_wanted: bool = False


@dataclass(frozen=True)
class MajorityVote:
    """The candidate of several samples.

    `index` is the sample that stands for it, `agreement` how far the samples agree with it, `votes` the share of each
    distinct answer (empty for free texts, of which hardly two are equal).
    """

    index: int
    agreement: float
    votes: tuple[tuple[Any, float], ...] = ()


class Kind(ABC):
    """One kind of task, with the settings of one task. Answers are plain JSON values, canonical after `canonical`."""

    answer_kind: str
    """The column of that name: label, number, text, object, tool_calls."""
    metric: str = "accuracy"
    """What a report measures: the mean of `score` over items."""
    second_metric: str | None = None
    """A second figure beside it, the mean of `second_score`; None where there is none."""
    has_labels = False
    """Answers are labels of the task: soft labels, encoder students and confusion tables make sense."""
    one_line = True
    """An answer ends with its line: what a model writes below it is not read."""
    structured = True
    """Asked for as JSON even where no reasoning is wanted; else an answer without reasoning is the plain text."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @abstractmethod
    def build_schema(self) -> dict[str, Any]:
        """The JSON schema of an answer alone, without reasoning."""

    @abstractmethod
    def canonicalize(self, value: Any, question: Question) -> Any:
        """The answer that was found, a text or a JSON value, in its one canonical form.

        Raises:
            InvalidAnswer: it is none.
        """

    def are_equal(self, first: Any, second: Any) -> bool:
        """Whether two canonical answers say the same. All refusals do, and no refusal says what an answer says."""
        if is_refusal(first) or is_refusal(second):
            return is_refusal(first) and is_refusal(second)
        return self._are_equal(first, second)

    def _are_equal(self, first: Any, second: Any) -> bool:
        return bool(first == second)

    def score(self, answer: Any, reference: Any) -> float:
        """How good an answer is, 0 to 1: `metric` for one item. None, no answer, scores 0."""
        return float(answer is not None and self.are_equal(answer, reference))

    def score_second(self, answer: Any, reference: Any) -> float:
        raise NotImplementedError(f"{type(self).__name__} has no second figure")

    def choose_candidate(self, answers: Sequence[Any]) -> MajorityVote:
        """The candidate of one or more samples: by default the answer that most of them equal, the first of equals."""
        return find_majority(answers, self.are_equal)

    def format_answer(self, answer: Any) -> str:
        """An answer as it is written behind `Answer:`: in few-shot examples, and by a student."""
        if is_refusal(answer):
            return str(answer[REFUSAL_KEY])
        return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)

    def format_target(self, answer: str, reasoning: str | None) -> str:
        """What a student learns to write for an answer (canonical JSON text), with its reasoning where the task has it.

        Kinds with labels have students that choose one: of these the label alone. A student that asks for reasoning
        (`students.<name>.reasoning`) puts it before the label by itself.
        """
        words = self.format_answer(json.loads(answer))
        if self.has_labels:
            return words
        return format_with_reasoning(reasoning if self.task.reasoning else None, words)


def format_with_reasoning(reasoning: str | None, answer: str) -> str:
    """The written form: "Reasoning: …" and "Answer: …" below it, or the answer alone."""
    return f"{REASONING_MARK} {reasoning.strip()}\n{ANSWER_MARK} {answer}" if reasoning else answer


def find_majority(answers: Sequence[Any], equal: Any) -> MajorityVote:
    """The largest group of equal answers. Of groups of one size the one whose first member came first.

    "Equal" need not carry over (numbers within a tolerance): an answer joins the first group whose first member it
    equals.
    """
    groups: list[list[int]] = []
    for index, answer in enumerate(answers):
        group = next((g for g in groups if equal(answers[g[0]], answer)), None)
        if group is None:
            groups.append([index])
        else:
            group.append(index)
    groups.sort(key=lambda g: -len(g))
    votes = tuple((answers[g[0]], len(g) / len(answers)) for g in groups)
    return MajorityVote(groups[0][0], votes[0][1], votes)


def fold_unicode(text: str) -> str:
    """Unicode NFKC with white space folded."""
    return " ".join(unicodedata.normalize("NFKC", text).split())
