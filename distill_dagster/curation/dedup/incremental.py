"""Duplicates slice by slice: the signatures and verified pairs of all rows ever added, stored in Parquet.

Adding a slice compares only its own rows with all earlier rows, including those that were dropped. Representatives are
chosen again from all verified pairs, so the result is the same as one run over everything. Only the texts of candidates
are read again.

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

import numpy as np
import polars as pl
import pyarrow as pa

from distill_dagster.core.errors import DistillError
from distill_dagster.core.files import lock_file, write_atomically
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

TextLoader = Callable[[pl.Series], pl.LazyFrame]
"""Returns a query for the rows with these ids."""
KEY_CHUNK_ROWS = 2_000_000
"""Number of rows of earlier parts whose keys are in memory at a time (about 100 bytes each)."""
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
    """The state on disk does not fit the request."""


@dataclass(frozen=True)
class StatePart:
    """The rows of one slice in the state. A `number` is never used again, so stored pairs can refer to it."""

    name: str
    number: int
    rows: int

    @property
    def file(self) -> str:
        return f"part-{self.number}.parquet"


class DedupState:
    """The signatures and verified pairs of all rows added so far, under one scheme.

    Args:
        folder: created with the first slice.
        threshold: lowest Jaccard similarity. It must not be below the threshold that the state was created with.

    Raises:
        DedupStateError: the state was created with another scheme or with a higher threshold.
    """

    def __init__(self, folder: Path, scheme: MinHashScheme | None = None, threshold: float = 0.7) -> None:
        self.folder, self.scheme, self.threshold = folder, scheme or MinHashScheme(), threshold
        self._read_manifest()

    @property
    def height(self) -> int:
        """The number of rows of all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def size_bytes(self) -> int:
        """The size of all files of the state."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if not path.name.startswith("."))

    def add_slice(
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
        """Add the rows of a slice. They replace rows that were added under the same name.

        Args:
            name: the name of the slice.
            source: all candidates of the slice, not only those that will be kept.
            earlier: the texts of the other slices, with the same `text` and `id`. Only those of candidates are read.
                It may be a function from ids to a query for their rows. It is not needed for the first slice.
            order: as in `find_duplicates`, and the same for all slices.

        Raises:
            DedupStateError: a text is missing from `earlier`, or differs from the one that was added.
        """
        limits = limits or ResourceLimits()
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock_file(self.folder / ".lock"), open_rows(source, text, build_order_exprs(id, order), limits) as rows:
            self._read_manifest()  # another process may have added a part
            others = [part for part in self.parts if part.name != name]
            signatures = sign_texts(rows.iter_texts(), self.scheme, limits)
            ranking = rows.read_columns()
            part = StatePart(name, self._next_number, ranking.height)
            within = find_pairs(rows, signatures, ranking["id"], self.scheme, self._stored_threshold, limits)
            within = within.with_columns(
                pl.lit(part.number, pl.UInt32).alias("left_part"), pl.lit(part.number, pl.UInt32).alias("right_part")
            )
            across = self._find_pairs_across(part, rows, signatures, ranking, others, earlier, (text, id), limits)
            self._write([(part, self._build_part_table(signatures, ranking))], others, [within, across])

    def add_all_slices(
        self,
        source: TextSource,
        *,
        slice: str = "slice",
        text: str | pl.Expr = "text",
        id: str | pl.Expr = "id",
        order: Sequence[pl.Expr] = (),
        limits: ResourceLimits | None = None,
    ) -> None:
        """Add all slices at once. They replace everything in the state. This is much faster than one by one.

        Args:
            slice: the column with the name of each row's slice.
        """
        limits = limits or ResourceLimits()
        self.folder.mkdir(parents=True, exist_ok=True)
        columns = [*build_order_exprs(id, order), pl.col(slice).cast(pl.String).alias("slice")]
        with lock_file(self.folder / ".lock"), open_rows(source, text, columns, limits) as rows:
            self._read_manifest()
            self._stored_threshold = self.threshold
            signatures, ranking = sign_texts(rows.iter_texts(), self.scheme, limits), rows.read_columns()
            pairs = find_pairs(rows, signatures, ranking["id"], self.scheme, self.threshold, limits)
            names = ranking["slice"]
            keys = self._build_part_table(signatures, ranking.drop("slice"))
            del signatures
            parts = [
                (StatePart(name, number, count), keys.filter(names == name))
                for number, (name, count) in enumerate(
                    names.to_frame().group_by("slice", maintain_order=True).len().iter_rows(), self._next_number
                )
            ]
            self._write(parts, [], [_assign_parts(pairs, names, [part for part, _ in parts])])

    def remove_slice(self, name: str) -> None:
        """Remove the rows of a slice."""
        with lock_file(self.folder / ".lock"):
            self._read_manifest()
            self._write([], [part for part in self.parts if part.name != name], [])

    def read_duplicates(self, touching: str | None = None) -> Duplicates:
        """The duplicates among all rows, from all verified pairs.

        Args:
            touching: return only clusters with a row of this slice: those that adding it may have changed.
        """
        first, total = {}, 0
        for part in self.parts:
            first[part.number], total = total, total + part.rows
        numbers = pl.DataFrame(
            {"part": list(first), "first": list(first.values())}, {"part": pl.UInt32, "first": pl.UInt32}
        )
        pairs = self._read_pairs().filter((pl.col("similarity") >= self.threshold) | (pl.col("kind") == "exact"))
        for side in ("left", "right"):
            pairs = pairs.join(numbers.rename({"part": f"{side}_part", "first": f"{side}_first"}), on=f"{side}_part")
            pairs = pairs.with_columns((pl.col(side) + pl.col(f"{side}_first")).alias(side))
        pairs = pairs.select("left", "right", "kind", "similarity")
        if touching is not None:
            part = next(part for part in self.parts if part.name == touching)
            root = find_components(pairs["left"], pairs["right"], self.height)
            roots = root.slice(first[part.number], part.rows).unique()
            pairs = pairs.filter(root.gather(pairs["left"]).is_in(roots.implode()))
        return cluster_pairs(pairs, self._read_ranking())

    def _read_ranking(self) -> pl.DataFrame:
        """The columns of `build_order_exprs` of all rows."""
        if not self.parts:
            return pl.DataFrame(schema={"id": pl.String})
        files = [self.folder / part.file for part in self.parts]
        names = list_order_columns(pl.DataFrame(schema=pl.read_parquet_schema(files[0])))
        return pl.scan_parquet(files).select("id", *names).collect()

    def _build_part_table(self, signatures: Signatures, ranking: pl.DataFrame) -> pl.DataFrame:
        """The table that is stored for a part. Rows that are too short to be compared have null keys."""
        frame = signatures.to_frame(self.scheme)
        compared = pl.col("words") >= self.scheme.min_words
        keys = [pl.when(compared).then(pl.col(key)).alias(key) for key in self.scheme.key_columns]
        numbers = ["numbers"] if self.scheme.keep_numbers else []
        return ranking.hstack(frame.select("exact", *numbers, *keys))

    def _find_pairs_across(
        self,
        part: StatePart,
        rows: TextRows,
        signatures: Signatures,
        ranking: pl.DataFrame,
        others: list[StatePart],
        earlier: TextSource | TextLoader | None,
        names: tuple[str | pl.Expr, str | pl.Expr],
        limits: ResourceLimits,
    ) -> pl.DataFrame:
        """Verified pairs (`STORED_PAIR_SCHEMA`) of a new part's rows with rows of other parts."""
        _, first = find_exact_pairs(signatures.exact, ranking["id"])
        new = self._build_part_table(signatures, ranking)[first].with_columns(pl.Series("new", first, dtype=pl.UInt32))
        exact, near = [], []
        for chunk in _chunk_parts(others):
            old = self._read_keys(chunk)
            same = old.select("part", "place", "exact").join(new.select("exact", "new"), on="exact")
            exact.append(same.unique("exact", keep="first", maintain_order=True))
            near.append(self._find_candidates(new, old))
        if not exact:
            return pl.DataFrame(schema=STORED_PAIR_SCHEMA)
        known = pl.concat(exact).unique("exact", keep="first", maintain_order=True)
        # A row with a known text is linked to that row, and through it to all others.
        pairs = pl.concat(near).join(known.select("new"), on="new", how="anti").unique()
        checked = self._verify(pairs.sort("new", "part", "place"), rows, others, earlier, names, limits)
        known = known.select("part", "place", "new", pl.lit("exact").alias("kind"), pl.lit(1.0).alias("similarity"))
        return pl.concat([known, checked]).select(
            pl.col("part").alias("left_part"),
            pl.col("place").alias("left"),
            pl.lit(part.number, pl.UInt32).alias("right_part"),
            pl.col("new").alias("right"),
            "kind",
            "similarity",
        )

    def _read_keys(self, parts: list[StatePart]) -> pl.DataFrame:
        """The exact and band keys of the rows of some parts, with `part` and `place`."""
        numbers = ["numbers"] if self.scheme.keep_numbers else []
        frames = []
        for part in parts:
            frame = pl.read_parquet(self.folder / part.file, columns=["exact", *numbers, *self.scheme.key_columns])
            frames.append(frame.select(pl.lit(part.number, pl.UInt32).alias("part"), _place_expr(), pl.all()))
        return pl.concat(frames)

    def _find_candidates(self, new: pl.DataFrame, old: pl.DataFrame) -> pl.DataFrame:
        """Pairs `part`, `place`, `new` that share a key and are close in their bucket's order by content.

        One run over everything compares in the same order, so this finds every pair that such a run finds.
        """
        numbers = ["numbers"] if self.scheme.keep_numbers else []
        new_parts, old_parts = [], []
        for band, name in enumerate(self.scheme.key_columns):
            key = (pl.lit(band, pl.UInt64) * 2**32 + pl.col(name)).alias("key")
            new_rows = new.drop_nulls(name)
            new_parts.append(new_rows.select(key, "exact", "new", *numbers))
            old_rows = old.filter(pl.col(name).is_in(new_rows[name].unique().implode()))
            old_parts.append(old_rows.select("part", "place", key, "exact", *numbers))
        old_keys = pl.concat(old_parts).unique(["key", "exact"], keep="first", maintain_order=True)
        new_keys = pl.concat(new_parts).filter(pl.col("key").is_in(old_keys["key"].unique().implode()))
        both = pl.concat([old_keys, new_keys], how="diagonal").sort("key", "exact", "part", nulls_last=True)
        pairs = pair_bucket_neighbors(both["key"], pl.Series("at", np.arange(both.height, dtype=np.uint64)))
        first, second = both[pairs // 2**32], both[pairs % 2**32].select(pl.all().name.suffix("_other"))
        neighbors = first.hstack(second).filter(pl.col("new").is_null() != pl.col("new_other").is_null())
        if numbers:
            neighbors = neighbors.filter(pl.col("numbers") == pl.col("numbers_other"))
        named = ("part", "place", "new")
        return neighbors.select(pl.coalesce(name, f"{name}_other").alias(name) for name in named).unique()

    def _verify(
        self,
        pairs: pl.DataFrame,
        rows: TextRows,
        others: list[StatePart],
        earlier: TextSource | TextLoader | None,
        names: tuple[str | pl.Expr, str | pl.Expr],
        limits: ResourceLimits,
    ) -> pl.DataFrame:
        """The candidate pairs whose exact Jaccard similarity reaches the threshold, with `kind` and `similarity`."""
        checked = [pl.DataFrame(schema=dict(pairs.schema) | {"kind": pl.String, "similarity": pl.Float64})]
        for block in pairs.iter_slices(max(1, limits.verify_rows // 2)):
            wanted = block.select("part", "place").unique().sort("part", "place")
            old = self._read_texts(wanted, others, earlier, names)
            places = block["new"].unique().sort()
            texts = chain(rows.iter_texts_at(places.to_numpy()), _split_batches(old, limits.batch_rows))
            shingles = shingle_texts(texts, self.scheme.ngram, limits)
            right = places.search_sorted(block["new"]).to_numpy().astype(np.int64)
            numbered = wanted.with_row_index("at", places.len())
            left = block.join(numbered, on=["part", "place"], how="left", maintain_order="left")["at"]
            jaccard = shingles.compute_jaccard(right, left.to_numpy().astype(np.int64), limits.threads)
            block = block.with_columns(pl.lit("near").alias("kind"), pl.Series("similarity", jaccard))
            checked.append(block.filter(pl.col("similarity") >= self._stored_threshold))
        return pl.concat(checked)

    def _read_texts(
        self,
        wanted: pl.DataFrame,
        others: list[StatePart],
        earlier: TextSource | TextLoader | None,
        names: tuple[str | pl.Expr, str | pl.Expr],
    ) -> pl.Series:
        """The texts of earlier rows, in the order of `wanted`.

        Args:
            wanted: `part` and `place` of the rows.

        Raises:
            DedupStateError: a text is missing, or differs from the one that was added.
        """
        parts = []
        for (number,), group in wanted.group_by("part", maintain_order=True):
            part = next(part for part in others if part.number == number)
            table = pl.read_parquet(self.folder / part.file, columns=["id", "exact"])
            parts.append(table[group["place"]].with_columns(pl.lit(part.name).alias("name")))
        if not parts:
            return pl.Series("text", [], dtype=pl.String)
        rows = pl.concat(parts)
        if earlier is None:
            raise DedupStateError(f"{self.folder} has other slices. Pass their texts as `earlier`.")
        text, id_ = (pl.col(name) if isinstance(name, str) else name for name in names)
        if callable(earlier):
            query = earlier(rows["id"].unique())
        elif isinstance(earlier, pl.DataFrame | pl.LazyFrame):
            query = earlier.lazy()
        else:
            query = pl.scan_parquet([earlier] if isinstance(earlier, Path) else list(earlier))
        # Filter before computing texts: Polars does not decode Parquet pages without a wanted row.
        query = query.filter(id_.cast(pl.String).is_in(rows["id"].unique().implode()))
        texts = query.select(
            id_.cast(pl.String).alias("id"), text.cast(pl.String).fill_null("").alias("text")
        ).collect()
        joined = rows.join(texts.unique("id"), on="id", how="left", maintain_order="left")
        now = sign_texts(
            [fold_batch(joined["text"].fill_null("").to_arrow().cast(pa.large_string()))],
            MinHashScheme(bands=1, rows_per_band=1),
            ResourceLimits(threads=1),
        ).exact
        wrong = joined.filter(pl.col("text").is_null() | (pl.col("exact") != pl.Series(now)))
        if not wrong.is_empty():
            row_id, name = wrong.select("id", "name").row(0)
            what = "is missing" if wrong["text"].is_null()[0] else "has changed since it was added"
            raise DedupStateError(
                f"The text of row {row_id} of slice {name} {what}. Add the slice to {self.folder} again, or remove it."
            )
        return joined["text"]

    def _read_manifest(self) -> None:
        path = self.folder / "manifest.json"
        self.parts: list[StatePart] = []
        self._next_number, self._stored_threshold = 0, self.threshold
        if not path.exists():
            return
        manifest = json.loads(path.read_text())
        if manifest["scheme_id"] != self.scheme.id:
            raise DedupStateError(
                f"{self.folder} was created with another scheme ({manifest['scheme']}). Remove the folder and add all "
                "slices again, or use another folder."
            )
        self._stored_threshold = manifest["threshold"]
        if self.threshold < self._stored_threshold:
            raise DedupStateError(
                f"{self.folder} contains pairs from a similarity of {self._stored_threshold} on, not from "
                f"{self.threshold}. Remove the folder and add all slices again, or use another folder."
            )
        self._next_number = manifest["next"]
        self.parts = [StatePart(**part) for part in manifest["parts"]]

    def _read_pairs(self) -> pl.DataFrame:
        path = self.folder / f"pairs-{self._next_number}.parquet"
        return pl.read_parquet(path) if path.exists() else pl.DataFrame(schema=STORED_PAIR_SCHEMA)

    def _keep_pairs(self, others: list[StatePart]) -> pl.DataFrame:
        """The stored pairs that remain if only these parts remain.

        The pairs of a text are stored with the first row that has it. If that row is removed, another row with the
        same text takes its place.
        """
        kept = pl.Series([part.number for part in others], dtype=pl.UInt32)
        pairs = self._read_pairs()
        removed = pl.concat([pairs.select(part=f"{side}_part", place=side) for side in ("left", "right")])
        removed = removed.filter(~pl.col("part").is_in(kept.implode())).unique()
        if removed.is_empty():
            return pairs
        removed_parts = [part for part in self.parts if part.number in set(removed["part"])]
        keys = removed.join(self._read_exact_keys(removed_parts), on=["part", "place"])
        replacements = self._read_exact_keys(others).filter(pl.col("exact").is_in(keys["exact"].unique().implode()))
        replacements = replacements.unique("exact", keep="first", maintain_order=True)
        moved = keys.join(replacements, on="exact", suffix="_new").select(
            removed=_row_number_expr("part", "place"), replacement=_row_number_expr("part_new", "place_new")
        )
        pairs = pairs.with_columns(
            _row_number_expr(part, place).alias(end) for end, (part, place) in _PAIR_ENDS.items()
        )
        for end in _PAIR_ENDS:
            pairs = pairs.join(moved.rename({"removed": end}), on=end, how="left")
            pairs = pairs.with_columns(pl.coalesce("replacement", end).alias(end)).drop("replacement")
        pairs = _order_pairs(pairs.filter(pl.col("a") != pl.col("b")))
        is_kept = pl.col("left_part").is_in(kept.implode()) & pl.col("right_part").is_in(kept.implode())
        return pairs.filter(is_kept).unique()

    def _read_exact_keys(self, parts: list[StatePart]) -> pl.DataFrame:
        """The exact keys of the rows of some parts, with `part` and `place`."""
        frames = [pl.DataFrame(schema={"part": pl.UInt32, "place": pl.UInt32, "exact": pl.UInt64})]
        for part in parts:
            frame = pl.read_parquet(self.folder / part.file, columns=["exact"])
            frames.append(frame.select(pl.lit(part.number, pl.UInt32).alias("part"), _place_expr(), "exact"))
        return pl.concat(frames)

    def _write(
        self, added: list[tuple[StatePart, pl.DataFrame]], others: list[StatePart], pairs: Iterable[pl.DataFrame]
    ) -> None:
        """Write all files of the next state, then the manifest, which makes them valid. Then remove the old files."""
        merged = pl.concat([self._keep_pairs(others), *(frame.select(list(STORED_PAIR_SCHEMA)) for frame in pairs)])
        merged = merged.sort("left_part", "left", "right_part", "right", "kind")
        parts = [*others, *(part for part, _ in added)]
        number = self._next_number + max(1, len(added))
        write_parquet(merged, self.folder / f"pairs-{number}.parquet", {})
        for part, table in added:
            write_parquet(table, self.folder / part.file, {})
        manifest = {
            "scheme_id": self.scheme.id,
            "scheme": asdict(self.scheme),
            "threshold": self._stored_threshold,
            "next": number,
            "parts": [asdict(part) for part in parts],
        }
        write_atomically(self.folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
        self._read_manifest()
        files = {part.file for part in self.parts} | {f"pairs-{number}.parquet", "manifest.json"}
        for path in self.folder.iterdir():
            if path.name not in files and not path.name.startswith("."):
                path.unlink()


def _place_expr() -> pl.Expr:
    return pl.int_range(pl.len(), dtype=pl.UInt32).alias("place")


def _row_number_expr(part: str, place: str | pl.Expr) -> pl.Expr:
    """Part and place as one number. It orders rows by the time they were added."""
    return pl.col(part).cast(pl.UInt64) * 2**32 + (pl.col(place) if isinstance(place, str) else place)


def _assign_parts(pairs: pl.DataFrame, names: pl.Series, parts: list[StatePart]) -> pl.DataFrame:
    """Convert pairs of places in one table (`PAIR_SCHEMA`) to `STORED_PAIR_SCHEMA`.

    Args:
        names: the name of each row's part.
    """
    numbers = {part.name: part.number for part in parts}
    part = names.replace_strict(list(numbers), list(numbers.values()), return_dtype=pl.UInt32)
    within = pl.int_range(pl.len(), dtype=pl.UInt32).over("part")
    at = pl.DataFrame({"part": part}).select(_row_number_expr("part", within)).to_series()
    return _order_pairs(pairs.with_columns(at.gather(pairs["left"]).alias("a"), at.gather(pairs["right"]).alias("b")))


def _order_pairs(pairs: pl.DataFrame) -> pl.DataFrame:
    """Convert pairs of `a` and `b` (`_row_number_expr`) to `STORED_PAIR_SCHEMA`, with the earlier row on the left."""
    pairs = pairs.with_columns(pl.min_horizontal("a", "b").alias("a"), pl.max_horizontal("a", "b").alias("b"))
    return pairs.with_columns(
        column.cast(pl.UInt32).alias(name)
        for end, (part, place) in _PAIR_ENDS.items()
        for column, name in ((pl.col(end) // 2**32, part), (pl.col(end) % 2**32, place))
    ).select(list(STORED_PAIR_SCHEMA))


def _chunk_parts(parts: list[StatePart]) -> Iterator[list[StatePart]]:
    """The parts in groups of at most `KEY_CHUNK_ROWS` rows, but at least one part."""
    chunk: list[StatePart] = []
    for part in parts:
        if chunk and sum(other.rows for other in chunk) + part.rows > KEY_CHUNK_ROWS:
            yield chunk
            chunk = []
        chunk.append(part)
    if chunk:
        yield chunk


def _split_batches(texts: pl.Series, size: int) -> Iterator[pa.LargeStringArray]:
    for start in range(0, texts.len(), size):
        yield texts.slice(start, size).to_arrow().cast(pa.large_string())
