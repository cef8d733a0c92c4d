"""Kinds whose answer is one of the task's labels: classification, and natural language inference."""

from __future__ import annotations

from typing import Any

from distill_dagster.kinds.base import InvalidAnswer, Kind, Question
from distill_dagster.teacher.softlabels import parse_label

NLI_LABELS = (
    ("entailment", "if the premise is true, the hypothesis must be true."),
    ("neutral", "the premise neither makes the hypothesis certain nor rules it out."),
    ("contradiction", "if the premise is true, the hypothesis must be false."),
)


class Labelled(Kind):
    answer_kind = "label"
    second = "macro_f1"
    has_labels = True

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": self.task.label_names}

    def canonical(self, value: Any, question: Question) -> str:
        label = parse_label(value, self.task.label_names) if isinstance(value, str) else None
        if label is None:
            raise InvalidAnswer(f"no label is named in {_shown(value)}")
        return label


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= 80 else text[:79] + "…")
