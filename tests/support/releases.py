"""A release with the adapter alone, as `distill release` lays it out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from distill_dagster.core.paths import Home
from distill_dagster.release.registry import Registry, Release
from distill_dagster.release.routing.table import ExportRouting, RoutingTable
from distill_dagster.release.runtimes.types import StudentSetup
from distill_dagster.release.types import build_export
from distill_dagster.student.types import TaskSettings
from distill_dagster.tasks import TaskFolder


def write_adapter_release(
    home: Home, folder: TaskFolder, student: str, adapter: Path, routing: ExportRouting | None = None
) -> Release:
    """Release what was trained in the folder `adapter`. Without `routing` the release has no routing.json."""

    def fill(release: Path, _: int) -> dict[str, Any]:
        shutil.copytree(adapter, release / "adapter")
        task = folder.task
        setup = StudentSetup(task.students[student], tuple(task.labels), TaskSettings.from_task(task), home.models)
        setup.write(release)
        if routing is not None:
            RoutingTable(0.0, {"adapter": routing}).write(release)
        files = tuple(str(path.relative_to(release)) for path in (release / "adapter").iterdir())
        export = build_export("adapter", release, "adapter", files, runtime="adapter")
        return {"student": student, "exports": [export.to_dict()], "left_out": []}

    return Registry(home.releases).publish(folder.name, fill)
