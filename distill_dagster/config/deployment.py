"""Settings of `deployment.yaml`: which engines run a deployment of the project, and where its lake is.

They say where work runs, never what it makes: no asset depends on them.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from distill_dagster.config.base import ConfigModel

LAKE_URL_PATTERN = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^?#@]*)?")


class RunsSpec(ConfigModel):
    """Who starts the runs of `distill refresh` and `distill backfill`."""

    launch: bool = Field(
        default=False,
        description="whether runs are handed to the Dagster instance, as with `--launch`: its queue and run launcher "
        "start them, and the command only follows. By default the command runs them in its own process",
    )


class RaySpec(ConfigModel):
    """What runs on a Ray cluster. The block alone names the cluster; each switch moves one kind of work there."""

    address: Annotated[str, Field(min_length=1)] = Field(
        default="auto",
        description="address of the cluster: `auto` for the one that this machine belongs to, or `ray://HOST:PORT`",
    )
    runs: bool = Field(default=False, description="whether each launched run is a job of the cluster")
    steps: bool = Field(default=False, description="whether each step of a run is a task of the cluster")
    stages: bool = Field(default=False, description="whether stages divide one large partition among workers")


class LakeSpec(ConfigModel):
    """Where tables, adapters and reports are."""

    url: str | None = Field(
        default=None,
        description="`s3://BUCKET/PREFIX` of the lake; the environment variable `DISTILL_LAKE_URL` wins. By default it "
        "is a folder of `DISTILL_HOME`",
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None and not LAKE_URL_PATTERN.fullmatch(url):
            raise ValueError("this is no address of the form s3://BUCKET/PREFIX, without key or query")
        return url


class DeploymentSpec(ConfigModel):
    """All of `deployment.yaml`. Without the file everything runs on one machine, in the process of the command."""

    runs: RunsSpec = RunsSpec()
    ray: RaySpec | None = Field(default=None, description="a Ray cluster; needs `pip install .[ray]`")
    lake: LakeSpec = LakeSpec()
