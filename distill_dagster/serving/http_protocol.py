"""The HTTP parser of the server, with a limit on the size of a request's line and headers."""

from __future__ import annotations

import asyncio
from typing import Literal

MAX_HEAD_BYTES = 64 * 1024
"""As uvicorn limits it with h11. With httptools it has no limit, and headers come before any key is checked."""


def choose_http_protocol() -> type[asyncio.Protocol] | Literal["h11"]:
    """The setting `http` of uvicorn: httptools with the limit, or h11 where httptools is not installed."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "h11"

    class _LimitedProtocol(HttpToolsProtocol):
        _head_bytes: int | None = 0  # None: the head is complete

        def on_message_begin(self) -> None:
            self._head_bytes = 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._head_bytes = None
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            if self._head_bytes is not None:
                self._head_bytes += len(data)
            super().data_received(data)
            if (self._head_bytes or 0) > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The headers are too large.")

    return _LimitedProtocol
