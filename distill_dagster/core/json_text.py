"""Find JSON in text that a model wrote: alone, in a fenced block, or between other words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

MAX_FAILED_STARTS = 20
"""Brackets that begin no JSON, per text. A text of nothing but brackets must not take long."""
_START = re.compile(r"[\[{]")
_FENCE = re.compile(r"```[a-zA-Z]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def find_json(text: str) -> Any:
    """Return the first JSON object or list in a text, or None. See `iterate_json`."""
    return next(iterate_json(text), None)


def iterate_json(text: str) -> Iterator[Any]:
    """Yield the JSON objects and lists in a text, in order; values inside another one are not yielded again.

    A text that begins with JSON is read from its beginning. Otherwise fenced blocks come first, and the rest of the
    text counts only if no block contains JSON. Line breaks inside strings are accepted. `NaN` and `Infinity` are
    not JSON. Unpaired surrogates, which JSON can escape and no table can store, become `?`.
    """
    if not text.lstrip().startswith(("{", "[")):
        fenced = [value for block in _FENCE.findall(text) for value in _decode_all(block)]
        if fenced:
            yield from fenced
            return
    yield from _decode_all(text)


def replace_surrogates(value: Any) -> Any:
    """Return a JSON value with every unpaired surrogate replaced by `?`, in keys too."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {replace_surrogates(name): replace_surrogates(item) for name, item in value.items()}
    return value


def _decode_all(text: str) -> Iterator[Any]:
    place = failed = 0
    while failed < MAX_FAILED_STARTS and (start := _START.search(text, place)):
        try:
            value, place = _DECODER.raw_decode(text, start.start())
            yield replace_surrogates(value)
        except (ValueError, RecursionError):
            failed, place = failed + 1, start.start() + 1


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_reject_constant, strict=False)
