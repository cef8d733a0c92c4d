"""Teachers whose completions were recorded elsewhere."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from distill_dagster.config.base import ConfigModel
from distill_dagster.core.patterns import find_pattern_problem

REPLAY_PREFIX = "replay/"
REPLAY_NAME_PATTERN = re.compile(r"replay/[a-z0-9][a-z0-9._-]{0,62}")


class ReplaySpec(ConfigModel):
    """How recorded completions are read. Provider logs, stored completions and chat traces need none of the paths.

    A path is dotted (`request.messages.-1.content`) or a JSON pointer.
    """

    files: tuple[str, ...] = Field(
        default=(), description="files or folders below the task folder; by default recorded/<name>.jsonl"
    )
    match: Literal["text", "conversation", "id"] = Field(
        default="text",
        description="how a prompt finds its completion: by the last user turn, by all of them, or by the id that a "
        "seed, an imported prompt or a labelled row has",
    )
    prompt: str | None = None
    completion: str | None = None
    reasoning: str | None = None
    model: str | None = None
    id: str | None = None
    prompt_pattern: str | None = Field(
        default=None, description="a regular expression whose first group is the prompt within the recorded one"
    )

    @field_validator("files")
    @classmethod
    def _inside(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not name.strip() or name.startswith("/") or ".." in name.split("/") or "\\" in name:
                raise ValueError(f"{name!r} is not a path below the task folder, such as recorded/log.jsonl")
        return value

    @field_validator("prompt_pattern")
    @classmethod
    def _one_group(cls, value: str | None) -> str | None:
        if value is not None and "(" not in value:
            raise ValueError("the pattern has no group; put what is the prompt into parentheses")
        if value is not None and (why := find_pattern_problem(value)):
            raise ValueError(why)
        return value
