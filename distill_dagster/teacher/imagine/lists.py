"""Reading texts out of what a model wrote: JSON where it is JSON, else numbered lists, else lines."""

from __future__ import annotations

import json
import re
from typing import Any

_FENCE = re.compile(r"```[a-zA-Z]*\n(.*?)(?:```|\Z)", re.DOTALL)
_MARK = re.compile(r"^\s*(?:\(?\d{1,3}[.):]|[-*•])\s+(.*)$")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_REFUSAL = re.compile(
    r"(i'm sorry|i am sorry, but|sorry, but i|i (can't|cannot|can not|won't) (help|assist|do|write|provide)|as an ai)"
)
_QUOTES = {'"': '"', "“": "”", "'": "'", "«": "»"}


def read_outer_json(text: str) -> Any:
    """The JSON value that a text is or holds: alone, in a fenced block, or between other words; None without one."""
    fenced = _FENCE.search(text)
    for part in (text, fenced.group(1) if fenced else ""):
        for opening, closing in ("{}", "[]"):
            start, end = part.find(opening), part.rfind(closing)
            if 0 <= start < end and not (opening == "[" and 0 <= part.find("{") < start):
                try:
                    return _replace_surrogates(json.loads(part[start : end + 1], strict=False))
                except (ValueError, RecursionError):
                    continue
    return None


def _replace_surrogates(value: Any) -> Any:
    """A JSON value without halves of surrogate pairs, which JSON can escape and nothing can store."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_replace_surrogates(part) for part in value]
    return (
        {_replace_surrogates(k): _replace_surrogates(v) for k, v in value.items()} if isinstance(value, dict) else value
    )


def parse_texts(text: str, count: int, cut: bool = False) -> list[str]:
    """The texts that an answer lists, at most `count`.

    Args:
        cut: the answer ended at the limit of tokens: what it ends with is half a text and left out.
    """
    return [kept for found in _list_texts(text.strip(), count, cut) if (kept := _strip_decoration(found))][:count]


def _list_texts(text: str, count: int, cut: bool) -> list[str]:
    lines = text.splitlines()
    # A numbered text may well hold some JSON.
    numbered = any(_MARK.match(line) for line in lines) and not text.startswith(("{", "[", "```"))
    value = None if numbered else read_outer_json(text)
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list)]
        value = lists[0] if lists else [part for part in value.values() if isinstance(part, str)] or None
    if isinstance(value, list):
        return [found for item in value if (found := _find_item_text(item))]
    body = text.split("\n", 1)[1] if text.startswith("```") and "\n" in text else text
    if body.startswith(("{", "[")):  # JSON that was cut: its complete strings, without the key before the list
        inside = body.partition("[")[2]
        return [_decode_string(found.group()) for found in _STRING.finditer(inside)]
    lines = body.splitlines()
    items: list[str] = []
    open_ = False
    for line in lines:
        if marked := _MARK.match(line):
            items.append(marked.group(1))
            open_ = True
        elif not line.strip():
            open_ = False
        elif open_:
            items[-1] += f"\n{line.strip()}"
    if not items and _REFUSAL.match(body.strip().lower().replace("’", "'")):
        return []
    if not items and count == 1:
        items = [body]
    elif not items:
        items = [line for line in lines if line.strip() and not line.rstrip().endswith(":")]
    return items[:-1] if cut else items


def _decode_string(string: str) -> str:
    """A JSON string as its text; empty where an escape in it is none."""
    try:
        return str(_replace_surrogates(json.loads(string, strict=False)))
    except ValueError:
        return ""


def _find_item_text(item: Any) -> str:
    if isinstance(item, dict):
        item = next((part for part in item.values() if isinstance(part, str)), "")
    return item if isinstance(item, str) else ""


def _strip_decoration(text: str) -> str:
    """Without quotation marks or emphasis around all of it; empty where there is no word in it."""
    text = text.strip()
    for sign in ("**", "__"):
        if text.startswith(sign) and text.endswith(sign) and len(text) > 2 * len(sign):
            text = text[len(sign) : -len(sign)].strip()
    if len(text) > 2 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text if re.search(r"\w", text) else ""
