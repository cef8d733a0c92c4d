"""Build the requests to a judge, and read scores out of its answers.

The method is LLM-as-a-judge with a rubric and reasons before scores (Zheng et al. 2023).
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError, create_model
from pydantic import Field as pydantic_field

from distill_dagster.config import JudgeSpec, Task, TeacherSpec
from distill_dagster.core.json_text import iterate_json
from distill_dagster.core.thinking import split_thinking
from distill_dagster.kinds import get_kind
from distill_dagster.prompts.templates import JUDGE_TEMPLATES, Templates
from distill_dagster.tables.messages import format_messages
from distill_dagster.teacher.providers.capabilities import takes_schema
from distill_dagster.teacher.providers.exchange import Request

JUDGE_ATTEMPTS = 2
"""Samples of the judge for one row. The second is asked for if the first does not fit the declared form."""
MAX_REASON_CHARS = 1000
"""Longer reasons are cut."""


@dataclass(frozen=True)
class JudgeScore:
    """The judge's result for one candidate.

    `scores` and `reasons` are by criterion. In mode `best_of`, `best` is the index of the chosen option. `error` says
    why there is no result; `failed` if the judge gave no answer, so that asking again may help.
    """

    scores: dict[str, int] | None = None
    reasons: dict[str, str] | None = None
    best: int | None = None
    error: str | None = None
    failed: bool = False

    @property
    def mean_score(self) -> float | None:
        """The mean over criteria, scaled so that 1 of 5 is 0 and 5 of 5 is 1."""
        if not self.scores:
            return None
        return round((sum(self.scores.values()) / len(self.scores) - 1) / 4, 6)


def get_judge_teacher(task: Task) -> TeacherSpec:
    """Return the settings of the judge's model."""
    assert task.judge is not None
    return task.judge.to_teacher_spec(task.teacher)


def count_judge_requests(task: Task, prompts: int) -> tuple[int, int]:
    """Return the least and the most requests to the judge for a number of prompts that have an answer."""
    samples = sum(spec.requests_per_prompt for spec in task.teacher_specs)
    if task.judge is None or (task.judge.mode == "best_of" and samples == 1):
        return 0, 0
    return (prompts if task.judge.mode == "score" else 0), prompts * JUDGE_ATTEMPTS


def count_comparison_requests(items: int) -> int:
    """Return the most requests to the judge for comparing two answers to each item, in both orders."""
    return 2 * items * JUDGE_ATTEMPTS


class Judge:
    """Builds the requests to one task's judge and reads its answers."""

    def __init__(self, task: Task, own_templates: dict[str, str], identity: str) -> None:
        """`identity` is that of the judge's endpoint, as in `Endpoint.identity`."""
        assert task.judge is not None
        self.task, self.spec, self.identity = task, task.judge, identity
        self.teacher, self.kind = get_judge_teacher(task), get_kind(task)
        self.templates = Templates(own_templates, JUDGE_TEMPLATES)
        self.structured = self.spec.api == "chat" and takes_schema(self.spec.model, self.spec.response_format)

    def build_request(self, row: dict[str, Any], options: list[str] | None = None, sample: int = 0) -> Request:
        """Build the request for one candidate, or for a choice among `options`. It does not contain the slice.

        Args:
            row: the candidate's messages, answer and reasoning.
            options: the differing answers, as canonical JSON texts.
        """
        values = {
            "task": self.task.description,
            "instructions": self.task.instructions,
            "item": self.task.item,
            "labels": self.task.labels,
            "text": format_messages(row["messages"]),
            "answer": None if options else self.format_answer(row["answer"]),
            "reasoning": None if options else row["reasoning"],
            "options": [self.format_answer(option) for option in options or []],
            "rubric": self.spec.rubric,
            "structured": self.structured,
        }
        text = self.templates.render("judge_best_of" if options else "judge_score", **values)
        params = self.teacher.build_params(self.spec.temperature, self.spec.max_tokens, sample)
        thinking = self.teacher.allowed_thinking_tokens
        if self.spec.api == "text":
            return Request(self.identity, sample, params, prompt=f"{text}\n", thinking_tokens=thinking)
        response_format = None
        if self.structured:
            model = build_score_model(self.spec, len(options) if options else None)
            schema = {"name": "verdict", "strict": True, "schema": make_strict_schema(model.model_json_schema())}
            response_format = {"type": "json_schema", "json_schema": schema}
        messages = [{"role": "user", "content": text}]
        return Request(
            self.identity,
            sample,
            params,
            messages=messages,
            response_format=response_format,
            thinking_tokens=thinking,
        )

    def format_answer(self, answer: str) -> str:
        """Format an answer, given as canonical JSON text, as its kind writes it."""
        return self.kind.format_answer(json.loads(answer))

    def read_score(self, text: str, options: int | None) -> JudgeScore | None:
        """Read the result in an answer of the judge, after its thinking; None if nothing in it fits the declared form.

        Args:
            options: the number of options that the judge chose among, if it did.
        """
        model = build_score_model(self.spec, options)
        for value in iterate_json(split_thinking(text).answer):
            with suppress(ValidationError):
                return _to_judge_score(model.model_validate(value).model_dump(), options)
        return None


def _to_judge_score(fields: dict[str, Any], options: int | None) -> JudgeScore:
    if options:
        return JudgeScore(best=fields["best"] - 1, reasons={"best": fields["reason"][:MAX_REASON_CHARS]})
    reasons = {name: criterion["reason"][:MAX_REASON_CHARS] for name, criterion in fields.items()}
    return JudgeScore({name: criterion["score"] for name, criterion in fields.items()}, reasons)


def build_score_model(spec: JudgeSpec, options: int | None) -> type[BaseModel]:
    """Build the form of an answer: reason and score per criterion, or the number of the best option with a reason.

    The names of the models are part of the JSON schema that is sent, and so of the request key.
    """
    if options:
        best = pydantic_field(ge=1, le=options)
        return create_model("Best", reason=(str, ...), best=(int, best))
    scored = create_model("Scored", reason=(str, ...), score=(int, pydantic_field(ge=1, le=5)))
    fields: dict[str, Any] = {criterion.name: (scored, ...) for criterion in spec.rubric}
    return create_model("Verdict", **fields)


def make_strict_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Convert a pydantic schema for providers' strict mode: no extra properties, and integer ranges as enumerations."""

    def convert(part: Any) -> Any:
        if isinstance(part, list):
            return [convert(item) for item in part]
        if not isinstance(part, dict):
            return part
        if part.get("type") == "integer" and "minimum" in part and "maximum" in part:
            return {"type": "integer", "enum": list(range(part["minimum"], part["maximum"] + 1))}
        out = {name: convert(value) for name, value in part.items() if name != "title" or not isinstance(value, str)}
        return out | ({"additionalProperties": False} if out.get("type") == "object" else {})

    converted: dict[str, Any] = convert(schema)
    return converted
