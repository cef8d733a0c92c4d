"""Responses in the form that OpenAI's clients expect, with who answered in their headers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from distill_dagster.serving.answering import ServedAnswer
from distill_dagster.serving.errors import RequestError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


def build_headers(answers: list[ServedAnswer]) -> dict[str, str]:
    """Who answered, for clients that read no unknown fields."""
    if len(answers) != 1:
        return {}
    headers: dict[str, str] = {"x-distill-route": answers[0].route}
    if answers[0].student.confidence is not None:
        headers["x-distill-confidence"] = f"{answers[0].student.confidence:.4f}"
    return headers


def format_json(value: Any, answers: list[ServedAnswer] | None = None, status: int = 200) -> Response:
    """A response with a JSON body."""
    from starlette.responses import Response

    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    return Response(body, status, build_headers(answers or []), media_type="application/json")


def format_error(error: RequestError) -> Response:
    """An error in the form of OpenAI's."""
    details = {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}
    response = format_json({"error": details}, status=error.status)
    if error.status in (408, 429, 503):
        response.headers["retry-after"] = "1"
    if error.status == 408:
        response.headers["connection"] = "close"
    return response


async def say_not_found(request: Request, error: Exception) -> Response:
    """The answer to an unknown address, or to another method than it has."""
    from starlette.exceptions import HTTPException

    status = error.status_code if isinstance(error, HTTPException) else 404
    why = "There is no such address." if status == 404 else f"{request.method} is not allowed here."
    details = {"message": why, "type": "invalid_request_error", "param": None, "code": "unknown_url"}
    return format_json({"error": details}, status=status)
