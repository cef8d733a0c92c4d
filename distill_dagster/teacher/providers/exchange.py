"""What is sent to a teacher and what comes back: requests and responses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from distill_dagster.core.hashing import hash_content


@dataclass(frozen=True)
class Request:
    """One thing to ask. Exactly one of `prompt` (text API) and `messages` (chat API) is set."""

    identity: str
    sample_index: int
    params: dict[str, Any]
    prompt: str | None = None
    messages: list[dict[str, str]] | None = None
    tools: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None
    attempt: int = 0
    """More than 0 where the same is asked anew, since the answer before was of no use: a request of its own."""

    @property
    def asked(self) -> dict[str, Any]:
        """All that shapes the answer, and nothing of where, when or for whom it is asked."""
        asked: dict[str, Any] = {"prompt": self.prompt, "messages": self.messages}
        asked |= {"tools": self.tools, "response_format": self.response_format}
        asked |= {"attempt": self.attempt} if self.attempt else {}
        return asked | {"teacher": self.identity, "params": self.params, "sample": self.sample_index}

    @cached_property
    def key(self) -> str:
        """request_key: the hash of what is asked. `Mould` works it out from what many requests share."""
        return hash_content(self.asked)

    def body(self) -> dict[str, Any]:
        """What is sent, without the model: parameters, and the prompt or the messages."""
        asked: dict[str, Any] = {"messages": self.messages} if self.messages is not None else {"prompt": self.prompt}
        if self.tools is not None:
            asked["tools"] = self.tools
        if self.response_format is not None:
            asked["response_format"] = self.response_format
        extra = self.params.get("extra_body") or {}
        return asked | {name: value for name, value in self.params.items() if name != "extra_body"} | extra


@dataclass(slots=True)  # frozen would take four times as long to make, and one is made of each stored answer
class Response:
    """What came back for one request, as received: soft labels are read from it later, not stored instead of it.

    `positions` holds, per token of the answer, the likeliest tokens with natural log-probabilities, the taken one
    first. `latency_s` is seconds on the wire, with `in_flight` requests of ours under way at the start. `mode` is how
    it came: online, batch (its latency is not measured), or replay.
    """

    text: str
    finish_reason: str | None
    positions: list[list[tuple[str, float]]]
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    cost_usd: float | None
    latency_s: float
    in_flight: int
    model_reported: str | None
    received_at: str
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    mode: str = "online"

    def costing(self, usd: float) -> Response:
        """The same, with what it cost."""
        return replace(self, cost_usd=usd)


Position = list[tuple[str, float]]
"""The likeliest tokens at one place of an answer with their natural log-probabilities; the first is the one taken."""
