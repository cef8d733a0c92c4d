"""What asking took: calls, stored answers, tokens, money and time, added up in one type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Usage:
    """What a stage, or a part of it, took to get its answers. Usages can be added.

    `calls` counts the requests that were sent, `cached` those that the completion store answered. Tokens, money and
    time belong to the requests that were sent.
    """

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    spent_usd: float | None = 0.0
    """None if the price of a request is unknown."""
    seconds: float = 0.0
    stopped: str | None = None
    """The budget cap that ended the asking; None if everything was asked."""

    def __add__(self, other: Usage) -> Usage:
        known = self.spent_usd is not None and other.spent_usd is not None
        return Usage(
            self.calls + other.calls,
            self.cached + other.cached,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            (self.spent_usd or 0.0) + (other.spent_usd or 0.0) if known else None,
            self.seconds + other.seconds,
            self.stopped or other.stopped,
        )

    def build_record_fields(self) -> dict[str, Any]:
        """The fields of an artifact's record, for `extra`."""
        return {
            "teacher_calls": self.calls,
            "teacher_calls_cached": self.cached,
            "spent_usd": self.spent_usd,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "model_s": self.seconds,
        }

    def build_metadata(self) -> dict[str, int | float | str]:
        """The values that the user interface shows on a materialization."""
        shown: dict[str, int | float | str] = {
            "teacher_calls": self.calls,
            "teacher_calls_cached": self.cached,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "spent_usd": "unknown" if self.spent_usd is None else self.spent_usd,
        }
        return shown | ({"stopped": self.stopped} if self.stopped else {})
