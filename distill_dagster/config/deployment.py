"""Settings of `deployment.yaml`: which engines run a deployment of the project, and where its lake is.

They say where work runs, never what it makes: no asset depends on them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from distill_dagster.config.base import ConfigModel

LAKE_URL_PATTERN = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^?#@]*)?")
JobKind = Literal["shared", "slices", "students", "assistants"]
"""What the runs of a job make: what all slices and students share, or one slice, student or assistant each."""


class RunsSpec(ConfigModel):
    """Who starts the runs of `distill refresh` and `distill backfill`."""

    launch: bool = Field(
        default=False,
        description="whether runs are handed to the Dagster instance, as with `--launch`: its queue and run launcher "
        "start them, and the command only follows. By default the command runs them in its own process",
    )
    slices_per_run: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=1,
        description="slices that share a launched run. More make fewer runs: each starts a process, which takes "
        "seconds on one machine and longer where it is a container. The slices of a run are made one after the other",
    )
    workspace: str | None = Field(
        default=None,
        description="Dagster's workspace file with the code location that launched runs are asked from, relative to "
        "this file. By default it is the code location of a running `distill ui`",
    )
    at_once: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="how many runs of the queue run at the same time. By default as dagster.yaml says: 2"
    )
    pools: dict[Literal["teacher", "training"], Annotated[int, Field(ge=1)]] = Field(
        default={},
        description="how many steps of a pool run at the same time, over all runs: `teacher` for those that ask a "
        "teacher, `training` for those that train or ask students. By default 1, or what was set in the UI",
    )
    tags: dict[JobKind, dict[str, str | dict[str, Any]]] = Field(
        default={},
        description="Dagster tags of the runs of a job: `slices`, `students`, `assistants`, or `shared` for what all "
        "share. Run launcher and queue read them, such as `dagster-k8s/config` with a GPU for `students`",
    )


class RayResourcesSpec(ConfigModel):
    """What a run reserves on the cluster. Ray starts it on a worker that has so much left."""

    cpus: Annotated[int, Field(ge=1)] = Field(default=1, description="CPU cores")
    gpus: Annotated[int, Field(ge=0)] = Field(default=0, description="GPUs; it sees no others")
    memory_gb: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="memory in GiB that is reserved, and not enforced"
    )


class RaySpec(ConfigModel):
    """What runs on a Ray cluster. The block alone names the cluster; each switch moves one kind of work there."""

    address: Annotated[str, Field(min_length=1)] = Field(
        default="auto",
        description="address of the cluster: `auto` for the one that this machine belongs to, or `ray://HOST:PORT`",
    )
    runs: bool = Field(default=False, description="whether each launched run is a job of the cluster")
    stages: bool = Field(default=False, description="whether stages divide one large partition among workers")
    train_processes: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1,
        description="processes that train one student, on workers of the cluster, each with a GPU if there are so "
        "many; 1: the process of the step trains",
    )
    run_resources: RayResourcesSpec = Field(
        default=RayResourcesSpec(),
        description="what a run reserves. The tag `dagster-ray/config` in `runs.tags` says it for a job of its own: "
        "`{num_gpus: 1}` for `students`",
    )
    lost_worker_retries: Annotated[int, Field(ge=0)] = Field(
        default=3, description="how often a run is started again after the worker that it ran on was lost"
    )


class LakeSpec(ConfigModel):
    """Where tables, adapters and reports are."""

    url: str | None = Field(
        default=None,
        description="`s3://BUCKET/PREFIX` of the lake; the environment variable `DISTILL_LAKE_URL` wins. By default it "
        "is a folder of `DISTILL_HOME`",
    )
    cache_gb: Annotated[float, Field(gt=0)] = Field(
        default=20,
        description="disk space in GiB for local copies of what is in the object store, below `DISTILL_HOME`. What was "
        "used in the last hour is kept even beyond it",
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None and not LAKE_URL_PATTERN.fullmatch(url):
            raise ValueError("this is no address of the form s3://BUCKET/PREFIX, without key or query")
        return url


class TeacherLimitsSpec(ConfigModel):
    """Limits of one teacher for the whole deployment. Of these and those of a task the lower ones apply."""

    concurrency: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="largest number of requests at the same time, of all processes together; by default each process "
        "has the `concurrency` of the task's teacher",
    )
    requests_per_minute: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="rate limit in requests, of all processes together"
    )
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="tokens of prompts and answers, of all processes together; an answer counts as max_tokens",
    )


class DeploymentSpec(ConfigModel):
    """All of `deployment.yaml`. Without the file everything runs on one machine, in the process of the command."""

    runs: RunsSpec = RunsSpec()
    ray: RaySpec | None = Field(default=None, description="a Ray cluster; needs `pip install .[ray]`")
    lake: LakeSpec = LakeSpec()
    teachers: dict[str, TeacherLimitsSpec] = Field(
        default={}, description="limits of teachers, judges and imagining models, by `model` as in task.yaml"
    )
