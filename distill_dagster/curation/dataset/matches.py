"""Search the texts of candidates for leaks and duplicates, whatever a filter says of a candidate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from distill_dagster.config import CurationSpec
from distill_dagster.config.dedup import DecontaminationSpec, NearDuplicateSpec, SemanticDuplicateSpec
from distill_dagster.core.workers import Workers
from distill_dagster.curation.dataset.comparison_cache import ComparisonCache
from distill_dagster.curation.dataset.slim_rows import CandidateTexts
from distill_dagster.curation.dedup.decontaminate import HIT_SCHEMA, find_contamination
from distill_dagster.curation.dedup.folding import MinHashScheme
from distill_dagster.curation.filters.run import map_in_batches

if TYPE_CHECKING:
    from distill_dagster.core.embedding import EmbedFunction
    from distill_dagster.core.limits import ResourceLimits

LEAK_HIT_SCHEMA = pl.Schema({"row": pl.UInt32, "golden_id": pl.String, "kind": pl.String, "overlap": pl.Float64})
"""A hit of decontamination; `row` is the place of the candidate."""
PAIR_SCHEMA = pl.Schema({"left": pl.UInt32, "right": pl.UInt32, "kind": pl.String, "similarity": pl.Float64})
"""A pair of candidates by their places; `kind` is exact, near or semantic."""
_NAMED_PAIR_SCHEMA = PAIR_SCHEMA | {"left": pl.String, "right": pl.String}
NO_CACHE = ComparisonCache()
"""Keeps nothing, so everything is compared."""


@dataclass(frozen=True)
class Matches:
    """What the candidates' texts have in common with each other and with golden and dev rows.

    Attributes:
        leaks: hits of decontamination (`LEAK_HIT_SCHEMA`).
        near, semantic: verified pairs (`PAIR_SCHEMA`). `near` has the exact ones too.
    """

    leaks: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=LEAK_HIT_SCHEMA))
    near: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=PAIR_SCHEMA))
    semantic: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=PAIR_SCHEMA))


@dataclass(frozen=True)
class Comparison:
    """How texts are compared: with which cache, limits and workers, and whether other numbers make another text."""

    keep_numbers: bool
    limits: ResourceLimits
    cache: ComparisonCache
    workers: Workers

    def find_matches(
        self,
        prompts: CandidateTexts,
        texts: CandidateTexts,
        items: pl.DataFrame | None,
        embed: EmbedFunction | None,
        spec: CurationSpec,
    ) -> Matches:
        """Everything that the steps of this `spec` read.

        Args:
            prompts: the user's turns.
            texts: the texts in which near-duplicates are searched.
            items: `id` and `text` of golden and dev rows.
        """
        found = {}
        if items is not None and items.height and spec.decontamination is not None:
            found["leaks"] = self._find_leaks(prompts, items, spec.decontamination)
        near = spec.dedup.near
        if near is not None or spec.validation_share:  # without the step they still get the same split
            found["near"] = self._find_near_pairs(texts, near or NearDuplicateSpec())
        if spec.dedup.semantic is not None:
            assert embed is not None, "dedup.semantic needs sentence embeddings"
            found["semantic"] = self._find_semantic_pairs(prompts, embed, spec.dedup.semantic)
        return Matches(**found)

    def _find_leaks(self, prompts: CandidateTexts, items: pl.DataFrame, spec: DecontaminationSpec) -> pl.DataFrame:
        """Candidates that contain or nearly equal a golden or dev row."""
        settings, keep_numbers, limits = spec.model_dump(), self.keep_numbers, self.limits

        def find_in_part(part: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
            scheme = MinHashScheme(keep_numbers=keep_numbers)
            return find_contamination(
                part, items, text="text", id="ident", scheme=scheme, limits=limits, **settings
            ).hits

        def find(part: pl.LazyFrame) -> pl.DataFrame:
            if not self.workers.is_remote:
                return find_in_part(part)
            hits = [pl.DataFrame(schema=HIT_SCHEMA), *map_in_batches(part, find_in_part, workers=self.workers)]
            return pl.concat(hits).sort("id", maintain_order=True)

        cache_key = settings | {"keep_numbers": keep_numbers, "items": items.select("id", "text").rows()}
        hits = self.cache.find_by_slice("leaks", cache_key, prompts, find)
        return _find_places(prompts, hits.rename({"id": "row"}), "row").select(list(LEAK_HIT_SCHEMA))

    def _find_near_pairs(self, texts: CandidateTexts, spec: NearDuplicateSpec) -> pl.DataFrame:
        keep_numbers = self.keep_numbers if spec.keep_numbers is None else spec.keep_numbers
        scheme = MinHashScheme(ngram=spec.ngram, min_words=spec.min_words, keep_numbers=keep_numbers)
        pairs = self.cache.find_near_pairs(texts, scheme, spec.threshold, self.limits, self.workers)
        return _find_places(texts, pairs, "left", "right")

    def _find_semantic_pairs(
        self, prompts: CandidateTexts, embed: EmbedFunction, spec: SemanticDuplicateSpec
    ) -> pl.DataFrame:
        """Pairs of prompts with the same meaning; none in a table of more than `most_rows`."""

        def find(table: pl.LazyFrame) -> pl.DataFrame:
            from distill_dagster.curation.dedup.semantic import find_semantic_duplicates

            found = find_semantic_duplicates(
                table,
                embed,
                id="ident",
                threshold=spec.threshold,
                most_rows=spec.most_rows,
                limits=self.limits,
                workers=self.workers,
            )
            return pl.DataFrame(schema=_NAMED_PAIR_SCHEMA) if found is None else found.pairs

        pairs = self.cache.find_in_all("semantic", spec.model_dump(), prompts, find)
        return _find_places(prompts, pairs, "left", "right")


def _find_places(texts: CandidateTexts, found: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """The table with places of candidates instead of their `ident`, which takes ten times as much memory."""
    wanted = pl.concat([found[name] for name in columns]).unique()
    numbered = texts.rows.select("ident").with_row_index("place")
    places = numbered.join(pl.LazyFrame({"ident": wanted}), on="ident", how="semi").collect(engine="streaming")
    for name in columns:
        found = found.join(places, left_on=name, right_on="ident", maintain_order="left")
        found = found.with_columns(pl.col("place").alias(name)).drop("place")
    return found
