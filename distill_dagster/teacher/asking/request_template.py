"""Requests that differ by their prompt's text alone: what they share is rendered, encoded and hashed once."""

from __future__ import annotations

import hashlib
import re
import secrets

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.prompts.templates import fold_whitespace
from distill_dagster.teacher.providers.exchange import Request

_MARK = secrets.token_hex(16)
PLACEHOLDER = f"{_MARK}  {_MARK}"
"""Stands for a text. Nobody's text holds it, and its two spaces tell whether a template printed it with `one_line`."""
_FOLDED_PLACEHOLDER = fold_whitespace(PLACEHOLDER)
_PLACEHOLDERS = re.compile(f"({PLACEHOLDER}|{_FOLDED_PLACEHOLDER})")


def can_render(text: str) -> bool:
    """Whether a text can be poured: rendering trims the end of what it made, and must not reach into the text."""
    return bool(text) and not text[-1].isspace()


class RequestTemplate:
    """A request with holes where the prompt's text stands.

    Only for templates that do nothing with the text but print it (`Templates.prints`): then a request that is poured
    equals the one that is rendered for the text, and so does its key.
    """

    def __init__(self, request: Request) -> None:
        """`request` is that for the text `HOLE`."""
        self._request = request
        shared, *rest = _PLACEHOLDERS.split(to_canonical_json(request.key_fields))
        self._begun = hashlib.sha256(shared.encode())
        self._rest = [
            (hole == _FOLDED_PLACEHOLDER, after.encode()) for hole, after in zip(rest[::2], rest[1::2], strict=True)
        ]
        self._folds = any(folded for folded, _ in self._rest)
        self._own = [i for i, turn in enumerate(request.messages or []) if _PLACEHOLDERS.search(turn["content"])]

    def pour(self, text: str) -> Request:
        """The request for a text that `fits`."""
        folded = fold_whitespace(text) if self._folds else text
        plain_json = to_canonical_json(text)[1:-1].encode()
        folded_json = to_canonical_json(folded)[1:-1].encode() if self._folds else plain_json
        digest = self._begun.copy()
        for in_one_line, after in self._rest:
            digest.update(folded_json if in_one_line else plain_json)
            digest.update(after)
        like, prompt, messages = self._request, self._request.prompt, self._request.messages
        if prompt is not None:
            prompt = prompt.replace(PLACEHOLDER, text).replace(_FOLDED_PLACEHOLDER, folded)
        if messages is not None:
            messages = messages.copy()
            for i in self._own:
                content = messages[i]["content"].replace(PLACEHOLDER, text).replace(_FOLDED_PLACEHOLDER, folded)
                messages[i] = {"role": messages[i]["role"], "content": content}
        return Request(
            like.identity,
            like.sample_index,
            like.params,
            prompt,
            messages,
            like.tools,
            like.response_format,
            known_key=digest.hexdigest(),
        )
