"""What task.yaml says of the steps behind the filters: duplicates and decontamination."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Share = Annotated[float, Field(gt=0, le=1)]


def expand_switch(value: Any) -> Any:
    """A block that may be switched: true for its defaults, false for none."""
    return {} if value is True else None if value is False else value


class _StepSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NearDuplicateSpec(_StepSpec):
    """Near-duplicates: rows that share most of their word shingles, each pair verified."""

    threshold: Share = Field(default=0.7, description="least Jaccard similarity of the sets of word shingles")
    ngram: Annotated[int, Field(ge=1, le=10)] = Field(default=2, description="words of a shingle")
    min_words: Annotated[int, Field(ge=1)] = Field(default=12, description="shorter texts are compared exactly only")
    compare: Literal["prompt", "prompt_and_answer"] | None = Field(
        default=None, description="by default prompts where answers are labels, else prompt and answer together"
    )
    keep_numbers: bool | None = Field(
        default=None, description="texts whose numbers differ are never near; by default for kind math alone"
    )


class SemanticDuplicateSpec(_StepSpec):
    """Duplicates by meaning: prompts with close sentence embeddings."""

    threshold: Share = Field(default=0.95, description="least cosine of the embeddings of two prompts")
    most_rows: Annotated[int, Field(ge=1)] = Field(default=50_000, description="a larger table is not compared")


class DedupSpec(_StepSpec):
    """`curation.dedup`: which rows stand for others. Equal prompts always count once."""

    near: NearDuplicateSpec | None = Field(default=NearDuplicateSpec(), description="false: exact only")
    semantic: SemanticDuplicateSpec | None = Field(default=None, description="true: by meaning too")

    @field_validator("near", "semantic", mode="before")
    @classmethod
    def _switched(cls, value: Any) -> Any:
        return expand_switch(value)


class DecontaminationSpec(_StepSpec):
    """`curation.decontamination`: rows that hold golden or dev rows. Rows with their very text always leave."""

    ngram: Annotated[int, Field(ge=2, le=32)] = Field(default=5, description="words of an n-gram")
    min_overlap: Share = Field(
        default=0.5, description="share of an item's n-grams in a row, or of a row's in an item, that is a leak"
    )
    whole_below: Annotated[int, Field(ge=2)] = Field(
        default=13, description="an item or a row with fewer words has to be contained as a whole"
    )
    threshold: Share = Field(default=0.7, description="least Jaccard similarity of a near-duplicate of an item")

    @field_validator("whole_below")
    @classmethod
    def _room(cls, value: int, info: Any) -> int:
        if value < info.data.get("ngram", 0):
            raise ValueError("whole_below is no less than ngram")
        return value
