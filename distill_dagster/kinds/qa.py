"""Question answering (qa): an answer is a short text, or the text of one of the options that the question lists."""

from __future__ import annotations

import re
from typing import Any

from distill_dagster.kinds.base import InvalidAnswerError, Kind, Question, fold_unicode
from distill_dagster.kinds.similarity import compute_token_f1, normalize_squad

_OPTION = re.compile(r"^[ \t]*\(?([A-Za-z])[).:][ \t]+(\S.*)$", flags=re.M)
_CHOSEN = re.compile(r"\(?([A-Za-z])(?:[).:]|$)[ \t]*")


class QaKind(Kind):
    """Equal after SQuAD's normalization (Rajpurkar et al. 2016).

    With `answer.choices` an answer is the text of an option: "(b)", "b" and "(b) a harbour." all mean "a harbour".
    """

    answer_kind = "text"

    def __init__(self, task: Any) -> None:
        super().__init__(task)
        self.second_metric = None if task.answer.choices else "token_f1"

    def build_schema(self) -> dict[str, Any]:
        return {"type": "string"}

    def canonicalize(self, value: Any, question: Question) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InvalidAnswerError("the answer is not a text")
        text = fold_unicode(str(value))
        if self.task.answer.choices:
            return match_option(text, find_options(question.text), self.task.answer.exact)
        if not normalize_squad(text):
            raise InvalidAnswerError("the answer is empty")
        return text

    def _are_equal(self, first: Any, second: Any) -> bool:
        if self.task.answer.exact:
            return bool(first == second)
        return normalize_squad(first) == normalize_squad(second)

    def score_second(self, answer: Any, reference: Any) -> float:
        return self._score_by(compute_token_f1, answer, reference)


def find_options(text: str) -> dict[str, str]:
    """Find the last run of lettered lines, "(a) park" or "A. park", that begins with a; keys are lower-case letters."""
    found: dict[str, str] = {}
    for letter, words in _OPTION.findall(text):
        letter = letter.lower()
        if letter == "a":
            found = {}
        if letter == chr(ord("a") + len(found)):
            found[letter] = fold_unicode(words)
    return found


def match_option(text: str, options: dict[str, str], exact: bool = False) -> str:
    """Return the option that an answer names by its letter or by its words; with `exact`, by its exact words only.

    Raises:
        InvalidAnswerError: the question has no options, or the answer names none or several of them.
    """
    if len(options) < 2:
        raise InvalidAnswerError("the question has no options such as `(a) …` on lines of their own")
    if exact and text in options.values():
        return text
    if exact:
        raise InvalidAnswerError(f"{text[:80]!r} is not the text of an option")
    plain = text.strip().rstrip(".")
    by_letter = _CHOSEN.match(plain)
    words = [option for option in options.values() if normalize_squad(option) == normalize_squad(plain)]
    if words:  # before letters: an option may be "a" or "I"
        return words[0]
    if by_letter and (option := options.get(by_letter.group(1).lower())):
        return option
    normalized = f" {normalize_squad(plain)} "
    contained = {option for option in options.values() if f" {normalize_squad(option)} " in normalized}
    longest = [a for a in contained if not any(a != b and normalize_squad(a) in normalize_squad(b) for b in contained)]
    if len(longest) == 1:
        return longest[0]
    raise InvalidAnswerError(f"{plain[:80]!r} is not one of the options")
