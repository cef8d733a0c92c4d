"""Notes on teachers that asked for a long pause, in the completion store's database. A refresh waits until it ends.

Other processes that ask the teacher now hear of it through `pacing`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa

from distill_dagster.config import TeacherSpec
from distill_dagster.core.databases import insert_if_new
from distill_dagster.core.formatting import format_seconds, format_time
from distill_dagster.teacher.completions.pacing import PACING, clear_wait, hash_provider, note_wait
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers.attempts import TeacherPausedError

_METADATA = sa.MetaData()
_PAUSES = sa.Table(
    "pauses",
    _METADATA,
    sa.Column("teacher", sa.String(64), primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("until", sa.Float, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("noted_at", sa.Float, nullable=False),
)


@dataclass(frozen=True)
class Pause:
    """A pause that a teacher asked for. `reason` has the provider's words. Times are in seconds since the epoch."""

    model: str
    until: float
    reason: str
    noted_at: float

    def __str__(self) -> str:
        left = format_seconds(self.until - time.time())
        return f"{self.model} asked to wait until {format_time(self.until)} (in {left}): {self.reason}"


class PauseStore:
    """The pauses by teacher. A teacher with another address, model or key variable is another one."""

    def __init__(self, store: CompletionStore) -> None:
        self._engine = store.database
        store.create_tables(_PAUSES, PACING)

    def note(self, spec: TeacherSpec, error: TeacherPausedError) -> None:
        """Note the pause that a teacher asked for, in place of an earlier one."""
        teacher = hash_provider(spec)
        values = {"teacher": teacher, "model": spec.model, "until": error.until, "reason": error.reason}
        with self._engine.begin() as connection:
            connection.execute(_PAUSES.delete().where(_PAUSES.c.teacher == teacher))
            connection.execute(insert_if_new(self._engine, _PAUSES), [values | {"noted_at": time.time()}])
        note_wait(self._engine, teacher, error.until - time.time(), error.reason)

    def find(self, spec: TeacherSpec) -> Pause | None:
        """The pause of a teacher that has not ended, or None."""
        return _find_pause(self._engine, spec)

    def clear(self, spec: TeacherSpec, before: float) -> None:
        """Delete the pause of a teacher that was noted before this time: the teacher has answered since."""
        own = sa.and_(_PAUSES.c.teacher == hash_provider(spec), _PAUSES.c.noted_at < before)
        with self._engine.begin() as connection:
            if connection.execute(sa.select(_PAUSES.c.teacher).where(own)).first():
                connection.execute(_PAUSES.delete().where(own))
        clear_wait(self._engine, hash_provider(spec), before)


def find_noted_pause(store: CompletionStore, spec: TeacherSpec) -> Pause | None:
    """The pause of a teacher that has not ended, from a store that may have no table of pauses and is not written."""
    return _find_pause(store.database, spec) if sa.inspect(store.database).has_table(_PAUSES.name) else None


def _find_pause(engine: sa.Engine, spec: TeacherSpec) -> Pause | None:
    columns = _PAUSES.c.model, _PAUSES.c.until, _PAUSES.c.reason, _PAUSES.c.noted_at
    own = sa.and_(_PAUSES.c.teacher == hash_provider(spec), _PAUSES.c.until > time.time())
    with engine.connect() as connection:
        row = connection.execute(sa.select(*columns).where(own)).first()
    return Pause(*row) if row else None
