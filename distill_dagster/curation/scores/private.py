"""Personal data and secrets: where they might be is found by quick patterns, whether they are by `masking`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

import polars as pl

from distill_dagster.curation.scores.base import Scorer
from distill_dagster.curation.task_view import TaskView
from distill_dagster.intake.masking import MAX_TEXT_CHARS, mask_text

_DIGIT_SEPARATORS = r"[\p{Pd}\s().+/~\[\]\u{AD}\u{200B}\u{2060}（）［］⁓∼～／−ー]{0,4}"
KIND_HINTS = {
    "EMAIL": r"\w@[\w-]",
    "PHONE": rf"(?:\d{_DIGIT_SEPARATORS}){{6}}\d",
    "IBAN": r"[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11}",
    "CARD": r"\d(?:[ -]?\d){13}",
    # A named secret; the marks of keys and of addresses with a password; any token of some length.
    "SECRET": (
        r"(?i:(?:pass(?:w(?:or)?d|phrase|code)?|pwd|\bpin|secret|token|(?:api|access|auth|private)[ _-]?key)"
        r"[\"']?[ \t]{0,4}(?:[:=]{1,2}|\bis\b|\bwas\b)[ \t]{0,4}[\"'`]?\S{0,200}[0-9!@#$%^&*_+=~])"
        r"|PRIVATE KEY|(?i:bearer[ \t])|://[^/\s]{1,200}@|[A-Za-z0-9_-]{20}|(?i:sig=|accountkey|key-|\d:aa)"
    ),
}
"""What every text with something of a kind contains: of other texts nothing more is asked."""
HINT_MARGIN = 100
DEFAULT_PHONE_REGIONS = ("US", "GB", "DE", "FR")
SECRET_KIND = "SECRET"


def mask_long_text(text: str, kinds: Collection[str]) -> str:
    """A text without these kinds of personal data and secrets, however long it is."""
    return "".join(mask_text(part, DEFAULT_PHONE_REGIONS, kinds).text for part in _split_text(text))


def count_personal_data(text: str, kinds: Collection[str]) -> Counter[str]:
    """How much of each of these kinds is in a text."""
    counts: Counter[str] = Counter()
    for part in _split_text(text):
        others = [kind for kind in kinds if kind != SECRET_KIND]
        # Some patterns of detect-secrets take quadratic time: they see what stands around a hint, not all of it.
        near = (
            [mask_text(one, (), [SECRET_KIND]).counts for one in _cut_around_hints(part)]
            if SECRET_KIND in kinds
            else []
        )
        if any(near) and others:  # one may be part of the other: a password within what looks like a mail address
            counts.update(mask_text(part, DEFAULT_PHONE_REGIONS, kinds).counts)
            continue
        for found in near:
            counts.update(found)
        counts.update(mask_text(part, DEFAULT_PHONE_REGIONS, others).counts if others else {})
    return counts


def _cut_around_hints(text: str) -> list[str]:
    """What stands near hints of a secret, `NEAR` characters before and behind; near ones together."""
    spans: list[list[int]] = []
    for match in re.finditer(KIND_HINTS["SECRET"], text):
        start, end = max(0, match.start() - HINT_MARGIN), match.end() + HINT_MARGIN
        if spans and start <= spans[-1][1]:
            spans[-1][1] = end
        else:
            spans.append([start, end])
    return [text[start:end] for start, end in spans]


def _split_text(text: str) -> list[str]:
    """Pieces of a length that `masking` takes in good time, cut at white space where there is any."""
    parts = []
    while len(text) > MAX_TEXT_CHARS:
        cut = max(text.rfind(sign, MAX_TEXT_CHARS // 2, MAX_TEXT_CHARS) for sign in "\n ")
        cut = cut + 1 if cut > 0 else MAX_TEXT_CHARS
        parts.append(text[:cut])
        text = text[cut:]
    return [*parts, text]


def _score_personal_data(rows: pl.DataFrame, about: TaskView) -> pl.DataFrame:
    turns = pl.col("messages").list.eval(pl.element().struct.field("content")).list.join("\n", ignore_nulls=True)
    both = rows.select(pl.concat_str(turns, "written", separator="\n\n", ignore_nulls=True).alias("both"))["both"]
    from distill_dagster.curation.scores.prose import count_digits  # late: numba

    # Numbers are looked for where there are enough digits: nothing of these kinds has fewer.
    numbers = count_digits(both) >= 7
    held, rows_held = both.filter(numbers), numbers.arg_true()

    def hinted(kind: str, hint: str) -> pl.Series:
        if kind in ("EMAIL", SECRET_KIND):
            return both.str.contains(hint).fill_null(False)
        none = pl.Series([False]).new_from_index(0, rows.height)
        return none.scatter(rows_held, held.str.contains(hint)) if len(held) else none

    hints = pl.DataFrame({kind: hinted(kind, hint) for kind, hint in KIND_HINTS.items()})
    rows_hinted = hints.select(pl.any_horizontal(pl.all())).to_series().arg_true()
    secrets, pii = [0] * rows.height, [None] * rows.height  # type: tuple[list[int], list[str | None]]
    for row, kinds in zip(rows_hinted, hints[rows_hinted].iter_rows(named=True), strict=True):
        counts = count_personal_data(both[row], [kind for kind, found in kinds.items() if found])
        secrets[row] = counts.pop(SECRET_KIND, 0)
        pii[row] = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())) or None
    return pl.DataFrame({"secrets": secrets, "pii": pii}, schema={"secrets": pl.Int64, "pii": pl.String})


PRIVATE_SCORER = Scorer("private", "1", ("secrets", "pii"), _score_personal_data)
