"""Slim rows of candidates, on disk. Texts are read again where they are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from distill_dagster.core.workers import IN_PROCESS, Workers
from distill_dagster.curation.dataset.mask import needs_mask_expr
from distill_dagster.curation.dataset.split import hash_text_keys
from distill_dagster.curation.filters import Filter, map_in_batches, mark_dropped
from distill_dagster.curation.filters.run import FILTER_BATCH_ROWS
from distill_dagster.curation.task_view import TaskView
from distill_dagster.curation.text_columns import build_text_keys, extract_user_texts
from distill_dagster.tables.schemas import SCORED

CandidateSource = pl.DataFrame | pl.LazyFrame | Path | Sequence[Path]
"""Scored candidates (schema SCORED): a frame, Parquet files, or a query. A query runs more than once and has to return
its rows in the same order each time."""
_SLIM_COLUMNS = ("prompt_id", "slice", "origin", "teacher", "confidence", "drop_reason", "drop_detail")


@dataclass(frozen=True)
class CandidateTexts:
    """The texts of candidates, computed on demand.

    Attributes:
        rows: for each candidate `ident` (a unique id), `prompt_id`, `slice`, and `content`, a hash of its text.
        source: the candidates in the same order.
        build_text: builds their texts from `columns`.
    """

    rows: pl.LazyFrame
    source: pl.LazyFrame
    build_text: Callable[[pl.DataFrame], pl.Series]
    columns: tuple[str, ...] = ("messages",)

    def count_rows(self, chosen: pl.Expr | None = None) -> int:
        """The number of candidates, or of those chosen by an expression over `slice`."""
        rows = self.rows if chosen is None else self.rows.filter(chosen)
        return int(rows.select(pl.len()).collect(engine="streaming").item())

    def scan(self, chosen: pl.Expr | None = None) -> pl.LazyFrame:
        """`ident`, `slice` and `text` of all rows, or of those chosen by an expression over `prompt_id` and `slice`."""
        rows, source = self.rows, self.source.select("prompt_id", "slice", *self.columns)
        if chosen is not None:
            rows, source = rows.filter(chosen), source.filter(chosen)  # Polars skips Parquet files without such a row
        texts = source.map_batches(self._build, schema={"slice": pl.String, "text": pl.String}, streamable=True)
        return pl.concat([rows.select("ident"), texts], how="horizontal")

    def scan_ids(self, idents: pl.Series) -> pl.LazyFrame:
        """The texts with these ids, and maybe others with the same prompts."""
        chosen = self.rows.filter(pl.col("ident").is_in(idents.implode()))
        prompts = chosen.select(pl.col("prompt_id").unique()).collect(engine="streaming")["prompt_id"]
        return self.scan(pl.col("prompt_id").is_in(prompts.implode()))

    def _build(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select("slice", self.build_text(rows).alias("text"))


def scan_candidates(source: CandidateSource) -> pl.LazyFrame:
    """Candidates as a query with the columns of SCORED."""
    if isinstance(source, pl.DataFrame | pl.LazyFrame):
        return source.lazy().select(list(SCORED))
    files = [source] if isinstance(source, Path) else list(source)
    return pl.scan_parquet(files).select(list(SCORED))


def build_slim_rows(
    source: pl.LazyFrame,
    filters: Sequence[Filter],
    task: TaskView,
    folder: Path,
    compared: Sequence[str] = (),
    extra: Sequence[str] = (),
    seed: int | None = None,
    workers: Workers = IN_PROCESS,
) -> pl.LazyFrame:
    """A slim row of each candidate, in the order of the source. They are in the folder, which is empty before.

    Besides the columns that identify and order candidates it has:

        drop_reason, drop_detail    of the filters
        masks                       whether the texts are to be masked
        text_key                    the normalized text of the user's turns; with a `seed` its hash (`hash_text_keys`)
        text                        a hash of the user's turns
        compared                    a hash of the user's turns and of the columns `compared`
        ident                       a unique id
        answer                      null where it decides nothing: it is not in `extra`, and the prompt has one row
        the columns in `extra`
    """

    def build_rows(batch: pl.DataFrame) -> pl.DataFrame:
        text = extract_user_texts(batch["messages"])
        keys = build_text_keys(text)
        hashes = [text.hash(), *(batch[name].hash(seed) for seed, name in enumerate(compared, 1))]
        return mark_dropped(batch, filters, task).select(
            *_SLIM_COLUMNS,
            *extra,
            (keys if seed is None else hash_text_keys(keys, seed)).alias("text_key"),
            hashes[0].alias("text"),
            pl.sum_horizontal(hashes).alias("compared"),
            needs_mask_expr(filters).alias("masks"),
        )

    files = [folder / "0.parquet"]
    build_rows(pl.DataFrame(schema=SCORED)).write_parquet(files[0])  # so that there is a table without candidates
    for batch in map_in_batches(source, build_rows, workers=workers):
        files.append(folder / f"{len(files)}.parquet")
        batch.write_parquet(files[-1], compression="lz4", statistics=False)
    rows = pl.scan_parquet(files)
    named = rows.select("prompt_id", "slice", "teacher", *extra).collect(engine="streaming")
    if "answer" not in extra:
        named = named.with_columns(_read_repeated_answers(named["prompt_id"], source))
    more = named.select(build_candidate_ids(named), *({"answer"} - set(extra)))
    del named
    path = folder / "slim.parquet"
    whole = pl.concat([rows, more.lazy()], how="horizontal")
    whole.sink_parquet(path, compression="lz4", statistics=False, row_group_size=FILTER_BATCH_ROWS)
    for file in files:
        file.unlink()
    return pl.scan_parquet(path)


def _read_repeated_answers(prompts: pl.Series, source: pl.LazyFrame) -> pl.Series:
    """The answers of prompts with more than one row; null for the others."""
    repeated = prompts.is_duplicated()
    answers = pl.Series("answer", [None], dtype=pl.String).new_from_index(0, len(prompts))
    if not repeated.any():
        return answers
    is_repeated = pl.col("prompt_id").is_in(prompts.filter(repeated).unique().implode())
    found = source.select("prompt_id", "answer").filter(is_repeated).collect(engine="streaming")
    return answers.scatter(repeated.arg_true(), found["answer"])


def build_candidate_ids(rows: pl.DataFrame) -> pl.Series:
    """A unique id of each candidate, which is the same in every cut and does not depend on the order of the rows."""
    who = pl.col("teacher").fill_null("(human)")
    named = rows.select(pl.concat_str("prompt_id", "slice", who, separator="/").alias("ident"), "answer")
    # Several people may have answered one prompt.
    repeated = named.with_row_index("row").filter(pl.col("ident").is_duplicated())
    if repeated.is_empty():
        return named["ident"]
    # Rows with the same answer are interchangeable.
    ranked = repeated.sort("ident", "answer")
    place = pl.int_range(pl.len()).over("ident")
    numbered = ranked.select("row", pl.concat_str("ident", pl.lit("/"), place).alias("ident"))
    return named["ident"].scatter(numbered["row"], numbered["ident"])
