"""Ask a teacher to state the probabilities or the order of the plausible labels, and read what it states.

The answer is JSON: `{"reasoning"?, "label", "probabilities": {label: p}}` for `soft_labels: verbalized` (Tian et al.
2023, "Just Ask for Calibration"), `{"reasoning"?, "ranking": [label, …]}` for `soft_labels: ranking`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from distill_dagster.config import Task
from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.core.json_text import read_json
from distill_dagster.core.thinking import split_thinking
from distill_dagster.kinds.classification import explain_missing_label, parse_label
from distill_dagster.kinds.reading import CUT, STILL_THINKING
from distill_dagster.kinds.refusals import is_refusal_text
from distill_dagster.kinds.stated_probabilities import build_distribution, parse_probabilities, weigh_ranking
from distill_dagster.prompts.few_shot import FewShotExample
from distill_dagster.prompts.templates import Templates
from distill_dagster.teacher.asking.asked_prompt import AskedPrompt
from distill_dagster.teacher.asking.label_answers import read_label
from distill_dagster.teacher.asking.response_columns import round_soft_labels
from distill_dagster.teacher.providers.capabilities import build_response_format, takes_schema
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.exchange import Request, Response

MALFORMED = "the JSON of the answer is malformed"
SEVERAL = "the text has several different answers"
MAX_QUOTED_CHARS = 200
_LABEL_KEYS = ("label", "category", "class", "answer", "prediction")
_PROBABILITY_KEYS = ("probabilities", "probs", "soft labels", "probability", "prob", "confidence")
_RANKING_KEYS = ("ranking", "ranked", "labels", "categories")
_VERBALIZED = """\
`label` is the name of the most probable category. `probabilities` has the plausible categories, at most 5, each with \
the probability that it is the right one: numbers from 0 to 1 that sum to 1. State how sure you are: of the answers to \
which you give 0.7, seven of ten should be right."""
_RANKED = "`ranking` lists the names of the plausible categories, the most plausible one first, at most {count}."
_REASONED = "`reasoning` says step by step how you come to the answer. "


class StatedLabelAsker:
    """Builds the requests of one task whose teacher states soft labels, and reads the responses."""

    def __init__(self, task: Task, templates: Templates, endpoint: Endpoint) -> None:
        self.task, self.spec, self.templates, self.endpoint = task, task.teacher, templates, endpoint
        self._is_ranking = self.spec.soft_labels == "ranking"
        self._noun = "ranking" if self._is_ranking else "probabilities"

    def build_request(self, prompt: AskedPrompt, examples: list[FewShotExample], sample: int) -> Request:
        """The request for one sample of one prompt.

        Few-shot examples are part of the system turn. As answers of the assistant they would need probabilities, which
        people do not state, and a model imitates the ones that it sees.
        """
        by_provider = takes_schema(self.endpoint.model, self.spec.response_format)
        values = {
            "text": prompt.text,
            "examples": examples,
            "labels": self.task.labels,
            "instructions": self.task.instructions,
            "item": self.task.item,
            "tools": [],
            "reasoning": self.task.reasoning,
            "format": self._describe_format(by_provider),
        }
        return Request(
            self.endpoint.identity,
            sample,
            self.spec.build_params(self.spec.temperature, self.spec.max_tokens, sample),
            messages=[
                {"role": role, "content": self.templates.render_part(role, **values)} for role in ("system", "user")
            ],
            response_format=build_response_format(self._build_schema()) if by_provider else None,
            thinking_tokens=self.spec.allowed_thinking_tokens,
        )

    def read_response(self, response: Response) -> dict[str, Any]:
        """The columns status, reasoning, answer, error and soft_labels of a response.

        An answer that names a label and states nothing else has no soft labels, unless its recording has them.
        """
        split = split_thinking(response.text)
        thinking = response.reasoning or split.thinking or None
        if response.finish_reason == "content_filter":
            return _make_columns("filtered", thinking)
        if response.finish_reason == "refusal":
            return _make_columns("refused", thinking, error=_quote_refusal(response.text))
        if not split.ended:
            return _make_columns("truncated", thinking, error=STILL_THINKING)
        cut, labels = response.finish_reason == "length", self.task.label_names
        found = read_json(split.answer)
        stated = [answer for value in found.values if (answer := self._read_value(value)) is not None]
        stated = [answer for answer in stated if answer.label is not None] or stated  # a model may repeat the form
        if len({to_canonical_json([answer.label, answer.shares]) for answer in stated}) > 1:
            return _make_columns("ok", thinking, error=SEVERAL)
        if stated:
            return _make_columns("ok", thinking or stated[0].reasoning, *stated[0].columns)
        if found.is_cut or found.is_broken:
            return _make_columns("truncated" if cut else "ok", thinking, error=CUT if cut else MALFORMED)
        read = read_label(split.answer, labels, cut=cut)
        if read.answer is None:
            if is_refusal_text(split.answer):
                return _make_columns("refused", thinking, error=_quote_refusal(split.answer))
            return _make_columns(read.status, thinking, error=read.error)
        label = json.loads(read.answer)
        shares = build_distribution(response.soft_labels or {}, labels, label)
        return _make_columns("ok", thinking, label, shares, None if shares else f"the answer states no {self._noun}")

    def _read_value(self, value: Any) -> _StatedAnswer | None:
        """What a JSON value states; None if it states nothing about labels."""
        fields = value if isinstance(value, dict) else {}
        fields = {name.strip().casefold().replace("_", " "): inner for name, inner in fields.items()}
        named = _find_field(fields, _LABEL_KEYS)
        if isinstance(named, list):  # some write the ranking into the label
            fields, named = {"ranking": named, **fields}, None
        reasoning = fields.get("reasoning")
        stated: Any = _find_field(fields, _RANKING_KEYS if self._is_ranking else _PROBABILITY_KEYS)
        if stated is None and named is None:
            if not self._states_labels(_drop_reasoning(value)):
                return None
            stated = _drop_reasoning(value)
        label = parse_label(named, self.task.label_names) if isinstance(named, str) else None
        problem = explain_missing_label(named) if named is not None and label is None else None
        shares: dict[str, float] | None = None
        if stated is not None and problem is None:
            try:
                shares = self._build_shares(stated, label)
            except ValueError as error:
                problem = f"the {self._noun} {error}"
        if label is None and shares is not None:
            label = max(shares, key=lambda name: shares[name])
        if shares is None and problem is None:
            problem = f"the answer states no {self._noun}" + ("" if label else " of a label of the task")
        return _StatedAnswer(label, shares, reasoning if isinstance(reasoning, str) else None, problem)

    def _build_shares(self, stated: Any, label: str | None) -> dict[str, float] | None:
        if self._is_ranking:
            weights = weigh_ranking(stated, self.task.label_names, self.spec.ranking_weights)
            return build_distribution(weights, self.task.label_names, label)
        if isinstance(stated, int | float) and label is not None:  # {"label": …, "probability": 0.9}
            stated = {label: stated}
        return build_distribution(parse_probabilities(stated), self.task.label_names, label)

    def _states_labels(self, value: Any) -> bool:
        """Whether a JSON value is itself the ranking or the probabilities, without a field around it."""
        try:
            return self._build_shares(value, None) is not None
        except ValueError:
            return False

    def _describe_format(self, by_provider: bool) -> str:
        fields = _REASONED if self.task.reasoning else ""
        fields += _RANKED.format(count=len(self.spec.ranking_weights)) if self._is_ranking else _VERBALIZED
        if by_provider:
            return f"Answer with a JSON object: {fields}"
        shape: dict[str, Any] = {"reasoning": "<reasoning>"} if self.task.reasoning else {}
        if self._is_ranking:
            shape["ranking"] = ["<category>", "<next category>"]
        else:
            shape |= {"label": "<category>", "probabilities": {"<category>": 0.9, "<another category>": 0.1}}
        return f"Answer with one JSON object and nothing else: {fields} Its form:\n{json.dumps(shape)}"

    def _build_schema(self) -> dict[str, Any]:
        """The JSON schema of an answer. Probabilities are a list: a strict schema would require every label's."""
        label = {"type": "string", "enum": self.task.label_names}
        fields: dict[str, Any] = {"reasoning": {"type": "string"}} if self.task.reasoning else {}
        if self._is_ranking:
            fields["ranking"] = {"type": "array", "items": label}
        else:
            pair = _build_object({"label": label, "probability": {"type": "number"}})
            fields |= {"label": label, "probabilities": {"type": "array", "items": pair}}
        return _build_object(fields)


@dataclass(frozen=True)
class _StatedAnswer:
    """What one JSON value states. `problem` says why it has no label or no soft label."""

    label: str | None
    shares: dict[str, float] | None
    reasoning: str | None
    problem: str | None

    @property
    def columns(self) -> tuple[str | None, dict[str, float] | None, str | None]:
        return self.label, self.shares, self.problem


def _drop_reasoning(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: inner for name, inner in value.items() if name.strip().casefold() != "reasoning"}


def _find_field(fields: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _make_columns(
    status: str,
    reasoning: str | None,
    label: str | None = None,
    shares: dict[str, float] | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    answer = to_canonical_json(label) if label is not None else None
    columns = {"status": status, "reasoning": reasoning, "answer": answer, "error": error}
    return columns | {"soft_labels": round_soft_labels(shares)}


def _quote_refusal(text: str) -> str:
    return f"the teacher refused: {text.strip()[:MAX_QUOTED_CHARS]}"


def _build_object(fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
