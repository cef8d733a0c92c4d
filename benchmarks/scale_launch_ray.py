"""Measure slices whose runs are jobs of a Ray cluster of two workers on this machine. A section of scale_launch.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scale_launch import RANGE, SEEDS, TASK, run_command, serve_ui, write_project, write_slices

from tests.support.provider import FakeProvider
from tests.support.ray_cluster import run_cluster

WORKERS = 2


def measure_ray(quick: bool, scratch: Path, provider: FakeProvider) -> dict[str, float]:
    """Make slices by jobs of their own, then by jobs over ranges, with a job on each worker at a time.

    Args:
        scratch: An empty folder.

    Returns:
        Wall seconds per slice, with the starts of the jobs and without those of cluster and UI.
    """
    alone, ranged, size = (2, 6, 3) if quick else (20, 200, RANGE)
    folder = scratch / "tasks" / TASK
    write_project(folder, provider.url)
    write_slices(folder, 0, 1)
    run_command(scratch, None, "backfill")
    with run_cluster(workers=WORKERS, node_environment={"OPENAI_API_KEY": "none"}) as cluster:

        def deploy(slices_per_run: int) -> dict[str, Any]:
            limits = {"at_once": WORKERS, "pools": {"teacher": WORKERS}, "slices_per_run": slices_per_run}
            return {"runs": {"launch": True, **limits}, "ray": {"address": cluster.address, "runs": True}}

        def make(first: int, last: int, slices_per_run: int) -> float:
            write_slices(folder, first, last)
            before = len(provider.requests)
            _, found = run_command(scratch, deploy(slices_per_run), "backfill")
            asked, made = len(provider.requests) - before, len(found["partitions"]["scored_completions"])
            if (asked, made) != (SEEDS * (last - first), last - first):
                raise SystemExit(f"{last - first} slices on Ray: {made} made, {asked} requests")
            return float(found["wall_s"]) / made

        with serve_ui(scratch, deploy(1)):
            each = make(1, 1 + alone, 1)
            together = make(1 + alone, 1 + alone + ranged, size)
    return {
        "launch_ray_slices": ranged,
        "s_per_slice_ray_alone": round(each, 3),
        "s_per_slice_ray": round(together, 3),
    }
