"""Settings of a teacher's batch mode."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill_dagster.config.base import ConfigModel

MAX_BATCH_REQUESTS = 50_000
"""As many requests as OpenAI accepts in one batch."""
RUNNER_DEFAULTS = {"wait_s": 0, "max_requests": 10_000}
"""Defaults for a runner: a person starts it, and what it has not finished when it is killed is lost."""


class BatchSpec(ConfigModel):
    """Who answers the batches of `mode: batch`, and how a run waits for them."""

    runner: Literal["vllm"] | None = Field(
        default=None,
        description="vllm: write the requests to files, which vLLM's offline batch runner answers on your own GPU "
        "without a server; by default the provider's batch API answers them",
    )
    wait_s: Annotated[float, Field(ge=0)] = Field(
        default=90_000,
        description="how long a run waits for its batches (25 hours; 0 with a runner); 0 leaves them to the sensor",
    )
    poll_s: Annotated[float, Field(gt=0)] = Field(
        default=30, description="first pause between polls; it grows to ten times as much"
    )
    max_requests: Annotated[int, Field(ge=1, le=MAX_BATCH_REQUESTS)] = Field(
        default=MAX_BATCH_REQUESTS,
        description="most requests in one batch (10000 with a runner); what a killed runner has not written is lost, "
        "so smaller batches lose less",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("runner") is not None:
            return RUNNER_DEFAULTS | value
        return value
