"""Personal data and secrets: where they might be is found by quick patterns, whether they are by `masking`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import polars as pl

from distill_dagster.curation.about import About
from distill_dagster.curation.scores.base import Scorer
from distill_dagster.masking import MAX_CHARS, mask

HINTS = (
    # a mail address; seven digits close together (phone, card, IBAN); a named secret; the beginnings of known tokens
    r"(?i)\w@[\w-]|(?:\d[\s().+/-]{0,3}){7}|[a-z]{2}\d{2}[ -]?(?:[a-z0-9]{4}[ -]?){2}"
    r"|(?:pass(?:w(?:or)?d|phrase|code)?|pwd|\bpin|secret|token|(?:api|access|auth|private)[ _-]?key)"
    r"[\"']?\s{0,4}(?:[:=]|is\b|was\b)"
    r"|PRIVATE KEY|bearer\s|://[^/\s]{1,200}@|[A-Za-z0-9_-]{20}|sig=|AccountKey"
)
"""What every text with something to be found contains: of other texts nothing more is asked."""
REGIONS = ("US", "GB", "DE", "FR")
SECRET = "SECRET"


def masked(text: str, kinds: Collection[str]) -> str:
    """A text without these kinds of personal data and secrets, however long it is."""
    return "".join(mask(part, REGIONS, kinds).text for part in _parts(text))


def found_in(text: str) -> Counter[str]:
    """How much of each kind is in a text."""
    counts: Counter[str] = Counter()
    for part in _parts(text):
        counts.update(mask(part, REGIONS).counts)
    return counts


def _parts(text: str) -> list[str]:
    """Pieces of a length that `masking` takes in good time, cut at white space where there is any."""
    parts = []
    while len(text) > MAX_CHARS:
        cut = max(text.rfind(sign, MAX_CHARS // 2, MAX_CHARS) for sign in "\n ")
        cut = cut + 1 if cut > 0 else MAX_CHARS
        parts.append(text[:cut])
        text = text[cut:]
    return [*parts, text]


def _private(rows: pl.DataFrame, about: About) -> pl.DataFrame:
    turns = pl.col("messages").list.eval(pl.element().struct.field("content")).list.join("\n", ignore_nulls=True)
    both = rows.select(pl.concat_str(turns, "written", separator="\n\n", ignore_nulls=True).alias("both"))["both"]
    hinted = both.str.contains(HINTS).fill_null(False)
    secrets, pii = [0] * rows.height, [None] * rows.height  # type: tuple[list[int], list[str | None]]
    for row in hinted.arg_true():
        counts = found_in(both[row])
        secrets[row] = counts.pop(SECRET, 0)
        pii[row] = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())) or None
    return pl.DataFrame({"secrets": secrets, "pii": pii}, schema={"secrets": pl.Int64, "pii": pl.String})


PRIVATE = Scorer("private", "1", ("secrets", "pii"), _private)
