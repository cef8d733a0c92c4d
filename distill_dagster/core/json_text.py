"""JSON as models write it: in a code fence, behind a sentence, or as it should be."""

from __future__ import annotations

import json
import re
from typing import Any

_MAX_STARTS = 20
"""Places at which JSON is looked for; an answer of nothing but brackets must not take long."""
_START = re.compile(r"[\[{]")


def find_json(text: str) -> Any:
    """The first JSON object or list in a text, or None where there is none."""
    for found, _ in zip(_START.finditer(text), range(_MAX_STARTS), strict=False):
        try:
            return _DECODER.raw_decode(text, found.start())[0]
        except (ValueError, RecursionError):
            continue
    return None


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_reject_constant)
