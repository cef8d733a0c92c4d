"""Classification and natural language inference (nli): an answer is one of the task's labels."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from distill_dagster.core.json_text import iterate_json
from distill_dagster.kinds.base import InvalidAnswerError, Kind, Question

_ANSWER_TAG = re.compile(r"<answer>\s*(.*?)\s*(?:</answer>|\Z)", re.IGNORECASE | re.ASCII)


_LABEL_LINE = re.compile(
    r"^[ \t]*(?:[#>]+[ \t]*)?(?:\*\*)?(?:final[ \t]+)?(?:answer|label|category|class)(?:\*\*)?[ \t]*[:：](?:\*\*)?",
    re.IGNORECASE | re.MULTILINE,
)
_LABEL_KEYS = {"answer", "label", "category", "class", "prediction", "result"}


class LabelKind(Kind):
    """Equal if the label is the same. The second metric, macro-F1, is computed over all items."""

    answer_kind = "label"
    second_metric = "macro_f1"
    has_labels = True

    def build_schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": self.task.label_names}

    def canonicalize(self, value: Any, question: Question) -> str:
        label = parse_label(value, self.task.label_names) if isinstance(value, str) else None
        if label is None:
            raise InvalidAnswerError(explain_missing_label(value))
        return label


def explain_missing_label(value: Any) -> str:
    """Why a value has no label, as a phrase for the `error` column."""
    text = value if isinstance(value, str) else repr(value)
    return f"no label is named in {text if len(text) <= 80 else f'{text[:79]}…'!r}"


def parse_label(text: str, labels: list[str], *, cut: bool = False) -> str | None:
    """Find the label that a text names: as its first line, at the start of that line, or as its only label.

    Args:
        cut: the text was cut. Then a label counts only at its start, since the text may go on to name another one, and
            not if the text may still become a longer label.
    """
    line = next((part.strip() for part in text.splitlines() if part.strip()), "")
    if tagged := _ANSWER_TAG.match(line):
        line = tagged[1]
    line = fold_label(line)
    bare = line.strip("\"'`*.-# “”‘’")
    by_length = sorted(labels, key=len, reverse=True)
    if cut and _may_become_longer(text, labels):
        return None
    for label in by_length:
        if fold_label(label) in (line, bare):  # `line`, since a label may itself end with such a sign: ".net"
            return label
    for label in by_length:
        if re.match(make_word_pattern(label), line) or re.match(make_word_pattern(label), bare):
            return label
    if cut:
        return None
    if marked := _LABEL_LINE.search(text):
        return parse_label(text[marked.end() :], labels)
    folded = fold_label(text)
    named = [label for label in by_length if re.search(make_word_pattern(label), folded)]
    # "data loss" names "data loss" alone, although "data" may be a label too.
    longest = [a for a in named if not any(a != b and re.search(make_word_pattern(a), fold_label(b)) for b in named)]
    return longest[0] if len(longest) == 1 else _find_json_label(text, labels)


def _may_become_longer(text: str, labels: list[str]) -> bool:
    whole = fold_label(text.strip()).lstrip("\"'`*“‘")
    return any(name != whole and name.startswith(whole) for name in map(fold_label, labels))


def _find_json_label(text: str, labels: list[str]) -> str | None:
    """The only label that is a value of JSON in a text, whose other values may name more labels."""
    by_name = {fold_label(label): label for label in labels}
    pairs = [pair for value in iterate_json(text) if isinstance(value, dict) for pair in value.items()]
    named = [(key.casefold(), by_name.get(fold_label(part.strip()))) for key, part in pairs if isinstance(part, str)]
    keyed = {label for key, label in named if label is not None and key in _LABEL_KEYS}
    found = keyed or {label for _, label in named if label is not None}
    return found.pop() if len(found) == 1 else None


def fold_label(text: str) -> str:
    """A text without the differences in case and in Unicode's form that do not make it another label.

    The lower case of İ has two characters, of which one is dropped: "İade" names the label "iade".
    """
    if text.isascii():
        return text.casefold()
    return unicodedata.normalize("NFC", text).casefold().replace("i\u0307", "i")


def make_word_pattern(label: str) -> str:
    """Make a pattern that matches a label as a whole word of a text that `fold_label` folded.

    `\\b` would never match at the end of "c++".
    """
    return rf"(?<!\w){re.escape(fold_label(label))}(?!\w)"
