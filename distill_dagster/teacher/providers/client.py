"""One request to a teacher, and its answer: what is asked, where, and what comes back."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from distill_dagster.config import TeacherSpec
from distill_dagster.core import redaction
from distill_dagster.core.errors import TeacherError
from distill_dagster.core.hashing import hash_content
from distill_dagster.teacher.providers.attempts import AttemptError
from distill_dagster.teacher.providers.exchange import Position, Request, Response
from distill_dagster.teacher.providers.terms import require_acknowledgement
from distill_dagster.teacher.providers.transport import send_request

if TYPE_CHECKING:
    from distill_dagster.teacher.providers.replay import ReplayTeacher

NO_KEY = "no-key"
"""Sent to servers that want no key: the client refuses to send nothing."""


@dataclass(frozen=True)
class Endpoint:
    """Where a teacher is asked: a litellm model id, and an address and key where they are not the provider's own."""

    model: str
    identity: str
    api_base: str | None = None
    api_key: str | None = None
    recorded: ReplayTeacher | None = None
    """What answers in place of a server, for a replay teacher."""

    def __repr__(self) -> str:
        base = redaction.redact(self.api_base) if self.api_base else None
        return f"Endpoint({self.model!r}, {self.identity!r}, api_base={base!r})"


def resolve_endpoint(spec: TeacherSpec) -> Endpoint:
    """The endpoint of a teacher that is not embedded; its key comes from the environment variable named in the spec.

    Without such a name an OpenAI-compatible server at an address of the user's own gets no key at all: not the one in
    OPENAI_API_KEY, which is meant for somebody else. Every provider's own address gets the provider's own variable.

    Raises:
        TermsError: the provider's terms restrict training with its answers, and the task does not acknowledge it.
        TeacherError: the variable is not set.
    """
    require_acknowledgement(spec)
    key = None
    if spec.api_key_env:
        key = os.environ.get(spec.api_key_env)
        if not key:
            raise TeacherError(
                f"The teacher {spec.model} wants its key in the environment variable {spec.api_key_env}, which is "
                f"not set. Set it, or mend teacher.api_key_env in task.yaml."
            )
    elif spec.model.startswith(("openai/", "text-completion-openai/")):
        if spec.api_base:
            key = NO_KEY
        elif not os.environ.get("OPENAI_API_KEY"):
            raise TeacherError(
                f"The teacher {spec.model} wants its key in the environment variable OPENAI_API_KEY, which is not set. "
                f"Set it, or name another with teacher.api_key_env, or an address with teacher.api_base, in task.yaml."
            )
    if key is not None and key != NO_KEY:
        redaction.remember_secret(key)
    model = spec.model
    if spec.api == "text" and model.startswith("openai/"):
        model = "text-completion-" + model
    return Endpoint(model, hash_content(spec.identity()), spec.api_base, key)


async def ask_once(
    endpoint: Endpoint, request: Request, timeout_s: float, in_flight: int = 1, hidden: list[str] | None = None
) -> Response:
    """Send a request once.

    Args:
        in_flight: requests of ours under way, this one included; kept with the answer.
        hidden: secrets that the answer is rid of; by default all that the process knows.

    Raises:
        AttemptError: no answer came.
        FilteredError: the provider's content filter stopped the prompt.
    """
    started = time.perf_counter()
    body = await send_request(endpoint, request, timeout_s)
    latency = time.perf_counter() - started
    choices = body.get("choices") or []
    if not choices or (request.messages is None and choices[0].get("text") is None):
        # litellm makes a choice without a text of a body that holds none, such as a proxy's `{}`.
        raise AttemptError("the body holds no answer", retry=True, maybe_billed=True)
    return redact_response(
        parse_response(body, latency, in_flight), redaction.list_credentials() if hidden is None else hidden
    )


def build_filtered_response(message: str) -> Response:
    """What a provider that will not answer a prompt says, as an answer: asking again would bring the same."""
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


