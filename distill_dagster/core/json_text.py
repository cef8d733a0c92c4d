"""Find JSON in text that a model wrote: alone, in a fenced block, or between other words.

Read as JSON are also commas too many, comments, single or curly quotation marks, names without quotation marks, and
`True`, `False` and `None`. A value that is cut off, or broken in another way, is not read, and neither is a part of it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MAX_FAILED_STARTS = 20
"""Brackets that begin no JSON, per text. A text of nothing but brackets must not take long."""
MAX_DEPTH = 64
"""Deeper values are not read: those who work on them go down by recursion."""
_START = re.compile(r"[\[{]")
_LIKE_JSON = re.compile(
    r"\{\s*(?:[\"'“}]|[A-Za-z_]\w*\s*(?::|\Z)|\Z)"
    r"|\[\s*(?:[\"'“{\[\]]|-?\d|-?\Z|(?:true|false|null|True|False|None)\s*[,\]]|[TtFfNn][a-z]{0,4}\Z)"
)
"""A bracket with what follows it in JSON, or with the end of the text. "[note]" and "{name}" are other brackets."""
_FENCE = re.compile(r"```[a-zA-Z0-9_+-]*[ \t]*\r?\n")
_TOKEN = re.compile(
    r'(?P<string>"[^"\\]*(?:\\.[^"\\]*)*")|(?P<comment>//[^\n]*|/\*.*?\*/)|(?P<name>[A-Za-z_]\w*)'
    r"|(?P<number>\d[\w.]*)|(?P<space>\s+)|(?P<sign>.)",
    re.DOTALL,
)
_OTHER_STRING = re.compile(r"'((?:[^'\\]|\\.|'(?!\s*[,:}\]]))*)'(?=\s*[,:}\]])|“([^”]*)”", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|.)", re.DOTALL)
_CONSTANTS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}


@dataclass(frozen=True)
class FoundJson:
    """The JSON objects and lists in a text, in order. `is_cut`: after them another one begins that does not end.

    `is_broken`: another one is not JSON, although it looks like it. `cut_at` is the index at which the one that does
    not end begins.
    """

    values: tuple[Any, ...] = ()
    is_cut: bool = False
    is_broken: bool = False
    cut_at: int | None = field(default=None, compare=False)


def find_json(text: str) -> Any:
    """Return the first JSON object or list in a text, or None. See `read_json`."""
    return next(iterate_json(text), None)


def iterate_json(text: str) -> Iterator[Any]:
    """Yield the JSON objects and lists in a text, in order. See `read_json`."""
    yield from read_json(text).values


def read_json(text: str) -> FoundJson:
    """Read the JSON objects and lists in a text; values inside another one are not listed again.

    A text that begins with JSON is read from its beginning. Otherwise fenced blocks come first, and the rest of the
    text counts only if no block contains JSON. Line breaks inside strings are accepted. `NaN` and `Infinity` are
    not JSON. Unpaired surrogates, which JSON can escape and no table can store, become `?`.
    """
    if text.lstrip().startswith(('"{', '"[')):
        text = _decode_string(text)
    if not text.lstrip().startswith(("{", "[")):
        fenced = _Reader(text)
        place = 0
        while fence := _FENCE.search(text, place):
            place = fenced.read_until_fence(fence.end())
        if fenced.values or fenced.is_cut:
            return fenced.get_found()
    reader = _Reader(text)
    reader.read(0)
    return reader.get_found()


def decode_json(text: str, start: int = 0) -> tuple[Any, int]:
    """Decode the JSON object or list that begins at `start`, and return it with the index after it.

    Raises:
        CutJsonError: the text ends before the value does.
        ValueError: it is no JSON.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        if not _LIKE_JSON.match(text, start):
            raise ValueError("no JSON") from None
        repaired, end = _repair(text, start)
        try:
            value = _DECODER.decode(repaired)
        except (ValueError, RecursionError):
            raise BrokenJsonError(end) from None
    try:
        return replace_surrogates(value), end
    except RecursionError:
        raise BrokenJsonError(end) from None


class CutJsonError(ValueError):
    """A JSON value begins and does not end."""


class BrokenJsonError(ValueError):
    """A text looks like JSON and is not. `end` is the index after its last bracket."""

    def __init__(self, end: int) -> None:
        super().__init__("broken JSON")
        self.end = end


