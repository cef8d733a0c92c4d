"""Read the error in a provider's body: of an HTTP error, or of a body that came with HTTP 200.

Only its codes and types say what an error means. Its message is shown and never searched: servers such as vLLM repeat
the prompt in it, and a prompt may contain any words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from distill_dagster.teacher.providers.body_parts import read_count, to_dict

MAX_MESSAGE_CHARS = 400
_CODE_FIELDS = ("code", "type", "status", "error_code", "error_type", "status_code", "http_code")
_MESSAGE_FIELDS = ("message", "msg", "detail", "status_msg", "error_description", "title")
_NO_ERROR_CODES = {"0", "200", "success", "ok"}
_STATUS_BY_CODE: dict[str, int] = {
    code: status
    for status, codes in {
        400: "invalid_request_error bad_request badrequesterror invalid_argument context_length_exceeded",
        401: "invalid_api_key authentication_error unauthenticated unauthorized",
        402: "insufficient_quota insufficient_balance",
        403: "permission_error permission_denied forbidden",
        404: "model_not_found not_found not_found_error notfounderror",
        408: "request_timeout",
        413: "request_too_large",
        429: "rate_limit_exceeded rate_limit_error rate_limit rate_limited too_many_requests resource_exhausted "
        "throttling throttlingexception",
        500: "server_error internal_server_error internalservererror internal_error internal api_error",
        502: "bad_gateway upstream_error provider_error",
        503: "unavailable service_unavailable serviceunavailable engine_overloaded_error model_overloaded",
        504: "timeout timeout_error gateway_timeout deadline_exceeded",
        529: "overloaded_error overloaded",
    }.items()
    for code in codes.split()
}
"""The HTTP statuses of codes and types that providers send in a body with HTTP 200."""
UNKNOWN_ERROR_STATUS = 502


@dataclass(frozen=True)
class ProviderError:
    """An error as a provider words it. `codes` are its codes and types, in lower case."""

    message: str
    codes: frozenset[str]

    @property
    def status(self) -> int:
        """The HTTP status that the error would have had, if it came with HTTP 200."""
        numbers = [number for code in self.codes if (number := read_count(code)) and 400 <= number < 600]
        named = [_STATUS_BY_CODE[code] for code in sorted(self.codes) if code in _STATUS_BY_CODE]
        return next(iter([*numbers, *named]), UNKNOWN_ERROR_STATUS)


def parse_error_body(text: str) -> ProviderError:
    """Read the body of an HTTP error, whose form depends on the provider."""
    plain = " ".join(text.split())[:MAX_MESSAGE_CHARS] or "no text"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ProviderError(plain, frozenset())
    if isinstance(value, list) and value:  # Google
        value = value[0]
    if isinstance(value, str):
        return ProviderError(value[:MAX_MESSAGE_CHARS], frozenset())
    return find_error(to_dict(value), has_answer=False) or ProviderError(plain, frozenset())


def find_error(body: dict[str, Any], *, has_answer: bool) -> ProviderError | None:
    """Find the error in a body, or in a choice; None if there is none. Empty errors count as none.

    Args:
        has_answer: the body has an answer too. Then only a field for errors counts.
    """
    found = [body.get("error"), *_to_list(body.get("errors")), body.get("base_resp")]
    if not has_answer:
        found.append(body)
    return next((error for value in found if (error := _read_error(value)) is not None), None)


def _to_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _read_error(value: Any) -> ProviderError | None:
    if not value:  # nearly always
        return None
    if isinstance(value, str) and value.strip():
        return ProviderError(value[:MAX_MESSAGE_CHARS], frozenset())
    error = to_dict(value)
    codes = frozenset(_iterate_codes(error))
    message = next((text for name in _MESSAGE_FIELDS if (text := _to_message(error.get(name)))), "")
    if codes & _NO_ERROR_CODES or not (message or codes):
        return None
    raw = to_dict(error.get("metadata")).get("raw")  # OpenRouter: the words of the provider behind it
    if isinstance(raw, str) and raw.strip():
        message = f"{message} ({' '.join(raw.split())})"
    return ProviderError((message or ", ".join(sorted(codes)))[:MAX_MESSAGE_CHARS], codes)


def _iterate_codes(error: dict[str, Any]) -> Iterator[str]:
    """The codes of an error and of the one within it (Azure), in lower case."""
    for part in (error, to_dict(error.get("innererror"))):
        for name in _CODE_FIELDS:
            if isinstance(part.get(name), str | int) and not isinstance(part[name], bool) and str(part[name]).strip():
                yield str(part[name]).strip().casefold()
    metadata = to_dict(error.get("metadata"))
    if metadata.get("reasons") or metadata.get("flagged_input"):  # OpenRouter's moderation
        yield "moderation"


def _to_message(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    return json.dumps(value, ensure_ascii=False)[:MAX_MESSAGE_CHARS] if value and isinstance(value, dict | list) else ""
