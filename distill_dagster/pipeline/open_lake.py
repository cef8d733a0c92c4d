"""Open the lake of an installation: a local folder, or an object store if the deployment names one."""

from __future__ import annotations

from pathlib import Path

from distill_dagster.config.deployment import LakeSpec
from distill_dagster.core.paths import Home
from distill_dagster.tables.lake import Lake
from distill_dagster.tasks.deployment_file import read_deployment


def open_lake(home: Home) -> Lake:
    """The lake that `deployment.yaml` or `DISTILL_LAKE_URL` names, by default that below `DISTILL_HOME`.

    Raises:
        DistillError: the settings have a mistake, or the package for object stores is not installed.
    """
    return build_lake(read_deployment().lake, home.lake, home.lake_cache, home.reports)


def build_lake(spec: LakeSpec, folder: Path, cache: Path, reports: Path) -> Lake:
    """The lake with these settings: in `folder`, or in an object store with its local copies in `cache`."""
    if spec.url is None:
        return Lake(folder, reports)
    from distill_dagster.tables.object_lake.lake import ObjectLake

    return ObjectLake(spec.url, cache, reports, int(spec.cache_gb * 2**30))
