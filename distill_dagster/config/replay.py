"""Settings of replay teachers, whose completions were recorded elsewhere."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from distill_dagster.config.base import ConfigModel
from distill_dagster.core.patterns import find_pattern_problem

REPLAY_PREFIX = "replay/"
REPLAY_NAME_PATTERN = re.compile(r"replay/[a-z0-9][a-z0-9._-]{0,62}")


class ReplaySpec(ConfigModel):
    """How recorded completions are read. Known formats need no paths: provider logs, stored completions, chat traces.

    A path is dotted (`request.messages.-1.content`) or a JSON pointer.
    """

    files: tuple[str, ...] = Field(
        default=(), description="files or folders below the task folder; by default recorded/<name>.jsonl"
    )
    match: Literal["text", "conversation", "id"] = Field(
        default="text",
        description="how a prompt finds its completion: by its last user turn, by all turns, or by the id of its "
        "seed, imported prompt or labelled row",
    )
    prompt: str | None = Field(default=None, description="path of the prompt in a record")
    completion: str | None = Field(default=None, description="path of the completion")
    reasoning: str | None = Field(default=None, description="path of the reasoning")
    soft_labels: str | None = Field(
        default=None,
        description="path of the probabilities of labels; by default soft_labels, probs or probabilities",
    )
    model: str | None = Field(default=None, description="path of the name of the model that answered")
    id: str | None = Field(default=None, description="path of the record's id, for `match: id`")
    prompt_pattern: str | None = Field(
        default=None, description="a regular expression whose first group is the prompt in the recorded text"
    )

    @field_validator("files")
    @classmethod
    def _check_files(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not name.strip() or name.startswith("/") or ".." in name.split("/") or "\\" in name:
                raise ValueError(f"{name!r} is not a path in the task folder, such as recorded/log.jsonl")
        return value

    @field_validator("prompt_pattern")
    @classmethod
    def _check_pattern(cls, value: str | None) -> str | None:
        if value is not None and "(" not in value:
            raise ValueError("the pattern has no group; put the part that is the prompt in parentheses")
        if value is not None and (problem := find_pattern_problem(value)):
            raise ValueError(problem)
        return value
