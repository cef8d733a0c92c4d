"""Small resources that say where things are. All of them default to one `Home`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from distill_dagster.core.limits import ResourceLimits
from distill_dagster.tables.lake import Lake
from distill_dagster.tasks import TaskFolder, open_task
from distill_dagster.teacher.completions.store import CompletionStore, open_store


class TaskFoldersResource(dg.ConfigurableResource):
    """The user's files: task folders, the inbox for new prompts, and what was accepted from it."""

    path: str
    accepted: str
    inbox: str

    def open(self, task: str) -> TaskFolder:
        return open_task(Path(self.path), task, Path(self.accepted))

    def inbox_of(self, task: str) -> Path:
        return Path(self.inbox) / task


class LakeResource(dg.ConfigurableResource):
    """Where tables and adapters lie, and below `reports` the reports: `<reports>/<task>/<student>/`."""

    path: str
    reports: str
    memory_mb: int = 2048
    """What DuckDB may take before it spills, and half of it texts that are kept between two readings."""
    spill: str = ""
    """The folder for temporary files; empty for the system's."""

    def limits(self) -> ResourceLimits:
        return ResourceLimits(memory_mb=self.memory_mb, spill=Path(self.spill) if self.spill else None)

    def lake(self) -> Lake:
        return Lake(Path(self.path), Path(self.reports))


class CompletionStoreResource(dg.ConfigurableResource):
    """Every received answer of a teacher. `url` is a SQLAlchemy URL; empty for SQLite in `path`.

    A new database at `url` starts with what is in `path`: answers, ledger, notes on batches.
    """

    path: str
    url: str = ""

    @contextmanager
    def open(self) -> Iterator[CompletionStore]:
        with open_store(Path(self.path), self.url) as store:
            yield store


class ModelFolderResource(dg.ConfigurableResource):
    """Where converted base models lie."""

    path: str
