"""Read provider responses, and remove secrets from them before they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from distill_dagster.core import redaction
from distill_dagster.core.json_text import replace_surrogates
from distill_dagster.teacher.providers.attempts import AttemptError, ContentFilterError, classify_error
from distill_dagster.teacher.providers.body_parts import (
    UnreadableBodyError,
    describe_type,
    read_content,
    read_number,
    read_positions,
    read_reasoning,
    read_refusal,
    read_tool_calls,
    read_usage,
    to_dict,
    to_json_text,
    to_text,
)
from distill_dagster.teacher.providers.error_bodies import find_error
from distill_dagster.teacher.providers.exchange import Response
from distill_dagster.teacher.providers.finish_reasons import (
    BROKEN_OFF,
    CUT,
    get_finish_reason,
    is_transient,
    normalize_finish_reason,
    read_finish_reason,
)
from distill_dagster.teacher.providers.retry_after import read_wait

MAX_BODY_CHARS = 100_000
"""Characters of an unusable body that are stored. A readable answer is stored whole."""
READER_FAILED = "the body is in a form that is not known yet"
MAX_COST_USD = 10_000.0
"""No request costs more, so a larger number is no cost."""


def build_filtered_response(message: str) -> Response:
    """Build the response for a prompt that the content filter rejected. It is stored: asking again would not help."""
    return replace(_build_response({}, 0.0, 1), finish_reason="content_filter")


def build_unusable_response(text: str, body: Any = None, latency: float = 0.0, in_flight: int = 1) -> Response:
    """Build the record of what came instead of an answer: its text, and the tokens that were used if it says so.

    The text is for people, such as an error that quotes a URL with a key, and is redacted like any message.
    """
    response = _build_response(to_dict(body), latency, in_flight)
    plain = redaction.redact(str(replace_surrogates(text)))  # before the cut, which may leave a part of a key
    return replace(response, text=plain[:MAX_BODY_CHARS], finish_reason=BROKEN_OFF)


def parse_response(body: Any, latency: float, in_flight: int, *, logprobs: bool = False) -> Response:
    """Read the response from the body of a chat or text completion, whatever the body contains.

    Args:
        logprobs: whether log-probabilities were asked for. An answer with unusable ones is then no answer.

    Raises:
        AttemptError: the body contains an error, an answer that was broken off, or no answer in a known form. Its
            `answer` has the body as text, and the tokens that were used.
        ContentFilterError: the body says that the content filter rejected the prompt.
    """
    fields = to_dict(body)
    received = _build_response(fields, latency, in_flight)
    try:
        choice = _get_choice(fields)
        error = find_error(fields, has_answer=choice is not None) or (choice and find_error(choice, has_answer=True))
        if error:
            failure = classify_error(200, error, read_wait(None, to_json_text(fields)))
            if choice is not None and isinstance(failure, AttemptError):
                failure.maybe_billed = True  # the model had begun to answer
        elif choice is None:
            raise UnreadableBodyError(f"the response contains no answer: {_describe_choices(body)}")
        else:
            response = _read_choice(choice, received, logprobs)
            if response.finish_reason != BROKEN_OFF:
                return response
            failure = _build_broken_off(choice)
    except Exception as error:  # no body costs more than its own row, whatever the readers missed
        why = str(error) if isinstance(error, UnreadableBodyError) else f"{READER_FAILED}: {error!r}"
        # A proxy that sends `{}` may do better the next time. What counts tokens was paid for, and is not sent again.
        failure = AttemptError(why, retry=not received.prompt_tokens, maybe_billed=True)
    if isinstance(failure, ContentFilterError):
        raise failure
    failure.answer = build_unusable_response(to_json_text(body), body, latency, in_flight)
    raise failure


def _build_response(body: dict[str, Any], latency: float, in_flight: int) -> Response:
    """The response with all that does not depend on the answer."""
    prompt_tokens, completion_tokens, cached_tokens = read_usage(body)
    cost = read_number(body.get("cost_usd"))
    return Response(
        text="",
        finish_reason=None,
        positions=[],
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cached_tokens=cached_tokens,
        cost_usd=cost if cost and 0 < cost < MAX_COST_USD else None,
        latency_s=latency,
        in_flight=in_flight,
        model_reported=to_text(body.get("model")),
        received_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def _get_choice(body: dict[str, Any]) -> dict[str, Any] | None:
    """The first choice of a body; None if there is none."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else choices
    return choice if isinstance(choice, dict) and choice else None


def _describe_choices(body: Any) -> str:
    if not isinstance(body, dict):
        return f"it is {describe_type(body)}"
    if "choices" not in body:
        return "`choices` is missing"
    choices = body["choices"]
    if isinstance(choices, list):
        return f"the first choice is {describe_type(choices[0])}" if choices else "`choices` is empty"
    return f"`choices` is {describe_type(choices)}"


def _read_choice(choice: dict[str, Any], received: Response, logprobs: bool) -> Response:
    """Read the answer of one choice.

    Raises:
        UnreadableBodyError: it is in no known form.
    """
    message = to_dict(choice.get("message")) or to_dict(choice.get("delta"))
    if not message and choice.get("text") is None:
        raise UnreadableBodyError("the choice has neither a message nor a text")
    refusal = read_refusal(message)
    content, place = message.get("content"), "message.content"
    if content is None:
        content, place = choice.get("text"), "text"
    finish = "refusal" if refusal else normalize_finish_reason(get_finish_reason(choice))
    text, positions = refusal or read_content(content, place), read_positions(choice.get("logprobs"))
    if logprobs and text and choice.get("logprobs") and not positions and finish in ("stop", CUT):
        raise UnreadableBodyError("the log-probabilities of the answer are unusable: nothing is known of its tokens")
    return replace(
        received,
        text=text,
        finish_reason=finish,
        positions=positions,
        reasoning=read_reasoning(message),
        tool_calls=read_tool_calls(message),
    )


def _build_broken_off(choice: dict[str, Any]) -> AttemptError:
    reason = get_finish_reason(choice)
    word = read_finish_reason(reason)
    if word is None:
        message = "the provider does not say whether the answer is whole: it has no finish_reason"
    else:
        message = f"the answer was broken off: finish_reason is {word[:60]!r}"
    return AttemptError(message, retry=is_transient(reason), maybe_billed=True)


def redact_response(response: Response, secrets: Sequence[str]) -> Response:
    """Remove secrets from a response. A model or a proxy may repeat a key, as a whole or token by token."""
    texts = [response.text, response.reasoning or "", response.model_reported or "", response.finish_reason or ""]
    texts += [text for call in response.tool_calls or [] for text in call.values() if text]
    pieces = "".join(position[0][0] for position in response.positions)
    seen = "\0".join([*texts, pieces, *(token for position in response.positions for token, _ in position)])
    if not any(secret[: redaction.MIN_SECRET_CHARS] in seen for secret in secrets):  # nearly always
        return response

    def clean(text: str | None) -> str | None:
        return redaction.remove_secrets(text, list(secrets)) if text else text

    positions = response.positions
    if clean(pieces) != pieces:
        # The chosen tokens contain parts of a key, so mask all tokens of this answer.
        positions = [[(redaction.MASK, position[0][1])] for position in positions]
    return replace(
        response,
        text=clean(response.text) or "",
        reasoning=clean(response.reasoning),
        model_reported=clean(response.model_reported),
        finish_reason=clean(response.finish_reason),
        positions=[[(clean(token) or "", value) for token, value in position] for position in positions],
        tool_calls=[{name: clean(text) for name, text in call.items()} for call in response.tool_calls or []] or None,
    )
