"""The turns of a prompt that is a conversation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PROMPT_TEXT = Annotated[str, Field(min_length=1, pattern=r"\S")]


class Turn(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"] = Field(description="who speaks")
    content: PROMPT_TEXT = Field(description="what they say")

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        """Leave out fields without a value: clients of providers write `tool_calls: null` into every message."""
        if not isinstance(value, dict):
            return value
        return {name: item for name, item in value.items() if item is not None or name in cls.model_fields}
