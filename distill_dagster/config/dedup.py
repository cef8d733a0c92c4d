"""`curation.dedup` and `curation.decontamination` of task.yaml: the steps after the filters that compare rows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from distill_dagster.config.base import SWITCH, ConfigModel

Share = Annotated[float, Field(gt=0, le=1)]


def expand_switch(value: Any) -> Any:
    """Expand the short form of a block in task.yaml: true means its defaults, false means no block."""
    return {} if value is True else None if value is False else value


class NearDuplicateSpec(ConfigModel):
    """Near-duplicates: rows that share most of their word shingles. Each pair is verified."""

    threshold: Share = Field(default=0.7, description="least Jaccard similarity of the sets of word shingles")
    ngram: Annotated[int, Field(ge=1, le=10)] = Field(default=2, description="words per shingle")
    min_words: Annotated[int, Field(ge=1)] = Field(default=12, description="shorter texts are compared exactly only")
    compare: Literal["prompt", "prompt_and_answer"] | None = Field(
        default=None, description="by default prompts if answers are labels, else prompt and answer together"
    )
    keep_numbers: bool | None = Field(
        default=None,
        description="texts with different numbers are never near-duplicates; by default true for kind math only",
    )


class SemanticDuplicateSpec(ConfigModel):
    """Duplicates by meaning: prompts with close sentence embeddings."""

    threshold: Share = Field(default=0.95, description="least cosine of the embeddings of two prompts")
    most_rows: Annotated[int, Field(ge=1)] = Field(default=50_000, description="larger tables are not compared")


class DedupSpec(ConfigModel):
    """`curation.dedup`: which rows count as duplicates. Rows with equal prompts always do."""

    near: Annotated[NearDuplicateSpec | None, SWITCH] = Field(
        default=NearDuplicateSpec(), description="false: exact only"
    )
    semantic: Annotated[SemanticDuplicateSpec | None, SWITCH] = Field(
        default=None, description="true: compare by meaning too"
    )

    @field_validator("near", "semantic", mode="before")
    @classmethod
    def _expand_switch(cls, value: Any) -> Any:
        return expand_switch(value)


class DecontaminationSpec(ConfigModel):
    """`curation.decontamination`: rows that contain golden or dev rows. Rows with equal texts are always dropped."""

    ngram: Annotated[int, Field(ge=2, le=32)] = Field(default=5, description="words per n-gram")
    min_overlap: Share = Field(
        default=0.5,
        description="a leak if a row contains this share of an item's n-grams, or an item this share of a row's",
    )
    whole_below: Annotated[int, Field(ge=2)] = Field(
        default=13, description="an item or a row with fewer words counts only if it is contained as a whole"
    )
    threshold: Share = Field(default=0.7, description="least Jaccard similarity of a near-duplicate of an item")

    @field_validator("whole_below")
    @classmethod
    def _check_whole_below(cls, value: int, info: Any) -> int:
        if value < info.data.get("ngram", 0):
            raise ValueError("whole_below must be at least ngram")
        return value
