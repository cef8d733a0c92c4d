"""Cache the results of comparing candidates for the next cut.

A changed threshold of a filter does not change texts, and a changed slice does not change the texts of other slices.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from distill_dagster.core.files import lock_file, write_atomically
from distill_dagster.core.hashing import hash_content
from distill_dagster.core.ray_workers import RayWorkers
from distill_dagster.core.workers import IN_PROCESS, Workers
from distill_dagster.curation.dataset.slim_rows import CandidateTexts
from distill_dagster.curation.dedup.duplicates import find_components, find_duplicates
from distill_dagster.curation.dedup.folding import HASH_VERSION, MinHashScheme
from distill_dagster.curation.dedup.incremental import DedupState, DedupStateError
from distill_dagster.tables.parquet import write_parquet

if TYPE_CHECKING:
    from distill_dagster.core.limits import ResourceLimits

FindMatches = Callable[[pl.LazyFrame], pl.DataFrame]
"""Finds pairs or hits in a table of `ident`, `slice` and `text`."""
_METADATA_KEY = "compared"
INCREMENTAL_MIN_ROWS = 100_000
"""From this number of candidates on, only changed slices are compared, with stored signatures of the others. Fewer are
all compared in half a second, which is faster than to read the files of many slices."""
RAY_MIN_ROWS = 100_000
"""From this number of candidates on, workers compare them. Fewer take less time than to start tasks of a cluster."""
FULL_COMPARE_SHARE = 0.2
"""From this share of rows in changed slices on, it is faster to compare all of them again."""


class ComparisonCache:
    """Keeps tables in a folder, each with a hash of its inputs; without a folder it keeps nothing.

    Inputs are hashed by slice. Texts are read only if they have to be compared.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def find_in_all(
        self, name: str, settings: Mapping[str, Any], texts: CandidateTexts, find: FindMatches
    ) -> pl.DataFrame:
        """The result of `find` for the texts, from the cache if texts and settings are the same as last time."""
        if self._folder is None:
            return find(texts.scan())
        path, key = self._folder / f"{name}.parquet", _hash_settings({**settings, "slices": hash_slices(texts)})
        if path.is_file() and pl.read_parquet_metadata(path).get(_METADATA_KEY) == key:
            return pl.read_parquet(path)
        result = find(texts.scan())
        write_parquet(result, path, {_METADATA_KEY: key})
        return result

    def find_by_slice(
        self, name: str, settings: Mapping[str, Any], texts: CandidateTexts, find: FindMatches
    ) -> pl.DataFrame:
        """The result of `find`, which looks at each text by itself; it runs for changed slices only.

        Args:
            find: returns a table whose column `id` is the `ident` of a text.
        """
        if self._folder is None:
            return find(texts.scan())
        path, key, slices = self._folder / f"{name}.parquet", _hash_settings(settings), hash_slices(texts)
        known = pl.read_parquet_metadata(path) if path.is_file() else {}
        before: dict[str, str] = json.loads(known["slices"]) if known.get(_METADATA_KEY) == key else {}
        if slices and before == slices:
            return pl.read_parquet(path)
        same = [name for name, content in slices.items() if before.get(name) == content]
        is_same = pl.col("slice").is_in(same)
        result = find(texts.scan(~is_same))
        if same:
            rows = texts.rows.filter(is_same)
            kept = pl.scan_parquet(path).join(rows, left_on="id", right_on="ident", how="semi", maintain_order="left")
            result = pl.concat([kept.collect(), result]).sort("id", maintain_order=True)
        write_parquet(result, path, {_METADATA_KEY: key, "slices": json.dumps(slices)})
        return result

    def find_near_pairs(
        self,
        texts: CandidateTexts,
        scheme: MinHashScheme,
        threshold: float,
        limits: ResourceLimits | None = None,
        workers: Workers = IN_PROCESS,
    ) -> pl.DataFrame:
        """Verified pairs of exact and near-duplicates (`Duplicates.pairs`).

        Of many rows, only changed slices are compared, with stored signatures of the others (`DedupState`). The
        workers of a Ray cluster compare all of them, and store no signatures.
        """
        settings = {"scheme": scheme.id, "threshold": threshold}

        def find(table: pl.LazyFrame) -> pl.DataFrame:
            return find_duplicates(table, id="ident", scheme=scheme, threshold=threshold, limits=limits).pairs

        def find_on_ray(table: pl.LazyFrame) -> pl.DataFrame:
            from distill_dagster.curation.dedup.ray_duplicates import find_duplicates_on_ray

            assert isinstance(workers, RayWorkers)
            return find_duplicates_on_ray(
                table, workers, id="ident", scheme=scheme, threshold=threshold, limits=limits
            ).pairs

        count = texts.count_rows()
        if isinstance(workers, RayWorkers) and count >= RAY_MIN_ROWS:
            return self.find_in_all("near", settings, texts, find_on_ray)
        if self._folder is None or count < INCREMENTAL_MIN_ROWS:
            return self.find_in_all("near", settings, texts, find)
        self._folder.mkdir(parents=True, exist_ok=True)
        with lock_file(self._folder / ".near.lock"):
            return self._find_pairs_incrementally(texts, scheme, threshold, limits)

    def _find_pairs_incrementally(
        self, texts: CandidateTexts, scheme: MinHashScheme, threshold: float, limits: ResourceLimits | None
    ) -> pl.DataFrame:
        """The pairs by a `DedupState` in the folder, which compares only changed slices."""
        assert self._folder is not None
        folder, slices_file = self._folder / "near", self._folder / "near" / ".slices.json"
        slices, before = hash_slices(texts), {}
        try:
            state = DedupState(folder, scheme, threshold)
            if slices_file.is_file():
                before = json.loads(slices_file.read_text())
        except DedupStateError:  # another scheme, or a lower threshold
            shutil.rmtree(folder)
            state = DedupState(folder, scheme, threshold)
        stored = {part.name for part in state.parts}
        before = {name: content for name, content in before.items() if name in stored}
        changed = [name for name, content in slices.items() if before.get(name) != content]
        slices_file.unlink(missing_ok=True)  # while it is missing, the state counts as empty
        if texts.count_rows(pl.col("slice").is_in(changed)) > FULL_COMPARE_SHARE * texts.count_rows():
            state.add_all_slices(texts.scan(), id="ident", limits=limits)
        else:
            for name in stored - slices.keys():
                state.remove_slice(name)
            for name in changed:
                state.add_slice(name, texts.scan(pl.col("slice") == name), texts.scan_ids, id="ident", limits=limits)
        write_atomically(slices_file, json.dumps(slices).encode())
        return state.read_duplicates().pairs


