"""What comparing candidates found, kept for the next cut: texts do not change where a threshold of a filter does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from distill_dagster.curation.neardup.duplicates import components
from distill_dagster.curation.neardup.text import HASH_VERSION
from distill_dagster.hashing import content_hash
from distill_dagster.tables import write_parquet

_KEY = "compared"


class Compared:
    """Keeps tables below a folder, each under the content that it was made from; without a folder it keeps nothing.

    Args:
        version: of the candidates' texts and of golden: what is kept under another one is made anew.
    """

    def __init__(self, folder: Path | None = None, version: str = "") -> None:
        self._folder, self._version = folder, version

    def table(self, name: str, settings: Mapping[str, Any], make: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        """What `make` gives, or what it gave last time for the same candidates and settings."""
        if self._folder is None:
            return make()
        key = content_hash([self._version, HASH_VERSION, dict(settings)])
        path = self._folder / f"{name}.parquet"
        if path.is_file() and pl.read_parquet_metadata(path).get(_KEY) == key:
            return pl.read_parquet(path)
        made = make()
        write_parquet(made, path, {_KEY: key})
        return made


def idents(rows: pl.DataFrame) -> pl.Series:
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


def clusters_of_kept(pairs: pl.DataFrame, kept: pl.DataFrame) -> pl.DataFrame:
    """Of clusters among the kept rows all rows but the one that comes first: `ident`, `first`, `like`, `similarity`.

    Rows that say exactly the same are one text, and near pairs hold between texts: a row that a filter dropped joins
    nothing, and the others with its text are as near to the rest as it was.

    Args:
        pairs: verified pairs of candidates: `left`, `right`, `kind` (exact, near or semantic), `similarity`.
        kept: `ident` of the kept rows, in the order in which they are to be preferred.
    """
    names = pl.concat([pairs["left"], pairs["right"], kept["ident"]]).unique(maintain_order=True)
    place = pl.DataFrame({"ident": names}).with_row_index("place")
    edges = pairs.join(place.rename({"ident": "left", "place": "a"}), on="left", maintain_order="left")
    edges = edges.join(place.rename({"ident": "right", "place": "b"}), on="right", maintain_order="left")
    same = edges.filter(pl.col("kind") == "exact")
    text = components(same["a"], same["b"], names.len())  # the text of each row, by its first place
    ranked = kept.with_row_index("rank").join(place, on="ident", maintain_order="left")
    ranked = ranked.with_columns(text.gather(ranked["place"]).alias("text"))
    # The best kept row of each text stands for it.
    best = ranked.group_by("text", maintain_order=True).first().select("text", pl.col("rank").alias("best"))
    ranked = ranked.join(best, on="text", maintain_order="left")
    inner = ranked.filter(pl.col("rank") != pl.col("best")).select(
        a="best", b="rank", similarity=pl.lit(1.0), order=pl.lit(0)
    )
    near = edges.filter(pl.col("kind") != "exact").select("a", "b", "similarity")
    near = near.select(text.gather(near["a"]).alias("ta"), text.gather(near["b"]).alias("tb"), "similarity")
    near = near.join(best.rename({"text": "ta", "best": "x"}), on="ta", maintain_order="left")
    near = near.join(best.rename({"text": "tb", "best": "y"}), on="tb", maintain_order="left")
    outer = near.select(
        a=pl.min_horizontal("x", "y"), b=pl.max_horizontal("x", "y"), similarity="similarity", order=pl.lit(1)
    )
    links = pl.concat([inner, outer]).filter(pl.col("a") != pl.col("b"))
    component = components(links["a"], links["b"], kept.height)  # the smallest rank is the best row
    both = pl.concat([links, links.select(a="b", b="a", similarity="similarity", order="order")])
    closest = both.sort("a", "order", -pl.col("similarity"), "b").group_by("a", maintain_order=True).first()
    gone = pl.DataFrame({"rank": pl.int_range(kept.height, dtype=pl.UInt32, eager=True), "first": component})
    gone = gone.filter(pl.col("rank") != pl.col("first"))
    gone = gone.join(closest.select(rank="a", like="b", similarity="similarity"), on="rank", maintain_order="left")
    ids = kept["ident"]
    return gone.select(
        ids.gather(gone["rank"]).alias("ident"),
        ids.gather(gone["first"]).alias("first"),
        ids.gather(gone["like"]).alias("like"),
        "similarity",
    )
