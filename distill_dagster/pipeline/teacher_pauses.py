"""The pauses that a task's teachers asked for, and which artifacts wait for their end."""

from __future__ import annotations

import time
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from distill_dagster.core.database_urls import get_store_url
from distill_dagster.core.errors import DistillError
from distill_dagster.core.paths import Home
from distill_dagster.pipeline.freshness import ArtifactStatus
from distill_dagster.pipeline.teacher_check import list_all_teachers, list_stage_teachers
from distill_dagster.tasks import TaskFolder

if TYPE_CHECKING:
    from distill_dagster.teacher.completions.pauses import PauseStore


def find_task_pauses(home: Home, folder: TaskFolder) -> list[str]:
    """The pauses of a task's teachers that have not ended, in words. Writes nothing.

    There are none if the completion store cannot be read, since what is fresh can be said without it.
    """
    specs = [spec for spec in list_all_teachers(folder.task) if not spec.is_free]
    if not specs:  # a free teacher asks for no pause, and a database need not be loaded
        return []

    from sqlalchemy.exc import SQLAlchemyError

    from distill_dagster.teacher.completions.pauses import find_noted_pause
    from distill_dagster.teacher.completions.store import open_store_for_reading

    try:
        with open_store_for_reading(home.store, get_store_url()) as store:
            pauses = [find_noted_pause(store, spec) for spec in specs]
    except (DistillError, SQLAlchemyError, OSError):
        return []
    return [str(pause) for pause in pauses if pause is not None]


class TeacherPauses:
    """The pauses of a task's teachers, read from the completion store. Opens it when the first stage would ask one."""

    def __init__(self, folder: TaskFolder, home: Home) -> None:
        self._folder, self._home, self._started = folder, home, time.time()
        self._stack = ExitStack()
        self._store: PauseStore | None = None

    def __enter__(self) -> TeacherPauses:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stack.close()
        self._store = None

    def explain_wait(self, status: ArtifactStatus, *, only_new: bool) -> str | None:
        """Say which teacher of an artifact asked to wait, until when and in which words; None if there is none.

        Args:
            only_new: Leave out pauses that were noted before this command. A person who starts a run wants a try.
        """
        for spec in list_stage_teachers(self._folder, status.asset, status.partition):
            if spec.is_free:
                continue
            pause = self._open_store().find(spec)
            if pause is not None and not (only_new and pause.noted_at < self._started):
                return str(pause)
        return None

    def _open_store(self) -> PauseStore:
        if self._store is None:
            from distill_dagster.teacher.completions.pauses import PauseStore
            from distill_dagster.teacher.completions.store import open_store

            self._store = PauseStore(self._stack.enter_context(open_store(self._home.store, get_store_url())))
        return self._store
