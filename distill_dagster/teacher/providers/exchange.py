"""A request to a teacher and its response."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field, replace
from typing import Any

from distill_dagster.core.hashing import hash_content

UNKNOWN_MAX_TOKENS = 4096
"""Counted for the answer to a request that does not limit it."""


@dataclass(frozen=True)
class Request:
    """One request to a teacher. Exactly one of `prompt` (text API) and `messages` (chat API) is set."""

    identity: str
    sample_index: int
    params: dict[str, Any]
    prompt: str | None = None
    messages: list[dict[str, str]] | None = None
    tools: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None
    attempt: int = 0
    """More than 0 when the same request is sent again because its answer was unusable. It has a key of its own."""
    thinking_tokens: int = 0
    """Tokens for the model's thinking, on top of `params["max_tokens"]`.

    It is not part of the key, since it does not change an answer that was not cut. A user's own number is in `params`.
    """
    known_key: InitVar[str | None] = None
    """The key, if the caller computed it from the same fields. `dataclasses.replace` computes it again."""
    key: str = field(init=False)
    """request_key: the hash of `key_fields`."""

    def __post_init__(self, known_key: str | None) -> None:
        object.__setattr__(self, "key", known_key or hash_content(self.key_fields))

    @property
    def key_fields(self) -> dict[str, Any]:
        """Everything that shapes the answer, without where, when or for whom the request is sent."""
        fields: dict[str, Any] = {"prompt": self.prompt, "messages": self.messages}
        fields |= {"tools": self.tools, "response_format": self.response_format}
        fields |= {"attempt": self.attempt} if self.attempt else {}
        return fields | {"teacher": self.identity, "params": self.params, "sample": self.sample_index}

    def build_body(self) -> dict[str, Any]:
        """The body to send, without the model: the parameters, and the prompt or the messages."""
        body: dict[str, Any] = {"messages": self.messages} if self.messages is not None else {"prompt": self.prompt}
        if self.tools is not None:
            body["tools"] = self.tools
        if self.response_format is not None:
            body["response_format"] = self.response_format
        params = {name: value for name, value in self.params.items() if name not in ("extra_body", "thinking_tokens")}
        if "max_tokens" in params:
            params["max_tokens"] += self.thinking_tokens
        return body | params | (self.params.get("extra_body") or {})

    @property
    def max_answer_tokens(self) -> int:
        """The tokens of the longest possible answer, with its thinking."""
        answer = self.params.get("max_tokens") or self.params.get("max_completion_tokens") or UNKNOWN_MAX_TOKENS
        return int(answer) + self.thinking_tokens


@dataclass(slots=True)  # frozen would take four times as long to make, and one is made of each stored answer
class Response:
    """The response to one request, as received. Soft labels are read from it later and do not replace it.

    `positions` contains, for each token of the answer, the likeliest tokens with their natural log-probabilities; the
    first is the token that was chosen. `latency_s` is seconds on the wire, while `in_flight` requests of this process
    were under way. `mode` is online, batch (latency is not measured) or replay. `soft_labels` has the numbers that a
    recording states for labels, which need not sum to 1.
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
    soft_labels: dict[str, float] | None = None

    def with_cost(self, usd: float) -> Response:
        """The same response with its cost in USD."""
        return replace(self, cost_usd=usd)


Position = list[tuple[str, float]]
"""The likeliest tokens at one place of an answer, with natural log-probabilities; the first is the chosen one."""
