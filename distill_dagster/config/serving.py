"""Settings of `distill serve`: limits, timeouts and the log of requests."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distill_dagster.config.base import ConfigModel


class ServingSpec(ConfigModel):
    """How a released student is served. A change applies when the server starts again; no asset depends on it."""

    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = Field(
        default="DISTILL_API_KEY",
        description="environment variable with the key that clients must send; if it is not set, no key is needed, and "
        "the server listens on loopback only",
    )
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = Field(
        default=60.0, description="longest time for one request in seconds, with the teacher's answer"
    )
    teacher_timeout_s: Annotated[float, Field(gt=0, le=3600)] = Field(
        default=30.0,
        description="longest wait for the teacher's answer in seconds; after that the client gets the student's",
    )
    max_body_kb: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        default=256, description="largest body of a request in KiB"
    )
    max_waiting: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=256, description="requests that may wait for the student; more are refused with status 429"
    )
    keep_system: bool = Field(
        default=False,
        description="whether the student reads system messages of clients; by default they are left out, since its "
        "training prompts had none",
    )
    log_share: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0, description="share of the requests that are logged, masked, chosen at random; 0: no log"
    )
    log_file_mb: Annotated[float, Field(gt=0, le=10_000)] = Field(
        default=16.0, description="size in MiB at which a new log file begins"
    )
    log_files: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=32, description="log files that are kept; the oldest are deleted"
    )