def redact_error(text: str, endpoint: Endpoint) -> str:
    """A text without any secret: providers echo keys, also those that a library found by itself."""
    return redaction.redact(text, endpoint.api_key if endpoint.api_key != NO_KEY else None)[:500]


def _format_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def parse_response(body: dict[str, Any], latency: float, in_flight: int) -> Response:
    """The answer in the body of a chat or text completion."""
    choice = body["choices"][0]
    message, usage = choice.get("message") or {}, body.get("usage") or {}
    text = message.get("content") if "message" in choice else choice.get("text")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    cost, declined = body.get("cost_usd"), _read_refusal(message)
    return Response(
        text=_replace_surrogates(text or declined or ""),
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
        reasoning=_replace_surrogates(reasoning) if isinstance(reasoning, str) and reasoning else None,
        tool_calls=_read_tool_calls(message),
    )


def _read_refusal(message: dict[str, Any]) -> str | None:
    """The words in which a model declined, where the provider gives them a field of their own (OpenAI)."""
    found = message.get("refusal") or (message.get("provider_specific_fields") or {}).get("refusal")
    return str(found) if found and not message.get("content") else None


def _read_tool_calls(message: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The calls of a message by name and arguments, these as the JSON text that came."""
    functions = [call.get("function") or {} for call in message.get("tool_calls") or []]
    return [
        {"name": f.get("name"), "arguments": _replace_surrogates(f.get("arguments") or "{}")} for f in functions
    ] or None


def redact_response(response: Response, found: list[str]) -> Response:
    """A response as it may be stored: a model or a proxy may say a key back, whole or token by token."""
    said = [response.text, response.reasoning or "", response.model_reported or "", response.finish_reason or ""]
    said += [call["arguments"] for call in response.tool_calls or []]
    pieces = "".join(position[0][0] for position in response.positions)
    seen = "\0".join([*said, pieces, *(token for position in response.positions for token, _ in position)])
    if not any(secret[: redaction.MIN_SECRET_CHARS] in seen for secret in found):  # nearly always
        return response
    positions = response.positions
    if redaction.remove_secrets(pieces, found) != pieces:
        # The parts of a key stand in the taken tokens: nothing can be read from this answer's tokens any more.
        positions = [[(redaction.MASK, position[0][1])] for position in positions]
    return replace(
        response,
        text=redaction.remove_secrets(response.text, found),
        reasoning=redaction.remove_secrets(response.reasoning, found) if response.reasoning is not None else None,
        model_reported=redaction.remove_secrets(response.model_reported, found) if response.model_reported else None,
        finish_reason=redaction.remove_secrets(response.finish_reason, found) if response.finish_reason else None,
        positions=[
            [(redaction.remove_secrets(token, found), value) for token, value in position] for position in positions
        ],
        tool_calls=[
            call | {"arguments": redaction.remove_secrets(call["arguments"], found)}
            for call in response.tool_calls or []
        ]
        or None,
    )


def _replace_surrogates(text: str) -> str:
    """Half of a surrogate pair, which a model may stop in the middle of, can be neither stored nor written."""
    return text.encode("utf-8", "replace").decode()


def _read_positions(logprobs: dict[str, Any] | None) -> list[Position]:
    """Both shapes of log-probabilities: chat (`content`), and OpenAI's older one (`tokens`, `top_logprobs`)."""
    if logprobs is None:
        return []
    positions: list[Position] = []
    for entry in logprobs.get("content") or []:
        if probs := entry.get("top_probs"):  # llama.cpp behind its samplers
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
    """Natural logarithm; 0, which is what single precision makes of less than 1e-45, stays finite."""
    return math.log(max(probability, 1e-45))


def _build_position(taken: tuple[str, float], top: list[tuple[str, float]]) -> Position:
    return [
        (_replace_surrogates(taken[0]), float(taken[1])),
        *((_replace_surrogates(t), float(lp)) for t, lp in top if t != taken[0]),
    ]
