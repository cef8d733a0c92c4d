"""`python -m distill_dagster.curation` compiles the kernels, so that the first run does not wait for it."""

from __future__ import annotations

import polars as pl

from distill_dagster.curation.dedup.decontaminate import find_contamination
from distill_dagster.curation.dedup.duplicates import find_duplicates
from distill_dagster.curation.scores.kernel import count_digits, count_words, measure_echo, measure_prose


def main() -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen"
    rows = pl.DataFrame({"id": ["a", "b"], "text": [words, f"{words} and more"]})
    find_duplicates(rows)
    find_contamination(rows, rows)
    texts = rows["text"]
    measure_prose(texts)
    count_words(texts)
    count_digits(texts)
    measure_echo(texts, texts)


if __name__ == "__main__":
    main()
