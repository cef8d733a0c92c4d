"""`python -m distill_dagster.curation` compiles the kernels, which otherwise the first run waits for."""

from __future__ import annotations

import polars as pl

from distill_dagster.curation.dedup.decontaminate import decontaminate
from distill_dagster.curation.dedup.duplicates import find_duplicates
from distill_dagster.curation.scores.prose import digit_counts, echo, prose, word_counts


def main() -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen"
    rows = pl.DataFrame({"id": ["a", "b"], "text": [words, f"{words} and more"]})
    find_duplicates(rows)
    decontaminate(rows, rows)
    texts = rows["text"]
    prose(texts)
    word_counts(texts)
    digit_counts(texts)
    echo(texts, texts)


if __name__ == "__main__":
    main()
