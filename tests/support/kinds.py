"""Small tasks of every kind, as models."""

from __future__ import annotations

from typing import Any

from distill_dagster.config import Task
from tests.support.task import merge_settings

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "item": {"type": "string"},
        "count": {"type": "integer", "minimum": 1},
        "colours": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["item", "count"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {
        "name": "find_order",
        "description": "Find an order by its number.",
        "parameters": {
            "type": "object",
            "properties": {"number": {"type": "integer"}},
            "required": ["number"],
            "additionalProperties": False,
        },
    },
    {"name": "open_ticket", "description": "Open a ticket for a person."},
]
EXTRA: dict[str, dict[str, Any]] = {
    "classification": {"labels": [{"name": n, "description": f"is about {n}"} for n in ("refund", "delivery")]},
    "extraction": {"answer_schema": SCHEMA},
    "tool_call": {"tools": TOOLS},
}
KINDS = (
    "classification",
    "nli",
    "extraction",
    "qa",
    "math",
    "summarization",
    "conversation",
    "tool_call",
    "generation",
)
ANSWERS: dict[str, Any] = {
    "classification": "refund",
    "nli": "neutral",
    "extraction": {"item": "chair", "count": 2},
    "qa": "Lisbon",
    "math": 42,
    "summarization": "A short summary.",
    "conversation": "Of course, here it is.",
    "tool_call": [{"name": "find_order", "arguments": {"number": 7}}],
    "generation": "Dear customer,\nthank you.",
}


def build_task(kind: str, **changes: Any) -> Task:
    base = {
        "kind": kind,
        "description": "d",
        "teacher": "openai/fake",
        "students": {"tiny": {"model": "m", "architecture": "causal_lm"}},
    }
    return Task.model_validate(merge_settings(base | EXTRA.get(kind, {}), changes))
