"""Who may send requests: whoever has the API key; without one, programs of this machine and no web pages."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from distill_dagster.serving.errors import ForeignPageError, UnauthorizedError

if TYPE_CHECKING:
    from starlette.requests import Request

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def check_access(request: Request, api_key: bytes | None) -> None:
    """Refuse a request without the key.

    Where there is no key, refuse what a web page sends that a browser of this machine shows: it would spend the
    teacher's budget. Such a request has another origin. A page whose name resolves to this machine (DNS rebinding)
    could also read answers; its requests have another host.

    Raises:
        UnauthorizedError: the key is missing or wrong.
        ForeignPageError: there is no key, and the host or the origin is another one than localhost.
    """
    if api_key is None:
        sent = [f"//{request.headers['host']}"] if "host" in request.headers else []
        sent += [request.headers["origin"]] if "origin" in request.headers else []
        if not all(map(_is_local, sent)):
            raise ForeignPageError(
                "Without an API key the server answers only what is sent to localhost, and no pages of other sites. "
                "Set the variable of serving.api_key_env before it starts."
            )
        return
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode("latin-1"), api_key):
        raise UnauthorizedError("The API key is missing or wrong. Send it as `Authorization: Bearer …`.")


def _is_local(address: str) -> bool:
    try:
        return urlsplit(address).hostname in LOOPBACK
    except ValueError:  # no address
        return False
