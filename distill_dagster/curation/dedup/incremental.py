"""Duplicates slice by slice: signatures and verified pairs of all rows ever seen, kept in Parquet.

A new slice is compared through its own bands only, with all that was seen before, the rows that were left out as well:
who stands for a cluster is decided anew from all verified pairs, so the decisions are those of one run over
everything. Only the texts of candidates are read again.

    <folder>/manifest.json         scheme, threshold, parts
    <folder>/part-<n>.parquet      id, exact key, band keys, order columns; one file per slice
    <folder>/pairs-<n>.parquet     verified pairs
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from filelock import FileLock

from distill_dagster.core.errors import DistillError
from distill_dagster.core.limits import ResourceLimits
from distill_dagster.curation.dedup.duplicates import (
    Duplicates,
    build_order_exprs,
    cluster_pairs,
    find_components,
    find_exact_pairs,
    find_pairs,
    list_order_columns,
    pair_bucket_neighbors,
)
from distill_dagster.curation.dedup.folding import MinHashScheme
from distill_dagster.curation.dedup.signatures import Signatures, fold_batch, shingle_texts, sign_texts
from distill_dagster.curation.dedup.text_rows import TextRows, TextSource, open_rows
from distill_dagster.tables.parquet import write_parquet

Array = np.ndarray[Any, Any]
TextLoader = Callable[[pl.Series], pl.LazyFrame]
KEY_CHUNK_ROWS = 2_000_000
"""Rows of earlier parts whose keys are in memory at a time (about 100 bytes each)."""
STORED_PAIR_SCHEMA = pl.Schema(
    {
        "left_part": pl.UInt32,
        "left": pl.UInt32,
        "right_part": pl.UInt32,
        "right": pl.UInt32,
        "kind": pl.String,
        "similarity": pl.Float64,
    }
)

_PAIR_ENDS = {"a": ("left_part", "left"), "b": ("right_part", "right")}


class DedupStateError(DistillError):
    """The state cannot be used with what is asked of it."""


@dataclass(frozen=True)
class StatePart:
    """The rows of one slice. `number` is never used again, so a pair that names it names these very rows."""

    name: str
    number: int
    rows: int

    @property
    def file(self) -> str:
        return f"part-{self.number}.parquet"


class DedupState:
    """What is known of all rows seen so far, under one scheme.

    Args:
        folder: made when the first slice is added.
        threshold: least Jaccard similarity; not below that under which the state was begun.

    Raises:
        StateError: the state was made under another scheme, or with a higher threshold.
    """

    def __init__(self, folder: Path, scheme: MinHashScheme | None = None, threshold: float = 0.7) -> None:
        self.folder, self.scheme, self.threshold = folder, scheme or MinHashScheme(), threshold
        self._read()

    @property
    def height(self) -> int:
        """Rows of all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def bytes(self) -> int:
        """Of all files of the state."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if not path.name.startswith("."))

    def add(
        self,
        name: str,
        source: TextSource,
        earlier: TextSource | TextLoader | None = None,
        *,
        text: str | pl.Expr = "text",
        id: str | pl.Expr = "id",
        order: Sequence[pl.Expr] = (),
        limits: ResourceLimits | None = None,
    ) -> None:
        """Take in the rows of a slice, in place of what was there under its name.

        Args:
            source: the slice: all its candidates, not only those that will be kept.
            earlier: where the texts of the other parts are, with the same `text` and `id`; only those of candidates
                are read. It may be a function from wanted ids to a query that gives their rows, and may be left out
                while there is no other part.
            order: as in `find_duplicates`, the same for all parts.

        Raises:
            StateError: a text that is needed is not in `earlier`, or is not the one that was added.
        """
        limits = limits or ResourceLimits()
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"), open_rows(source, text, build_order_exprs(id, order), limits) as rows:
            self._read()  # another process may have added a part
            others = [one for one in self.parts if one.name != name]
            signatures = sign_texts(rows.texts(), self.scheme, limits)
            facts = rows.facts()
            part = StatePart(name, self._next, facts.height)
            within = find_pairs(rows, signatures, facts["id"], self.scheme, self._lowest, limits)
            within = within.with_columns(
                pl.lit(part.number, pl.UInt32).alias("left_part"), pl.lit(part.number, pl.UInt32).alias("right_part")
            )
            across = self._across(part, rows, signatures, facts, others, earlier, (text, id), limits)
            self._write([(part, self._frame(signatures, facts))], others, [within, across])

    def begin(
        self,
        source: TextSource,
        *,
        slice: str = "slice",
        text: str | pl.Expr = "text",
        id: str | pl.Expr = "id",
        order: Sequence[pl.Expr] = (),
        limits: ResourceLimits | None = None,
    ) -> None:
        """Take in all slices at once, in place of whatever was there: much quicker than one by one.

        Args:
            slice: the column that names the slice of each row.
        """
        limits = limits or ResourceLimits()
        self.folder.mkdir(parents=True, exist_ok=True)
        columns = [*build_order_exprs(id, order), pl.col(slice).cast(pl.String).alias("slice")]
        with FileLock(self.folder / ".lock"), open_rows(source, text, columns, limits) as rows:
            self._read()
            self._lowest = self.threshold
            signatures, facts = sign_texts(rows.texts(), self.scheme, limits), rows.facts()
            pairs = find_pairs(rows, signatures, facts["id"], self.scheme, self.threshold, limits)
            names = facts["slice"]
            keys = self._frame(signatures, facts.drop("slice"))
            del signatures
            parts = [
                (StatePart(name, number, count), keys.filter(names == name))
                for number, (name, count) in enumerate(
                    names.to_frame().group_by("slice", maintain_order=True).len().iter_rows(), self._next
                )
            ]
            self._write(parts, [], [_assign_parts(pairs, names, [part for part, _ in parts])])

    def remove(self, name: str) -> None:
        """Forget the rows of a slice that is no more."""
        with FileLock(self.folder / ".lock"):
            self._read()
            self._write([], [part for part in self.parts if part.name != name], [])

    def duplicates(self, touching: str | None = None) -> Duplicates:
        """The decisions on all rows, from all verified pairs.

        Args:
            touching: only the clusters that hold a row of this part: what its coming may have changed.
        """
        first, total = {}, 0
        for part in self.parts:
            first[part.number], total = total, total + part.rows
        numbers = pl.DataFrame(
            {"part": list(first), "first": list(first.values())}, {"part": pl.UInt32, "first": pl.UInt32}
        )
        pairs = self._pairs().filter((pl.col("similarity") >= self.threshold) | (pl.col("kind") == "exact"))
        for side in ("left", "right"):
            pairs = pairs.join(numbers.rename({"part": f"{side}_part", "first": f"{side}_first"}), on=f"{side}_part")
            pairs = pairs.with_columns((pl.col(side) + pl.col(f"{side}_first")).alias(side))
        pairs = pairs.select("left", "right", "kind", "similarity")
        if touching is not None:
            part = next(one for one in self.parts if one.name == touching)
            root = find_components(pairs["left"], pairs["right"], self.height)
            roots = root.slice(first[part.number], part.rows).unique()
            pairs = pairs.filter(root.gather(pairs["left"]).is_in(roots.implode()))
        return cluster_pairs(pairs, self._facts())

    def _facts(self) -> pl.DataFrame:
        if not self.parts:
            return pl.DataFrame(schema={"id": pl.String})
        files = [self.folder / part.file for part in self.parts]
        names = list_order_columns(pl.DataFrame(schema=pl.read_parquet_schema(files[0])))
        return pl.scan_parquet(files).select("id", *names).collect()

    def _frame(self, signatures: Signatures, facts: pl.DataFrame) -> pl.DataFrame:
        frame = signatures.frame(self.scheme)
        compared = pl.col("words") >= self.scheme.min_words
        keys = [pl.when(compared).then(pl.col(key)).alias(key) for key in self.scheme.keys]
        numbers = ["numbers"] if self.scheme.keep_numbers else []
        return facts.hstack(frame.select("exact", *numbers, *keys))

    def _across(
        self,
        part: StatePart,
        rows: TextRows,
        signatures: Signatures,
        facts: pl.DataFrame,
        others: list[StatePart],
        earlier: TextSource | TextLoader | None,
        names: tuple[str | pl.Expr, str | pl.Expr],
        limits: ResourceLimits,
    ) -> pl.DataFrame:
        """Verified pairs of a new part's rows with those of other parts."""
        _, first = find_exact_pairs(signatures.exact, facts["id"])
        new = self._frame(signatures, facts)[first].with_columns(pl.Series("new", first, dtype=pl.UInt32))
        exact, near = [], []
        for chunk in _chunk_parts(others):
            old = self._keys(chunk)
            same = old.select("part", "place", "exact").join(new.select("exact", "new"), on="exact")
            exact.append(same.unique("exact", keep="first", maintain_order=True))
            near.append(self._candidates(new, old))
        if not exact:
            return pl.DataFrame(schema=STORED_PAIR_SCHEMA)
        known = pl.concat(exact).unique("exact", keep="first", maintain_order=True)
        # A row whose text was seen before is linked to it, and to others through it.
        pairs = pl.concat(near).join(known.select("new"), on="new", how="anti").unique()
        checked = self._verified(pairs.sort("new", "part", "place"), rows, others, earlier, names, limits)
        known = known.select("part", "place", "new", pl.lit("exact").alias("kind"), pl.lit(1.0).alias("similarity"))
        return pl.concat([known, checked]).select(
            pl.col("part").alias("left_part"),
            pl.col("place").alias("left"),
            pl.lit(part.number, pl.UInt32).alias("right_part"),
            pl.col("new").alias("right"),
            "kind",
            "similarity",
        )

    def _keys(self, parts: list[StatePart]) -> pl.DataFrame:
        """Exact and band keys of the rows of some parts, with `part` and `place` in it."""
        numbers = ["numbers"] if self.scheme.keep_numbers else []
        frames = []
        for part in parts:
            frame = pl.read_parquet(self.folder / part.file, columns=["exact", *numbers, *self.scheme.keys])
            frames.append(frame.select(pl.lit(part.number, pl.UInt32).alias("part"), _place_expr(), pl.all()))
        return pl.concat(frames)

    def _candidates(self, new: pl.DataFrame, old: pl.DataFrame) -> pl.DataFrame:
        """Pairs `part`, `place`, `new` that share a key and stand close in their bucket's order, which is by content.

        It is the order in which one run over everything compares, so this finds every pair that such a run finds.
        """
        numbers = ["numbers"] if self.scheme.keep_numbers else []
        mine, met = [], []
        for band, name in enumerate(self.scheme.keys):
            key = (pl.lit(band, pl.UInt64) * 2**32 + pl.col(name)).alias("key")
            asked = new.drop_nulls(name)
            mine.append(asked.select(key, "exact", "new", *numbers))
            there = old.filter(pl.col(name).is_in(asked[name].unique().implode()))
            met.append(there.select("part", "place", key, "exact", *numbers))
        seen = pl.concat(met).unique(["key", "exact"], keep="first", maintain_order=True)
        asking = pl.concat(mine).filter(pl.col("key").is_in(seen["key"].unique().implode()))
        both = pl.concat([seen, asking], how="diagonal").sort("key", "exact", "part", nulls_last=True)
        pairs = pair_bucket_neighbors(both["key"], pl.Series("at", np.arange(both.height, dtype=np.uint64)))
        one, other = both[pairs // 2**32], both[pairs % 2**32].select(pl.all().name.suffix("_other"))
        beside = one.hstack(other).filter(pl.col("new").is_null() != pl.col("new_other").is_null())
        if numbers:
            beside = beside.filter(pl.col("numbers") == pl.col("numbers_other"))
        named = ("part", "place", "new")
        return beside.select(pl.coalesce(name, f"{name}_other").alias(name) for name in named).unique()

    def _verified(
        self,
        pairs: pl.DataFrame,
        rows: TextRows,
        others: list[StatePart],
        earlier: TextSource | TextLoader | None,
        names: tuple[str | pl.Expr, str | pl.Expr],
        limits: ResourceLimits,
    ) -> pl.DataFrame:
        """The pairs whose exact Jaccard similarity reaches the threshold, with `kind` and `similarity`."""
        checked = [pl.DataFrame(schema=dict(pairs.schema) | {"kind": pl.String, "similarity": pl.Float64})]
        for block in pairs.iter_slices(max(1, limits.verify_rows // 2)):
            wanted = block.select("part", "place").unique().sort("part", "place")
            old = self._texts(wanted, others, earlier, names)
            places = block["new"].unique().sort()
            texts = chain(rows.texts_at(places.to_numpy()), _split_batches(old, limits.batch_rows))
            shingles = shingle_texts(texts, self.scheme.ngram, limits)
            right = places.search_sorted(block["new"]).to_numpy().astype(np.int64)
            numbered = wanted.with_row_index("at", places.len())
            left = block.join(numbered, on=["part", "place"], how="left", maintain_order="left")["at"]
            jaccard = shingles.jaccard(right, left.to_numpy().astype(np.int64), limits.threads)
            block = block.with_columns(pl.lit("near").alias("kind"), pl.Series("similarity", jaccard))
            checked.append(block.filter(pl.col("similarity") >= self._lowest))
        return pl.concat(checked)

    def _texts(
        self,
        wanted: pl.DataFrame,
        others: list[StatePart],
        earlier: TextSource | TextLoader | None,
        names: tuple[str | pl.Expr, str | pl.Expr],
    ) -> pl.Series:
        """The texts of earlier rows, in the order of `wanted`.

        Raises:
            StateError: one is missing or is not what was added.
        """
        known = []
        for (number,), group in wanted.group_by("part", maintain_order=True):
            part = next(one for one in others if one.number == number)
            table = pl.read_parquet(self.folder / part.file, columns=["id", "exact"])
            known.append(table[group["place"]].with_columns(pl.lit(part.name).alias("name")))
        if not known:
            return pl.Series("text", [], dtype=pl.String)
        rows = pl.concat(known)
        if earlier is None:
            raise DedupStateError(
                f"{self.folder} has earlier slices: give their texts to compare with them (`earlier`)."
            )
        text, id_ = (pl.col(name) if isinstance(name, str) else name for name in names)
        if callable(earlier):
            there = earlier(rows["id"].unique())
        elif isinstance(earlier, pl.DataFrame | pl.LazyFrame):
            there = earlier.lazy()
        else:
            there = pl.scan_parquet([earlier] if isinstance(earlier, Path) else list(earlier))
        # Filtered before anything is computed from a text: Parquet pages without a wanted row are not decoded.
        there = there.filter(id_.cast(pl.String).is_in(rows["id"].unique().implode()))
        texts = there.select(
            id_.cast(pl.String).alias("id"), text.cast(pl.String).fill_null("").alias("text")
        ).collect()
        joined = rows.join(texts.unique("id"), on="id", how="left", maintain_order="left")
        now = sign_texts(
            [_to_folded_arrow(joined["text"].fill_null(""))],
            MinHashScheme(bands=1, rows_per_band=1),
            ResourceLimits(threads=1),
        ).exact
        wrong = joined.filter(pl.col("text").is_null() | (pl.col("exact") != pl.Series(now)))
        if not wrong.is_empty():
            id_of, name = wrong.select("id", "name").row(0)
            what = "is not there" if wrong["text"].is_null()[0] else "is not the one that was added"
            raise DedupStateError(
                f"The text of row {id_of} of slice {name} {what}. Add the slice to {self.folder} again, or remove it."
            )
        return joined["text"]

    def _read(self) -> None:
        path = self.folder / "manifest.json"
        self.parts: list[StatePart] = []
        self._next, self._lowest = 0, self.threshold
        if not path.exists():
            return
        manifest = json.loads(path.read_text())
        if manifest["scheme_id"] != self.scheme.id:
            raise DedupStateError(
                f"{self.folder} was made under another scheme ({manifest['scheme']}). Remove the folder and add all "
                "slices again, or use another folder."
            )
        self._lowest = manifest["threshold"]
        if self.threshold < self._lowest:
            raise DedupStateError(
                f"{self.folder} holds pairs from a similarity of {self._lowest} on, not from {self.threshold}. Remove "
                "the folder and add all slices again, or use another folder."
            )
        self._next = manifest["next"]
        self.parts = [StatePart(**part) for part in manifest["parts"]]

    def _pairs(self) -> pl.DataFrame:
        path = self.folder / f"pairs-{self._next}.parquet"
        return pl.read_parquet(path) if path.exists() else pl.DataFrame(schema=STORED_PAIR_SCHEMA)

    def _left(self, others: list[StatePart]) -> pl.DataFrame:
        """The pairs that hold once only these parts are there.

        What is near a text was noted with the first row that has it. Where that row goes, another with the same text
        takes its place.
        """
        stay = pl.Series([one.number for one in others], dtype=pl.UInt32)
        pairs = self._pairs()
        gone = pl.concat([pairs.select(part=f"{side}_part", place=side) for side in ("left", "right")])
        gone = gone.filter(~pl.col("part").is_in(stay.implode())).unique()
        if gone.is_empty():
            return pairs
        texts = [part for part in self.parts if part.number in set(gone["part"])]
        keys = gone.join(self._exact(texts), on=["part", "place"])
        heirs = self._exact(others).filter(pl.col("exact").is_in(keys["exact"].unique().implode()))
        heirs = heirs.unique("exact", keep="first", maintain_order=True)
        moved = keys.join(heirs, on="exact", suffix="_heir").select(
            one=_row_number_expr("part", "place"), heir=_row_number_expr("part_heir", "place_heir")
        )
        pairs = pairs.with_columns(
            _row_number_expr(part, place).alias(end) for end, (part, place) in _PAIR_ENDS.items()
        )
        for end in _PAIR_ENDS:
            pairs = pairs.join(moved.rename({"one": end}), on=end, how="left")
            pairs = pairs.with_columns(pl.coalesce("heir", end).alias(end)).drop("heir")
        pairs = _order_pairs(pairs.filter(pl.col("a") != pl.col("b")))
        here = pl.col("left_part").is_in(stay.implode()) & pl.col("right_part").is_in(stay.implode())
        return pairs.filter(here).unique()

    def _exact(self, parts: list[StatePart]) -> pl.DataFrame:
        """`part`, `place` and exact key of the rows of some parts."""
        frames = [pl.DataFrame(schema={"part": pl.UInt32, "place": pl.UInt32, "exact": pl.UInt64})]
        for part in parts:
            frame = pl.read_parquet(self.folder / part.file, columns=["exact"])
            frames.append(frame.select(pl.lit(part.number, pl.UInt32).alias("part"), _place_expr(), "exact"))
        return pl.concat(frames)

    def _write(
        self, added: list[tuple[StatePart, pl.DataFrame]], others: list[StatePart], pairs: Iterable[pl.DataFrame]
    ) -> None:
        """All files of the next state, then the manifest, which makes them count; then the old ones go."""
        merged = pl.concat([self._left(others), *(one.select(list(STORED_PAIR_SCHEMA)) for one in pairs)])
        merged = merged.sort("left_part", "left", "right_part", "right", "kind")
        parts = [*others, *(part for part, _ in added)]
        number = self._next + max(1, len(added))
        write_parquet(merged, self.folder / f"pairs-{number}.parquet", {})
        for part, table in added:
            write_parquet(table, self.folder / part.file, {})
        manifest = {
            "scheme_id": self.scheme.id,
            "scheme": asdict(self.scheme),
            "threshold": self._lowest,
            "next": number,
            "parts": [asdict(one) for one in parts],
        }
        temporary = self.folder / ".manifest.writing"
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")
        temporary.replace(self.folder / "manifest.json")
        self._read()
        files = {one.file for one in self.parts} | {f"pairs-{number}.parquet", "manifest.json"}
        for path in self.folder.iterdir():
            if path.name not in files and not path.name.startswith("."):
                path.unlink()


def _place_expr() -> pl.Expr:
    return pl.int_range(pl.len(), dtype=pl.UInt32).alias("place")


def _row_number_expr(part: str, place: str | pl.Expr) -> pl.Expr:
    """Part and place in one number, which orders rows as they came."""
    return pl.col(part).cast(pl.UInt64) * 2**32 + (pl.col(place) if isinstance(place, str) else place)


def _assign_parts(pairs: pl.DataFrame, names: pl.Series, parts: list[StatePart]) -> pl.DataFrame:
    """Pairs of places in all parts together (schema PAIRS), as they are stored.

    Args:
        names: the part of each place.
    """
    numbers = {part.name: part.number for part in parts}
    part = names.replace_strict(list(numbers), list(numbers.values()), return_dtype=pl.UInt32)
    within = pl.int_range(pl.len(), dtype=pl.UInt32).over("part")
    at = pl.DataFrame({"part": part}).select(_row_number_expr("part", within)).to_series()
    return _order_pairs(pairs.with_columns(at.gather(pairs["left"]).alias("a"), at.gather(pairs["right"]).alias("b")))


def _order_pairs(pairs: pl.DataFrame) -> pl.DataFrame:
    """Pairs of `a` and `b` (`_row`) as they are stored, the earlier row on the left."""
    pairs = pairs.with_columns(pl.min_horizontal("a", "b").alias("a"), pl.max_horizontal("a", "b").alias("b"))
    return pairs.with_columns(
        column.cast(pl.UInt32).alias(name)
        for end, (part, place) in _PAIR_ENDS.items()
        for column, name in ((pl.col(end) // 2**32, part), (pl.col(end) % 2**32, place))
    ).select(list(STORED_PAIR_SCHEMA))


def _chunk_parts(parts: list[StatePart]) -> Iterator[list[StatePart]]:
    chunk: list[StatePart] = []
    for part in parts:
        if chunk and sum(one.rows for one in chunk) + part.rows > KEY_CHUNK_ROWS:
            yield chunk
            chunk = []
        chunk.append(part)
    if chunk:
        yield chunk


def _to_folded_arrow(texts: pl.Series) -> pa.LargeStringArray:
    return fold_batch(texts.to_arrow().cast(pa.large_string()))


def _split_batches(texts: pl.Series, size: int) -> Iterator[pa.LargeStringArray]:
    for start in range(0, texts.len(), size):
        yield texts.slice(start, size).to_arrow().cast(pa.large_string())
