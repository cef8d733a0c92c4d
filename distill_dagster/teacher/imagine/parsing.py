"""Parse the texts that a model listed: as JSON, as a numbered list or bullets, or as lines."""

from __future__ import annotations

import json
import re
from typing import Any

from distill_dagster.core.json_text import iterate_json, replace_surrogates
from distill_dagster.kinds.refusals import is_refusal_text

_MARK = re.compile(r"^\s*(?:\(?\d{1,3}[.):]|[-*•])\s+(.*)$")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_QUOTES = {'"': '"', "“": "”", "'": "'", "«": "»"}


def parse_texts(text: str, count: int, cut: bool = False) -> list[str]:
    """Parse the texts that an answer lists, at most `count`.

    Args:
        cut: the answer ended at the token limit, so its last text is incomplete and left out.
    """
    plain = (_strip_decoration(item) for item in _list_texts(text.strip(), count, cut))
    return [item for item in plain if item][:count]


def _list_texts(text: str, count: int, cut: bool) -> list[str]:
    lines = text.splitlines()
    # A numbered text may contain JSON.
    numbered = any(_MARK.match(line) for line in lines) and not text.startswith(("{", "[", "```"))
    value = None if numbered else _find_value(text)
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list)]
        value = lists[0] if lists else [part for part in value.values() if isinstance(part, str)] or None
    if isinstance(value, list):
        return [_find_item_text(item) for item in value]
    body = text.split("\n", 1)[1] if text.startswith("```") and "\n" in text else text
    if body.startswith(("{", "[")):  # incomplete JSON: its complete strings, without the key before the list
        inside = body.partition("[")[2]
        return [_decode_string(match.group()) for match in _STRING.finditer(inside)]
    lines = body.splitlines()
    items: list[str] = []
    in_item = False
    for line in lines:
        if marked := _MARK.match(line):
            items.append(marked.group(1))
            in_item = True
        elif not line.strip():
            in_item = False
        elif in_item:
            items[-1] += f"\n{line.strip()}"
    if not items and is_refusal_text(body):
        return []
    if not items and count == 1:
        items = [body]
    elif not items:
        items = [line for line in lines if line.strip() and not line.rstrip().endswith(":")]
    return items[:-1] if cut else items


def _find_value(text: str) -> Any:
    """Find the JSON value in a text. Several objects, one after another, count as a list."""
    values = list(iterate_json(text))
    if len(values) > 1 and all(isinstance(value, dict) for value in values):
        return values
    return values[0] if values else None


def _decode_string(string: str) -> str:
    """Decode a JSON string; return an empty text if it has an invalid escape."""
    try:
        return str(replace_surrogates(json.loads(string, strict=False)))
    except ValueError:
        return ""


def _find_item_text(item: Any) -> str:
    if isinstance(item, dict):
        item = next((part for part in item.values() if isinstance(part, str)), "")
    return item if isinstance(item, str) else ""


def _strip_decoration(text: str) -> str:
    """Strip quotation marks or emphasis around the whole text. Return an empty text if it has no word."""
    text = text.strip()
    for sign in ("**", "__"):
        if text.startswith(sign) and text.endswith(sign) and len(text) > 2 * len(sign):
            text = text[len(sign) : -len(sign)].strip()
    if len(text) > 2 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text if re.search(r"\w", text) else ""
