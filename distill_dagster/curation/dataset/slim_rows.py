"""What a cut holds of all candidates at once: a narrow row of each. Texts are read again where they are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from distill_dagster.curation.dataset.mask import needs_mask_expr
from distill_dagster.curation.filters import Filter, map_in_batches, mark_dropped
from distill_dagster.curation.task_view import TaskView
from distill_dagster.curation.text_columns import build_text_keys, extract_user_texts
from distill_dagster.tables.schemas import SCORED

CandidateSource = pl.DataFrame | pl.LazyFrame | Path | Sequence[Path]
"""Scored candidates (schema SCORED): a frame, Parquet files, or a query, which is run more than once and has to give
its rows in the same order each time."""
_SLIM_COLUMNS = ("prompt_id", "slice", "origin", "teacher", "confidence", "drop_reason", "drop_detail")


@dataclass(frozen=True)
class CandidateTexts:
    """The texts of candidates, which are computed when they are asked for.

    rows: of each candidate `ident` (a unique name), `prompt_id`, `slice`, and `content`, a hash of its text.
    source: the candidates in the same order; `text` makes their texts from `columns`.
    """

    rows: pl.DataFrame
    source: pl.LazyFrame
    text: Callable[[pl.DataFrame], pl.Series]
    columns: tuple[str, ...]

    def of(self, chosen: pl.Expr | None = None) -> pl.LazyFrame:
        """`ident`, `slice` and `text` of the rows chosen by an expression over `prompt_id` and `slice`, or of all."""
        rows, source = self.rows, self.source.select("prompt_id", "slice", *self.columns)
        if chosen is not None:
            rows, source = rows.filter(chosen), source.filter(chosen)  # Parquet files without such a row are not read
        made = source.map_batches(self._made, schema={"slice": pl.String, "text": pl.String}, streamable=True)
        return pl.concat([rows.select("ident").lazy(), made], how="horizontal")

    def named(self, idents: pl.Series) -> pl.LazyFrame:
        """At least those with these names."""
        prompts = self.rows.filter(pl.col("ident").is_in(idents.implode()))["prompt_id"].unique()
        return self.of(pl.col("prompt_id").is_in(prompts.implode()))

    def _made(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select("slice", self.text(rows).alias("text"))


def scan_candidates(source: CandidateSource) -> pl.LazyFrame:
    """A source as a query of the columns of SCORED."""
    if isinstance(source, pl.DataFrame | pl.LazyFrame):
        return source.lazy().select(list(SCORED))
    files = [source] if isinstance(source, Path) else list(source)
    return pl.scan_parquet(files).select(list(SCORED))


def build_slim_rows(
    source: pl.LazyFrame,
    filters: Sequence[Filter],
    about: TaskView,
    said: Sequence[str] = (),
    more: Sequence[str] = (),
) -> pl.DataFrame:
    """A narrow row of each candidate, in the order of the source.

    It has what tells candidates apart and puts them in order, `drop_reason` and `drop_detail` of the filters, `masks`
    (whether its texts are to be masked), `text_key`, `text` (a hash of the user's turns), `said` (a hash of these and
    of the columns in `said`), `ident`, `cluster_id` (null), and `more` columns. `answer` is there where it is one of
    these, or where another row has the same prompt; else it decides nothing, and is null.
    """

    def work(batch: pl.DataFrame) -> pl.DataFrame:
        text = extract_user_texts(batch["messages"])
        hashes = [text.hash(), *(batch[name].hash(seed) for seed, name in enumerate(said, 1))]
        return mark_dropped(batch, filters, about).select(
            *_SLIM_COLUMNS,
            *more,
            build_text_keys(text).alias("text_key"),
            hashes[0].alias("text"),
            pl.sum_horizontal(hashes).alias("said"),
            needs_mask_expr(filters).alias("masks"),
        )

    parts = list(map_in_batches(source, work)) or [work(pl.DataFrame(schema=SCORED))]
    rows = pl.concat(parts)
    if "answer" not in more:
        rows = rows.with_columns(_read_repeated_answers(rows["prompt_id"], source))
    return rows.with_columns(build_candidate_ids(rows), pl.lit(None, dtype=pl.String).alias("cluster_id"))


def _read_repeated_answers(prompts: pl.Series, source: pl.LazyFrame) -> pl.Series:
    """The answers of prompts that are there more than once."""
    several = prompts.is_duplicated()
    answers = pl.Series("answer", [None], dtype=pl.String).new_from_index(0, len(prompts))
    if not several.any():
        return answers
    asked = pl.col("prompt_id").is_in(prompts.filter(several).unique().implode())
    found = source.select("prompt_id", "answer").filter(asked).collect(engine="streaming")
    return answers.scatter(several.arg_true(), found["answer"])


def build_candidate_ids(rows: pl.DataFrame) -> pl.Series:
    """A name of each candidate that no other has and that is the same in every cut, whatever the order of the rows."""
    who = pl.col("teacher").fill_null("(human)")
    named = rows.select(pl.concat_str("prompt_id", "slice", who, separator="/").alias("ident"), "answer")
    several = named.with_row_index("row").filter(pl.col("ident").is_duplicated())  # two people's answers to one prompt
    if several.is_empty():
        return named["ident"]
    # Rows that agree in their answers too are interchangeable.
    ranked = several.sort("ident", "answer")
    place = pl.int_range(pl.len()).over("ident")
    told = ranked.select("row", pl.concat_str("ident", pl.lit("/"), place).alias("ident"))
    return named["ident"].scatter(told["row"], told["ident"])
