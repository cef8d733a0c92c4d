"""Settings of imagining prompts."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from distill_dagster.config.auxiliary_teacher import AuxiliaryTeacherSpec
from distill_dagster.config.base import MODEL_NAME, ConfigModel

IMAGINE_METHODS = ("grid", "self_instruct", "evolve")
RESERVED_AXES = ("method", "evolution", "label")


class ImagineMethodsSpec(ConfigModel):
    """Shares of the methods that imagine prompts. They need not add up to 1."""

    grid: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="from a combination of values of the axes; by default 0.4, or 0 without axes"
    )
    self_instruct: Annotated[float, Field(ge=0)] = Field(
        default=0.3, description="from examples of the slice (Wang et al. 2023)"
    )
    evolve: Annotated[float, Field(ge=0)] = Field(
        default=0.3, description="a more difficult or more unusual form of a prompt (Xu et al. 2023)"
    )


class ImagineSpec(ConfigModel):
    """How a teacher imagines prompts for slices with fewer prompts than their `target`."""

    methods: ImagineMethodsSpec = ImagineMethodsSpec()
    axes: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(
        default={}, description="difficulty, persona, style, edge_case or any other name, each with its values"
    )
    per_request: Annotated[int, Field(ge=1, le=100)] = Field(default=4, description="prompts that one request asks for")
    examples: Annotated[int, Field(ge=0, le=50)] = Field(default=6, description="examples in a self_instruct request")
    temperature: Annotated[float, Field(ge=0, le=2)] = Field(
        default=1.0, description="randomness of the imagined prompts"
    )
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=1000, description="longest answer to one request, in tokens"
    )
    max_chars: Annotated[int, Field(ge=1, le=100_000)] = Field(default=4000, description="longest imagined prompt")
    near_duplicate: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.7,
        description="least Jaccard similarity (word 3-grams) of near-duplicates; short texts are compared exactly only",
    )
    max_rounds: Annotated[int, Field(ge=1, le=100)] = Field(
        default=5,
        description="each round asks for all missing prompts; two rounds without a new prompt end a slice earlier",
    )
    seed: int = Field(default=0, description="seed of the choice of examples and axes")
    teacher: Annotated[AuxiliaryTeacherSpec | None, MODEL_NAME] = Field(
        default=None, description="the model that imagines; by default the task's teacher"
    )

    @field_validator("teacher", mode="before")
    @classmethod
    def _expand_teacher(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_methods(self) -> ImagineSpec:
        for name in self.axes:
            if name in RESERVED_AXES or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,40}", name):
                raise ValueError(f"axis {name!r}: use a name such as edge_case, and none of {', '.join(RESERVED_AXES)}")
        if self.methods.grid and not self.axes:
            raise ValueError("methods.grid needs `axes`")
        if not any(self.compute_shares().values()):
            raise ValueError("methods: at least one share must be above 0")
        return self

    def compute_shares(self) -> dict[str, float]:
        """The share of each method, in the order of `IMAGINE_METHODS`. They add up to 1, unless all are 0."""
        grid = self.methods.grid if self.methods.grid is not None else 0.4 * bool(self.axes)
        given = dict(zip(IMAGINE_METHODS, (grid, self.methods.self_instruct, self.methods.evolve), strict=True))
        total = sum(given.values()) or 1.0
        return {name: share / total for name, share in given.items()}
