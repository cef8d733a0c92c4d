"""The Dagster resource that says where stages compute the parts of one large table, and where they train."""

from __future__ import annotations

import dagster as dg

from distill_dagster.config.deployment import RaySpec
from distill_dagster.core.ray_workers import RayWorkers
from distill_dagster.core.workers import IN_PROCESS, Workers
from distill_dagster.student.ranks import LaunchRanks
from distill_dagster.student.ray_ranks import RayRanks


class WorkersResource(dg.ConfigurableResource):
    """The Ray cluster at `address`, or without one the step's own process.

    `stages` says whether it computes parts of large tables. `train_processes` of its processes train one student.
    """

    address: str = ""
    stages: bool = False
    train_processes: int = 1

    def get_workers(self) -> Workers:
        return RayWorkers(self.address) if self.address and self.stages else IN_PROCESS

    def get_launcher(self) -> LaunchRanks | None:
        if not self.address or self.train_processes == 1:
            return None
        return RayRanks(RayWorkers(self.address), self.train_processes)


def build_workers(spec: RaySpec | None) -> WorkersResource:
    """The resource for a deployment with this Ray cluster, or with none."""
    if spec is None:
        return WorkersResource()
    return WorkersResource(address=spec.address, stages=spec.stages, train_processes=spec.train_processes)
