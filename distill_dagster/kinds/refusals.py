"""Refusals: the answer that represents one, and the phrases that identify a text as one.

The phrases are English. A refusal in other words counts as an answer.
"""

from __future__ import annotations

import re
from typing import Any

from distill_dagster.core.hashing import to_canonical_json

REFUSAL_KEY = "refusal"
"""The only key of an answer that is a refusal: {"refusal": "I cannot help with that."}."""
WANTED_REFUSAL = to_canonical_json({REFUSAL_KEY: "wanted"})
"""The reference of a prompt in a slice with `refusal: wanted`. It equals every refusal, whatever its words."""

_CANNOT = r"can(?:'t|not| not)|won't|will not"
_VERBS = (
    "help|assist|comply|provide|fulfill?|do (?:that|this)|support|share|discuss|write|create|generate|answer|engage"
)
REFUSAL_ANYWHERE = (
    rf"(?i)(?:sorry|afraid)\b[^.!?\n]{{0,60}}\b(?:I|we) "
    rf"(?:{_CANNOT}|am unable to|am not able to|must decline to)[^.!?\n]{{0,40}}"
    rf"|\b(?:I|we) (?:{_CANNOT}|am unable to|am not able to|must decline to)(?: \w+)? (?:{_VERBS})\b"
    r"|\b(?:goes|is) against (?:my|our) (?:guidelines|policies|policy|programming)\b"
)
"""A sentence that declines, anywhere in a text: a pattern for Python and for Polars. Apostrophes are straight."""

# At the start of a response more words are safe: "I could not give …" further on may well be part of an answer.
_CANNOT_AT_START = rf"(?:{_CANNOT}|cant|wont|could not|unable to|not able to|must decline|have to decline)"
_VERBS_AT_START = rf"(?:{_VERBS}|give|participate|continue with|offer|advise|facilitate|encourage|tell you how)"
_APOLOGY = (
    r"(?:(?:i'?m|i am|we'?re|we are)\s+)?(?:(?:very|so|really|truly)\s+)?"
    r"(?:sorry|afraid|unfortunately|my apologies|i apologi[sz]e)\b[^.!?\n]{0,60}?"
)
_REFUSAL_AT_START = re.compile(
    rf"\W{{0,3}}(?:{_APOLOGY})?(?:\bas an? [^.!?\n]{{0,40}}?,\s*)?\b(?:(?:i|we)\s*(?:'m|am|'re|are)?\s+)?"
    rf"{_CANNOT_AT_START}(?:\s+(?:to|be able to|in good conscience|knowingly|really|even)\b){{0,3}}"
    rf"\s+{_VERBS_AT_START}\b",
    re.I,
)


def is_refusal(answer: Any) -> bool:
    """Whether a canonical answer is a refusal."""
    return isinstance(answer, dict) and list(answer) == [REFUSAL_KEY]


def make_refusal(words: str) -> dict[str, str]:
    """Return the answer that represents a refusal in these words."""
    return {REFUSAL_KEY: words}


def is_refusal_text(text: str) -> bool:
    """Whether a text begins with a known phrase of a refusal."""
    return bool(_REFUSAL_AT_START.match(text.strip()[:300].replace("’", "'")))
