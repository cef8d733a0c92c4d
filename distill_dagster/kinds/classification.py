"""Classification and natural language inference (nli): an answer is one of the task's labels."""

from __future__ import annotations

import re
from typing import Any

from distill_dagster.kinds.base import InvalidAnswerError, Kind, Question


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
            raise InvalidAnswerError(f"no label is named in {_format_excerpt(value)}")
        return label


def _format_excerpt(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= 80 else text[:79] + "…")


def parse_label(text: str, labels: list[str]) -> str | None:
    """Find the label that a text names: as its first line, at the start of that line, or as its only label."""
    line = next((part.strip() for part in text.splitlines() if part.strip()), "").casefold()
    bare = line.strip("\"'`*.-# ")
    by_length = sorted(labels, key=len, reverse=True)
    for label in by_length:
        if label.casefold() in (line, bare):  # `line`, since a label may itself end with such a sign: ".net"
            return label
    for label in by_length:
        if re.match(make_word_pattern(label), line) or re.match(make_word_pattern(label), bare):
            return label
    named = [label for label in by_length if re.search(make_word_pattern(label), text.casefold())]
    # "data loss" names "data loss" alone, although "data" may be a label too.
    longest = [a for a in named if not any(a != b and re.search(make_word_pattern(a), b.casefold()) for b in named)]
    return longest[0] if len(longest) == 1 else None


def make_word_pattern(label: str) -> str:
    """Make a pattern that matches a label as a whole word. `\\b` would never match at the end of "c++"."""
    return rf"(?<!\w){re.escape(label.casefold())}(?!\w)"