def replace_surrogates(value: Any, depth: int = 0) -> Any:
    """Return a JSON value with every unpaired surrogate replaced by `?`, in keys too.

    Raises:
        RecursionError: lists and objects are nested deeper than `MAX_DEPTH`.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if depth > MAX_DEPTH:
        raise RecursionError("nested too deeply")
    if isinstance(value, list):
        return [replace_surrogates(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {replace_surrogates(name): replace_surrogates(item, depth + 1) for name, item in value.items()}
    return value


def _decode_string(text: str) -> str:
    """The text in a JSON string, for JSON that was encoded twice; the text itself if it is something else."""
    try:
        value = _DECODER.decode(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text


class _Reader:
    """Collects the values of one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.values: list[Any] = []
        self.is_cut = self.is_broken = False
        self.cut_at: int | None = None
        self._failed = 0

    def get_found(self) -> FoundJson:
        return FoundJson(tuple(self.values), self.is_cut, self.is_broken, self.cut_at)

    def read_until_fence(self, place: int) -> int:
        """Read the values of a fenced block that begins at `place`; return the index after the block."""
        while True:
            close = self.text.find("```", place)
            start = _START.search(self.text, place, close if close >= 0 else len(self.text))
            if start is None or self._failed >= MAX_FAILED_STARTS:
                return close + 3 if close >= 0 else len(self.text)
            place = self._read_at(start.start())

    def read(self, place: int) -> None:
        """Read all values from `place` on."""
        while self._failed < MAX_FAILED_STARTS and (start := _START.search(self.text, place)):
            place = self._read_at(start.start())

    def _read_at(self, start: int) -> int:
        """Read the value at a bracket, and return the index at which to go on."""
        try:
            value, end = decode_json(self.text, start)
        except CutJsonError:
            self.is_cut, self.cut_at = True, start
            return len(self.text)
        except BrokenJsonError as error:
            self._failed, self.is_broken = self._failed + 1, True
            return error.end
        except ValueError:
            self._failed += 1
            return start + 1
        self.values.append(value)
        return end


def _repair(text: str, start: int) -> tuple[str, int]:
    """Rewrite what begins with the bracket at `start` as strict JSON, and return it with the index after it.

    Raises:
        CutJsonError: its bracket is never closed.
    """
    parts: list[str] = []
    depth, place, last = 0, start, -1  # `last` is the index of the last part that is no white space
    while place < len(text):
        before = parts[last] if last >= 0 else ""
        if text[place] in "'“" and before in ("{", "[", ",", ":") and (other := _OTHER_STRING.match(text, place)):
            part, kind, place = _quote(other[1] if other[2] is None else other[2]), "string", other.end()
        else:
            token = _TOKEN.match(text, place)
            assert token is not None
            part, kind, place = token.group(), token.lastgroup or "", token.end()
        if part == '"':
            raise CutJsonError("a string does not end")
        if kind in ("space", "comment"):
            parts.append(" ")
            continue
        if kind == "string":
            part = _ESCAPE.sub(_repair_escape, part)
        elif kind == "name":
            is_key = text[place : place + 20].lstrip().startswith(":")
            part = f'"{part}"' if is_key else _CONSTANTS.get(part, part)
        elif part in ("}", "]") and before == ",":
            parts[last] = " "
        elif part == "," and before in (",", "{", "["):
            continue
        depth += (part in ("[", "{")) - (part in ("]", "}"))
        last = len(parts)
        parts.append(part)
        if depth == 0:
            return "".join(parts), place
    raise CutJsonError("a bracket is not closed")


def _quote(inner: str) -> str:
    """A string with other quotation marks as one with double ones."""
    escaped = re.sub(r'\\.|"', lambda found: found.group() if len(found.group()) > 1 else '\\"', inner, flags=re.DOTALL)
    return f'"{escaped}"'


def _repair_escape(escape: re.Match[str]) -> str:
    """An escape that JSON does not have as the characters that it stands for: `\\'`, and `\\(` of TeX."""
    sign = escape.group()[1]
    if sign in '"\\/bfnrt' or len(escape.group()) > 2:
        return escape.group()
    return sign if sign in "'\n" else f"\\\\{sign}"


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _parse_finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is too large")
    return value


_DECODER = json.JSONDecoder(parse_constant=_reject_constant, parse_float=_parse_finite, strict=False)
