"""What comparing candidates found, kept for the next cut: texts do not change where a threshold of a filter does, and
where a slice changes, those of the others do not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from filelock import FileLock

from distill_dagster.core.hashing import hash_content
from distill_dagster.curation.dataset.slim_rows import CandidateTexts
from distill_dagster.curation.dedup.duplicates import find_components, find_duplicates
from distill_dagster.curation.dedup.folding import HASH_VERSION, MinHashScheme
from distill_dagster.curation.dedup.incremental import DedupState, DedupStateError
from distill_dagster.tables.parquet import write_parquet

if TYPE_CHECKING:
    from distill_dagster.core.limits import ResourceLimits

FindMatches = Callable[[pl.LazyFrame], pl.DataFrame]
"""What is found in `ident`, `slice` and `text`."""
_METADATA_KEY = "compared"
INCREMENTAL_MIN_ROWS = 100_000
"""Candidates from which on a changed slice alone is compared with what is known of the others. Fewer are all compared
in half a second, sooner than the files of many slices are read."""
FULL_COMPARE_SHARE = 0.2
"""The share of rows in changed slices from which on all are compared anew, which is quicker."""


class ComparisonCache:
    """Keeps tables below a folder, each with what it was made from; without a folder it keeps nothing.

    Candidates are told apart by slice, and texts are read only where something has to be found in them.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def whole(self, name: str, settings: Mapping[str, Any], texts: CandidateTexts, make: FindMatches) -> pl.DataFrame:
        """What `make` finds in the texts, or what it found last time in the same ones with these settings."""
        if self._folder is None:
            return make(texts.of())
        path, key = self._folder / f"{name}.parquet", _hash_settings({**settings, "slices": hash_slices(texts)})
        if path.is_file() and pl.read_parquet_metadata(path).get(_METADATA_KEY) == key:
            return pl.read_parquet(path)
        made = make(texts.of())
        write_parquet(made, path, {_METADATA_KEY: key})
        return made

    def by_slice(
        self, name: str, settings: Mapping[str, Any], texts: CandidateTexts, make: FindMatches
    ) -> pl.DataFrame:
        """What `make` finds in each text by itself (`id` names it): it is asked for the slices that changed alone."""
        if self._folder is None:
            return make(texts.of())
        path, key, slices = self._folder / f"{name}.parquet", _hash_settings(settings), hash_slices(texts)
        known = pl.read_parquet_metadata(path) if path.is_file() else {}
        before: dict[str, str] = json.loads(known["slices"]) if known.get(_METADATA_KEY) == key else {}
        if slices and before == slices:
            return pl.read_parquet(path)
        same = [name for name, content in slices.items() if before.get(name) == content]
        stays = pl.col("slice").is_in(same)
        made = make(texts.of(~stays))
        if same:
            rows = texts.rows.filter(stays)
            kept = pl.read_parquet(path).join(rows, left_on="id", right_on="ident", how="semi")
            made = pl.concat([kept, made]).sort("id", maintain_order=True)
        write_parquet(made, path, {_METADATA_KEY: key, "slices": json.dumps(slices)})
        return made

    def near(
        self, texts: CandidateTexts, scheme: MinHashScheme, threshold: float, limits: ResourceLimits | None = None
    ) -> pl.DataFrame:
        """Verified pairs of exact and near-duplicates (`Duplicates.pairs`).

        Where there are many rows, a slice that changed is compared through its own bands only, with signatures of all
        others that were kept (`DedupState`).
        """

        def find(table: pl.LazyFrame) -> pl.DataFrame:
            return find_duplicates(table, id="ident", scheme=scheme, threshold=threshold, limits=limits).pairs

        if self._folder is None or texts.rows.height < INCREMENTAL_MIN_ROWS:
            return self.whole("near", {"scheme": scheme.id, "threshold": threshold}, texts, find)
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / ".near.lock"):
            return self._through_state(texts, scheme, threshold, limits)

    def _through_state(
        self, texts: CandidateTexts, scheme: MinHashScheme, threshold: float, limits: ResourceLimits | None
    ) -> pl.DataFrame:
        assert self._folder is not None
        folder, noted = self._folder / "near", self._folder / "near" / ".slices.json"
        slices, before = hash_slices(texts), {}
        try:
            state = DedupState(folder, scheme, threshold)
            if noted.is_file():
                before = json.loads(noted.read_text())
        except DedupStateError:  # another scheme, or a lower threshold
            shutil.rmtree(folder)
            state = DedupState(folder, scheme, threshold)
        there = {part.name for part in state.parts}
        before = {name: content for name, content in before.items() if name in there}
        changed = [name for name, content in slices.items() if before.get(name) != content]
        noted.unlink(missing_ok=True)  # a state that is half-way stands for no contents
        rows = texts.rows["slice"]
        if int(rows.is_in(changed).sum()) > FULL_COMPARE_SHARE * len(rows):
            state.add_all_slices(texts.of(), id="ident", limits=limits)
        else:
            for name in there - slices.keys():
                state.remove_slice(name)
            for name in changed:
                state.add_slice(name, texts.of(pl.col("slice") == name), texts.named, id="ident", limits=limits)
        temporary = noted.with_suffix(".writing")
        temporary.write_text(json.dumps(slices))
        temporary.replace(noted)
        return state.read_duplicates().pairs


def _hash_settings(settings: Mapping[str, Any]) -> str:
    # Polars' hashes are the same for one version of Polars.
    return hash_content([HASH_VERSION, pl.__version__, dict(settings)])


def hash_slices(texts: CandidateTexts) -> dict[str, str]:
    """For each slice what stands for all texts of its rows, in any order."""
    both = pl.sum_horizontal(pl.col("ident").hash(0), pl.col("content").hash(1)).hash()
    hashed = texts.rows.select("slice", both.alias("hash"))
    found = hashed.group_by("slice").agg(pl.len(), pl.col("hash").bitwise_xor()).sort("slice")
    return {name: f"{count}-{content:016x}" for name, count, content in found.iter_rows()}


def cluster_kept_rows(pairs: pl.DataFrame, kept: pl.DataFrame) -> pl.DataFrame:
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
    text = find_components(same["a"], same["b"], names.len())  # the text of each row, by its first place
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
