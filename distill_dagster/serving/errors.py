"""Errors of a request, each with its HTTP status and the type and code that OpenAI's clients know."""

from __future__ import annotations


class RequestError(Exception):
    """A request that gets no answer. The message says what is wrong and what to do."""

    status = 400
    kind = "invalid_request_error"
    code: str | None = None

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or self.code


class UnauthorizedError(RequestError):
    """The API key is missing or wrong."""

    status, kind, code = 401, "authentication_error", "invalid_api_key"


class ForeignPageError(RequestError):
    """A server without a key is asked by a page of another site, or under another name than localhost."""

    status, kind, code = 403, "permission_error", "foreign_origin"


class UnknownModelError(RequestError):
    """The request names another model."""

    status, code = 404, "model_not_found"


class TooLargeError(RequestError):
    """The body is larger than `serving.max_body_kb`."""

    status, code = 413, "body_too_large"


class CutRequestError(RequestError):
    """The client closed the connection before it had an answer. Nobody reads this; the metrics count it."""

    status, code = 499, "client_closed_request"


class SlowBodyError(RequestError):
    """The body did not arrive in time."""

    status, code = 408, "body_timeout"


class BusyError(RequestError):
    """More than `serving.max_waiting` requests wait."""

    status, kind, code = 429, "rate_limit_error", "too_many_requests"


class UnavailableError(RequestError):
    """The student cannot answer, or the server is stopping."""

    status, kind, code = 503, "server_error", "unavailable"


class RequestTimeoutError(RequestError):
    """The answer took longer than `serving.timeout_s`."""

    status, kind, code = 504, "server_error", "timeout"


class InternalError(RequestError):
    """Something failed that is not the client's fault."""

    status, kind, code = 500, "server_error", "internal_error"
