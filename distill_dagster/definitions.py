"""The code location: every task folder becomes one group of assets. Importing this loads no model library."""

from __future__ import annotations

import dagster as dg

from assets import task_definitions
from distill_dagster.database import store_variable
from distill_dagster.openmp import settle_waiting
from distill_dagster.paths import Home
from distill_dagster.taskfiles import find_tasks
from resources.doors import (
    CompletionStoreResource,
    LakeResource,
    ModelFolderResource,
    TaskFoldersResource,
)
from resources.teacher import TeacherResource

settle_waiting()


def build(home: Home) -> dg.Definitions:
    """All tasks below `home.tasks`, working on the folders of `home`."""
    url = store_variable()
    resources = {
        "tasks": TaskFoldersResource(path=str(home.tasks), accepted=str(home.accepted), inbox=str(home.inbox)),
        "lake": LakeResource(path=str(home.lake), reports=str(home.reports)),
        "store": CompletionStoreResource(path=str(home.store), url=dg.EnvVar(url) if url else ""),
        "models": ModelFolderResource(path=str(home.models)),
        "teacher": TeacherResource(models=str(home.models)),
    }
    tasks = [task_definitions(folder) for folder in find_tasks(home.tasks, home.accepted)]
    # One process per run: the steps of a run share the loaded libraries and the warm embedded server.
    shared = dg.Definitions(resources=resources, executor=dg.in_process_executor)
    return dg.Definitions.merge(shared, *tasks)


defs = build(Home.from_env())
