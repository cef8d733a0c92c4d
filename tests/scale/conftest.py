"""A Ray cluster of two workers, started once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.ray_cluster import RayCluster, run_cluster, set_token

set_token()  # before test modules import Ray


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    with run_cluster(workers=2, node_environment={"OMP_NUM_THREADS": "1"}) as cluster:
        yield cluster
