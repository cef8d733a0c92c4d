"""Dagster resources for files and databases: task folders, lake, completion store and model folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from distill_dagster.config.deployment import LakeSpec
from distill_dagster.core.limits import ResourceLimits
from distill_dagster.orchestration.tags import build_process_tag
from distill_dagster.pipeline.open_lake import build_lake
from distill_dagster.pipeline.open_task import open_task
from distill_dagster.tables.lake import Lake
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.completions.store import CompletionStore, open_store


class TaskFoldersResource(dg.ConfigurableResource):
    """The user's files: task folders, the inbox for new prompts, the prompts accepted from it, and the log of served
    requests.
    """

    path: str
    accepted: str
    inbox: str
    requests: str

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Tag a run with its process, before any of its steps can wait for a pool."""
        run = context.run
        if run is not None and context.instance is not None:
            tag = build_process_tag(run.run_id)
            if not tag.items() <= run.tags.items():
                context.instance.add_run_tags(run.run_id, tag)

    def open(self, task: str) -> TaskFolder:
        return open_task(Path(self.path), task, Path(self.accepted))

    def get_inbox_folder(self, task: str) -> Path:
        return Path(self.inbox) / task

    def get_log_folder(self, task: str) -> Path:
        """The folder of a task's served requests."""
        return Path(self.requests) / task


class LakeResource(dg.ConfigurableResource):
    """The folders of tables and adapters, of reports (`<reports>/<task>/<student>/`), of trainings in progress, and of
    releases.
    """

    path: str
    reports: str
    training: str
    releases: str
    url: str = ""
    """Address of the lake in an object store. Empty: it is in `path`."""
    cache: str = ""
    """The folder for local copies of what is in the object store."""
    cache_gb: float = 20
    """What the local copies may take, in GiB."""
    memory_mb: int = 2048
    """Memory that DuckDB may use before it spills to disk. Half of it may be used to keep texts between two passes."""
    spill: str = ""
    """The folder for temporary files. Empty: the system's."""

    def build_limits(self) -> ResourceLimits:
        return ResourceLimits(memory_mb=self.memory_mb, spill=Path(self.spill) if self.spill else None)

    def open_lake(self) -> Lake:
        spec = LakeSpec(url=self.url or None, cache_gb=self.cache_gb)
        return build_lake(spec, Path(self.path), Path(self.cache), Path(self.reports))


class CompletionStoreResource(dg.ConfigurableResource):
    """The store of all received answers. `url` is a SQLAlchemy URL; empty means SQLite in `path`.

    A new database at `url` starts as a copy of the database in `path`: answers, ledger and batches.
    """

    path: str
    url: str = ""

    @contextmanager
    def open(self) -> Iterator[CompletionStore]:
        with open_store(Path(self.path), self.url) as store:
            yield store


class ModelFolderResource(dg.ConfigurableResource):
    """The folder of converted base models."""

    path: str
