"""Personal data and secrets in prompts and responses.

Fast patterns find the rows that may contain some. Then `intake.masking` decides.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

import polars as pl

from distill_dagster.curation.scores.base import Scorer
from distill_dagster.curation.task_view import TaskView
from distill_dagster.intake.masking import mask_text

_DIGIT_SEPARATORS = r"[\p{Pd}\s().+/~\[\]\u{AD}\u{200B}\u{2060}（）［］⁓∼～／−ー]{0,4}"
KIND_HINTS = {
    "EMAIL": r"\w@[\w-]",
    "PHONE": rf"(?:\d{_DIGIT_SEPARATORS}){{6}}\d",
    "IBAN": r"[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11}",
    "CARD": r"\d(?:[ -]?\d){13}",
    # A named secret, the start of a key, a URL with a password, or any long token.
    "SECRET": (
        r"(?i:(?:pass(?:w(?:or)?d|phrase|code)?|pwd|\bpin|secret|token|(?:api|access|auth|private)[ _-]?key)"
        r"[\"']?[ \t]{0,4}(?:[:=]{1,2}|\bis\b|\bwas\b)[ \t]{0,4}[\"'`]?\S{0,200}[0-9!@#$%^&*_+=~])"
        r"|PRIVATE KEY|(?i:bearer[ \t])|://[^/\s]{1,200}@|[A-Za-z0-9_-]{20}|(?i:sig=|accountkey|key-|\d:aa)"
    ),
}
"""A pattern per kind. Every text with data of this kind matches it, so other texts are not searched."""
HINT_MARGIN = 100
"""Characters around a hint of a secret that are searched."""
MIN_DIGITS = 7
"""Phone numbers, IBANs and cards have at least this number of digits."""
SECRET_KIND = "SECRET"


def count_personal_data(text: str, kinds: Collection[str], phone_regions: Sequence[str]) -> Counter[str]:
    """Count the personal data and secrets in a text.

    Args:
        kinds: what to look for, such as EMAIL or SECRET.
        phone_regions: countries whose national phone numbers count.
    """
    others = [kind for kind in kinds if kind != SECRET_KIND]
    # Some patterns of detect-secrets take quadratic time: search only the text around hints.
    parts = _cut_around_hints(text) if SECRET_KIND in kinds else []
    secret_counts = [mask_text(part, (), [SECRET_KIND]).counts for part in parts]
    if any(secret_counts) and others:  # data may overlap, such as a password in what looks like an email address
        return Counter(mask_text(text, phone_regions, kinds).counts)
    counts: Counter[str] = Counter()
    for part_counts in secret_counts:
        counts.update(part_counts)
    if others:
        counts.update(mask_text(text, phone_regions, others).counts)
    return counts


def _cut_around_hints(text: str) -> list[str]:
    """The parts of a text within `HINT_MARGIN` characters of a hint of a secret. Overlapping parts are joined."""
    spans: list[list[int]] = []
    for match in re.finditer(KIND_HINTS[SECRET_KIND], text):
        start, end = max(0, match.start() - HINT_MARGIN), match.end() + HINT_MARGIN
        if spans and start <= spans[-1][1]:
            spans[-1][1] = end
        else:
            spans.append([start, end])
    return [text[start:end] for start, end in spans]


def _score_personal_data(rows: pl.DataFrame, task: TaskView) -> pl.DataFrame:
    from distill_dagster.curation.scores.kernel import count_digits  # loads numba

    turns = pl.col("messages").list.eval(pl.element().struct.field("content")).list.join("\n", ignore_nulls=True)
    both = rows.select(pl.concat_str(turns, "written", separator="\n\n", ignore_nulls=True).alias("both"))["both"]
    has_digits = count_digits(both) >= MIN_DIGITS
    with_digits, places = both.filter(has_digits), has_digits.arg_true()

    def match_hint(kind: str, hint: str) -> pl.Series:
        if kind in ("EMAIL", SECRET_KIND):
            return both.str.contains(hint).fill_null(False)
        none = pl.Series([False]).new_from_index(0, rows.height)
        return none.scatter(places, with_digits.str.contains(hint)) if len(with_digits) else none

    hints = pl.DataFrame({kind: match_hint(kind, hint) for kind, hint in KIND_HINTS.items()})
    candidates = hints.select(pl.any_horizontal(pl.all())).to_series().arg_true()
    secrets, personal = [0] * rows.height, [None] * rows.height  # type: tuple[list[int], list[str | None]]
    for row, matches in zip(candidates, hints[candidates].iter_rows(named=True), strict=True):
        kinds = [kind for kind, is_match in matches.items() if is_match]
        counts = count_personal_data(both[row], kinds, task.phone_regions)
        secrets[row] = counts.pop(SECRET_KIND, 0)
        personal[row] = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or None
    return pl.DataFrame({"secrets": secrets, "pii": personal}, schema={"secrets": pl.Int64, "pii": pl.String})


PERSONAL_DATA_SCORER = Scorer("private", "1", ("secrets", "pii"), _score_personal_data, uses_phone_regions=True)