def _hash_settings(settings: Mapping[str, Any]) -> str:
    # Hashes of Polars are stable within one version.
    return hash_content([HASH_VERSION, pl.__version__, dict(settings)])


def hash_slices(texts: CandidateTexts) -> dict[str, str]:
    """For each slice, a hash of the texts of all its rows, in any order."""
    both = pl.sum_horizontal(pl.col("ident").hash(0), pl.col("content").hash(1)).hash()
    hashed = texts.rows.select("slice", both.alias("hash"))
    totals = hashed.group_by("slice").agg(pl.len(), pl.col("hash").bitwise_xor()).sort("slice")
    rows = totals.collect(engine="streaming").iter_rows()
    return {name: f"{count}-{content:016x}" for name, count, content in rows}


def cluster_kept_rows(pairs: pl.DataFrame, kept: pl.DataFrame) -> pl.DataFrame:
    """The rows to drop: all rows of each cluster of kept rows but its first. `ident`, `first`, `like`, `similarity`.

    Rows with equal texts are one text, and near pairs hold between texts. So a row that a filter dropped joins no rows,
    and the other rows with its text keep its pairs.

    Args:
        pairs: verified pairs of candidates: `left`, `right`, `kind` (exact, near or semantic), `similarity`.
        kept: `ident` of the kept rows, as in `left` and `right`, of any type; the first of a cluster stays.
    """
    names = pl.concat([pairs["left"], pairs["right"], kept["ident"]]).unique(maintain_order=True)
    place = pl.DataFrame({"ident": names}).with_row_index("place")
    edges = pairs.join(place.rename({"ident": "left", "place": "a"}), on="left", maintain_order="left")
    edges = edges.join(place.rename({"ident": "right", "place": "b"}), on="right", maintain_order="left")
    same = edges.filter(pl.col("kind") == "exact")
    text = find_components(same["a"], same["b"], names.len())  # the text of each row, as the place of its first row
    ranked = kept.with_row_index("rank").join(place, on="ident", maintain_order="left")
    ranked = ranked.with_columns(text.gather(ranked["place"]).alias("text"))
    # The first kept row of each text represents it.
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
    component = find_components(links["a"], links["b"], kept.height)  # the smallest rank is the best row
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
