"""Read provider responses, and remove secrets from them before they are stored."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from distill_dagster.core import redaction
from distill_dagster.core.json_text import replace_surrogates
from distill_dagster.teacher.providers.exchange import Position, Response


def build_filtered_response(message: str) -> Response:
    """Build the response for a prompt that the content filter rejected. It is stored: asking again would not help."""
    return Response(
        text="",
        finish_reason="content_filter",
        positions=[],
        prompt_tokens=None,
        completion_tokens=None,
        cached_tokens=None,
        cost_usd=None,
        latency_s=0.0,
        in_flight=1,
        model_reported=None,
        received_at=_format_now(),
        reasoning=None,
    )


def _format_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def parse_response(body: dict[str, Any], latency: float, in_flight: int) -> Response:
    """Read the response from the body of a chat or text completion.

    It replaces unpaired surrogates, which cannot be stored. A model may stop in the middle of a pair.
    """
    choice = body["choices"][0]
    message, usage = choice.get("message") or {}, body.get("usage") or {}
    text = message.get("content") if "message" in choice else choice.get("text")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    cost, declined = body.get("cost_usd"), _read_refusal(message)
    return Response(
        text=replace_surrogates(text or declined or ""),
        finish_reason="refusal" if declined else choice.get("finish_reason"),
        positions=_read_positions(choice.get("logprobs")),
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        cost_usd=float(cost) if cost else None,
        latency_s=latency,
        in_flight=in_flight,
        model_reported=body.get("model"),
        received_at=_format_now(),
        reasoning=replace_surrogates(reasoning) if isinstance(reasoning, str) and reasoning else None,
        tool_calls=_read_tool_calls(message),
    )


def _read_refusal(message: dict[str, Any]) -> str | None:
    """Read the text of a refusal, if the provider has a separate field for it (OpenAI)."""
    found = message.get("refusal") or (message.get("provider_specific_fields") or {}).get("refusal")
    return str(found) if found and not message.get("content") else None


def _read_tool_calls(message: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Read the tool calls of a message: names, and arguments as the JSON text that was received."""
    functions = [call.get("function") or {} for call in message.get("tool_calls") or []]
    return [
        {"name": f.get("name"), "arguments": replace_surrogates(f.get("arguments") or "{}")} for f in functions
    ] or None


def redact_response(response: Response, secrets: list[str]) -> Response:
    """Remove secrets from a response. A model or a proxy may repeat a key, as a whole or token by token."""
    texts = [response.text, response.reasoning or "", response.model_reported or "", response.finish_reason or ""]
    texts += [call["arguments"] for call in response.tool_calls or []]
    pieces = "".join(position[0][0] for position in response.positions)
    seen = "\0".join([*texts, pieces, *(token for position in response.positions for token, _ in position)])
    if not any(secret[: redaction.MIN_SECRET_CHARS] in seen for secret in secrets):  # nearly always
        return response
    positions = response.positions
    if redaction.remove_secrets(pieces, secrets) != pieces:
        # The chosen tokens contain parts of a key, so mask all tokens of this answer.
        positions = [[(redaction.MASK, position[0][1])] for position in positions]
    return replace(
        response,
        text=redaction.remove_secrets(response.text, secrets),
        reasoning=redaction.remove_secrets(response.reasoning, secrets) if response.reasoning is not None else None,
        model_reported=redaction.remove_secrets(response.model_reported, secrets) if response.model_reported else None,
        finish_reason=redaction.remove_secrets(response.finish_reason, secrets) if response.finish_reason else None,
        positions=[
            [(redaction.remove_secrets(token, secrets), value) for token, value in position] for position in positions
        ],
        tool_calls=[
            call | {"arguments": redaction.remove_secrets(call["arguments"], secrets)}
            for call in response.tool_calls or []
        ]
        or None,
    )


def _read_positions(logprobs: dict[str, Any] | None) -> list[Position]:
    """Read log-probabilities in the form of chat (`content`) or of OpenAI's text API (`tokens`, `top_logprobs`)."""
    if logprobs is None:
        return []
    positions: list[Position] = []
    for entry in logprobs.get("content") or []:
        if probs := entry.get("top_probs"):  # llama.cpp, after its samplers
            top = [(t["token"], _log_probability(t["prob"])) for t in probs]
            positions.append(
                _build_position((str(entry.get("token")), _log_probability(entry.get("prob") or 0.0)), top)
            )
            continue
        top = [(t["token"], t["logprob"]) for t in entry.get("top_logprobs") or []]
        positions.append(_build_position((str(entry.get("token")), entry.get("logprob") or 0.0), top))
    if positions:
        return positions
    get = logprobs.get
    tokens, values, tops = get("tokens") or [], get("token_logprobs") or [], get("top_logprobs") or []
    for token, value, top in zip(tokens, values, tops, strict=False):
        positions.append(_build_position((token, value), list((top or {}).items())))
    return positions


def _log_probability(probability: float) -> float:
    """Natural logarithm, finite for 0: single precision turns probabilities below 1e-45 into 0."""
    return math.log(max(probability, 1e-45))


def _build_position(chosen: tuple[str, float], top: list[tuple[str, float]]) -> Position:
    return [
        (replace_surrogates(chosen[0]), float(chosen[1])),
        *((replace_surrogates(t), float(lp)) for t, lp in top if t != chosen[0]),
    ]
