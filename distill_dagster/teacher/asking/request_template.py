"""A request with a placeholder for the prompt's text, so that what many requests share is rendered and hashed once."""

from __future__ import annotations

import hashlib
import re
import secrets

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.prompts.templates import fold_whitespace
from distill_dagster.teacher.providers.exchange import Request

_MARK = secrets.token_hex(16)
PLACEHOLDER = f"{_MARK}  {_MARK}"
"""The placeholder for a prompt's text. It is random, so no text contains it. `one_line` folds its two spaces to one."""
_FOLDED_PLACEHOLDER = fold_whitespace(PLACEHOLDER)
_PLACEHOLDERS = re.compile(f"({PLACEHOLDER}|{_FOLDED_PLACEHOLDER})")


def can_render(text: str) -> bool:
    """Whether a text may replace the placeholder. Templates trim trailing white space, also that of the text."""
    return bool(text) and not text[-1].isspace()


class RequestTemplate:
    """A request with placeholders for the prompt's text.

    Use it only for templates that print the text and do nothing else with it (`Templates.only_prints`). Then `render`
    returns the same request, with the same key, as rendering the templates for the text.
    """

    def __init__(self, request: Request) -> None:
        """`request` is the request for the text `PLACEHOLDER`."""
        self._request = request
        shared, *rest = _PLACEHOLDERS.split(to_canonical_json(request.key_fields))
        self._shared_digest = hashlib.sha256(shared.encode())
        self._rest = [
            (mark == _FOLDED_PLACEHOLDER, after.encode()) for mark, after in zip(rest[::2], rest[1::2], strict=True)
        ]
        """For each placeholder, whether the text is folded there, and the JSON up to the next one."""
        self._folds = any(folded for folded, _ in self._rest)
        self._turns = [i for i, turn in enumerate(request.messages or []) if _PLACEHOLDERS.search(turn["content"])]
        """The indexes of the turns with a placeholder."""

    def render(self, text: str) -> Request:
        """The request for a text for which `can_render` is true."""
        folded = fold_whitespace(text) if self._folds else text
        text_json = to_canonical_json(text)[1:-1].encode()
        folded_json = to_canonical_json(folded)[1:-1].encode() if self._folds else text_json
        digest = self._shared_digest.copy()
        for is_folded, after in self._rest:
            digest.update(folded_json if is_folded else text_json)
            digest.update(after)
        request, prompt, messages = self._request, self._request.prompt, self._request.messages
        if prompt is not None:
            prompt = prompt.replace(PLACEHOLDER, text).replace(_FOLDED_PLACEHOLDER, folded)
        if messages is not None:
            messages = messages.copy()
            for i in self._turns:
                content = messages[i]["content"].replace(PLACEHOLDER, text).replace(_FOLDED_PLACEHOLDER, folded)
                messages[i] = {"role": messages[i]["role"], "content": content}
        return Request(
            request.identity,
            request.sample_index,
            request.params,
            prompt,
            messages,
            request.tools,
            request.response_format,
            thinking_tokens=request.thinking_tokens,
            known_key=digest.hexdigest(),
        )
