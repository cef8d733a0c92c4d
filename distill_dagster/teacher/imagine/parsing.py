"""Parse the texts that a model listed: as JSON, as a numbered list or bullets, or as lines."""

from __future__ import annotations

import json
import re
from typing import Any

from distill_dagster.core.json_text import decode_json, read_json, replace_surrogates
from distill_dagster.core.thinking import split_thinking
from distill_dagster.kinds.refusals import is_refusal_text

_MARK = re.compile(r"^\s*(?:\(?\d{1,3}[.):]|[-*•])\s+(.*)$")
_ITEM = re.compile(r'[\s,]*(?:("[^"\\]*(?:\\.[^"\\]*)*")|\{)', re.DOTALL)
"""The next item of a list: a whole string, or the bracket of an object."""
_ASKED = re.compile(r"\{\s*[\"'“]?prompts\b")
"""The beginning of the JSON that the request asks for."""
_ANSWER_TAGS = re.compile(r"<(?:answer|output|response)>(.*)</(?:answer|output|response)>", re.DOTALL)
_TAG_LINE = re.compile(r"\s*</?[\w-]+>\s*\Z")
_QUOTES = {'"': '"', "“": "”", "'": "'", "«": "»"}


def parse_texts(text: str, count: int, cut: bool = False) -> list[str]:
    """Parse the texts that an answer lists after the model's thinking, at most `count`.

    Args:
        cut: the answer ended at the token limit, so its last text is incomplete and left out.
    """
    answer = split_thinking(text).answer.strip()
    if tagged := _ANSWER_TAGS.fullmatch(answer):
        answer = tagged[1].strip()
    plain = (_strip_decoration(item) for item in _list_texts(answer, count, cut))
    return [item for item in plain if item][:count]


def _list_texts(text: str, count: int, cut: bool) -> list[str]:
    found = read_json(text)
    if asked := [value for value in found.values if isinstance(value, dict) and isinstance(value.get("prompts"), list)]:
        return [_find_item_text(item) for value in asked for item in value["prompts"]]
    lines = text.splitlines()
    # A numbered text may contain JSON.
    numbered = any(_MARK.match(line) for line in lines) and not text.startswith(("{", "[", "```"))
    if found.values and not numbered and (texts := _list_json_texts(list(found.values))) is not None:
        return texts
    if found.cut_at is not None and (not numbered or _ASKED.match(text, found.cut_at)):
        return _list_cut_texts(text, found.cut_at)
    if found.is_broken and text.startswith(("{", "[", "```")):
        return []
    body = text.split("\n", 1)[1] if text.startswith("```") and "\n" in text else text
    lines = body.splitlines()
    items: list[str] = []
    in_item = False
    for line in lines:
        if marked := _MARK.match(line):
            items.append(marked.group(1))
            in_item = True
        elif not line.strip() or _TAG_LINE.match(line):
            in_item = False
        elif in_item:
            items[-1] += f"\n{line.strip()}"
    if not items and is_refusal_text(body):
        return []
    if not items and count == 1:
        items = [body]
    elif not items:
        items = [
            line for line in lines if line.strip() and not line.rstrip().endswith(":") and not _TAG_LINE.match(line)
        ]
    return items[:-1] if cut else items


def _list_json_texts(values: list[Any]) -> list[str] | None:
    """The texts in the first JSON value, or in several objects, one after another; None if it is an object without."""
    value = values if len(values) > 1 and all(isinstance(one, dict) for one in values) else values[0]
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list)]
        value = lists[0] if lists else [part for part in value.values() if isinstance(part, str)] or None
    return None if value is None else [_find_item_text(item) for item in value]


def _list_cut_texts(text: str, start: int) -> list[str]:
    """The complete texts of a JSON list that is cut, which begins at the first bracket after `start`."""
    items: list[str] = []
    place = text.find("[", start) + 1
    while place and (item := _ITEM.match(text, place)):
        place = item.end()
        if item[1]:
            items.append(_decode_string(item[1]))
            continue
        try:
            value, place = decode_json(text, place - 1)
        except ValueError:
            break
        items.append(_find_item_text(value))
    return items


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
