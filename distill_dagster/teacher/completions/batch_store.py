"""Which requests are in which provider's batch: in the completion store's database, so that all processes share it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from distill_dagster.core.databases import insert_if_new
from distill_dagster.core.processes import get_process_name, is_on_other_host, is_process_gone
from distill_dagster.teacher.completions.store import CompletionStore

_METADATA = sa.MetaData()
_BATCHES = sa.Table(
    "batches",
    _METADATA,
    sa.Column("submission", sa.String(32), primary_key=True),
    sa.Column("batch_id", sa.Text),
    sa.Column("teacher", sa.String(64), nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("requests", sa.Integer, nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("collected_at", sa.String(32)),
)
_REQUESTS = sa.Table(
    "batch_requests",
    _METADATA,
    sa.Column("request_key", sa.String(64), primary_key=True),
    sa.Column("submission", sa.String(32), nullable=False, index=True),
    sa.Column("error", sa.Text),
)
BATCH_TABLES = (_BATCHES, _REQUESTS)
_KEYS_PER_QUERY = 500


@dataclass(frozen=True)
class Submission:
    """One batch of ours. `batch_id` is the provider's, None until it is known to be there.

    `teacher` is the identity hash, `origin` is `task/asset[partition]`; `owner` is the process that submits it.
    """

    submission: str
    batch_id: str | None
    teacher: str
    origin: str
    owner: str
    requests: int
    created_at: str
    collected_at: str | None

    @property
    def submitting(self) -> bool:
        """Whether the process that was about to submit it still lives; one on another machine is taken to."""
        if not self.owner:
            return False
        if is_on_other_host(self.owner):
            age = datetime.now(UTC) - datetime.fromisoformat(self.created_at)
            return age.total_seconds() < _REMOTE_GRACE_S
        return not is_process_gone(self.owner)


_REMOTE_GRACE_S = 3600
"""After so many seconds a submission of another machine that never got its batch id is looked into."""


class BatchStore:
    """Submissions, and the requests that each has claimed. A request is in one open batch at most."""

    def __init__(self, store: CompletionStore) -> None:
        self._engine = store.database
        store.make_tables(*BATCH_TABLES)

    def claim(self, keys: Iterable[str], teacher: str, origin: str) -> tuple[Submission, list[str]] | None:
        """Note that these requests are about to be submitted; those that are in an open batch already are left out.

        Returns:
            The submission and its requests; None where nothing is left. Durable on return.
        """
        name = uuid.uuid4().hex
        now = datetime.now(UTC).isoformat(timespec="seconds")
        wanted = sorted(set(keys))  # in one order everywhere: two processes wait for each other, and not crosswise
        insert = insert_if_new(self._engine, _REQUESTS)
        with self._engine.begin() as connection:
            for start in range(0, len(wanted), _KEYS_PER_QUERY):
                rows = [{"request_key": key, "submission": name} for key in wanted[start : start + _KEYS_PER_QUERY]]
                connection.execute(insert, rows)
            mine = sa.select(_REQUESTS.c.request_key).where(_REQUESTS.c.submission == name)
            got = sorted(connection.execute(mine).scalars())
            if not got:
                return None
            made = Submission(name, None, teacher, origin, get_process_name(), len(got), now, None)
            connection.execute(_BATCHES.insert().values(**vars(made)))
        return made, got

    def submitted(self, submission: str, batch_id: str) -> None:
        """The provider has it, and calls it by this id."""
        with self._engine.begin() as connection:
            named = _BATCHES.update().where(_BATCHES.c.submission == submission)
            connection.execute(named.values(batch_id=batch_id))

    def abandon(self, submission: str) -> None:
        """This process will not submit it any more, and does not know whether it did."""
        with self._engine.begin() as connection:
            connection.execute(_BATCHES.update().where(_BATCHES.c.submission == submission).values(owner=""))

    def release(self, submission: str, keys: Iterable[str]) -> None:
        """Give some of its requests free again: they will not be submitted with it."""
        gone = sorted(keys)
        with self._engine.begin() as connection:
            for start in range(0, len(gone), _KEYS_PER_QUERY):
                some = _REQUESTS.c.request_key.in_(gone[start : start + _KEYS_PER_QUERY])
                connection.execute(_REQUESTS.delete().where(_REQUESTS.c.submission == submission, some))

    def forget(self, submission: str) -> None:
        """Give its requests free: it was never submitted, or the user does not want it any more."""
        with self._engine.begin() as connection:
            connection.execute(_REQUESTS.delete().where(_REQUESTS.c.submission == submission))
            connection.execute(_BATCHES.delete().where(_BATCHES.c.submission == submission))

    def collected(self, submission: str, errors: Mapping[str, str]) -> None:
        """Its answers are in the store; `errors` says of each other request why it has none."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        own = _REQUESTS.c.submission == submission
        with self._engine.begin() as connection:
            for key, error in errors.items():
                connection.execute(_REQUESTS.update().where(own, _REQUESTS.c.request_key == key).values(error=error))
            connection.execute(_REQUESTS.delete().where(own, _REQUESTS.c.error.is_(None)))
            named = _BATCHES.update().where(_BATCHES.c.submission == submission)
            connection.execute(named.values(collected_at=now))

    def open(self, teacher: str | None = None, task: str | None = None) -> list[Submission]:
        """What is not collected yet, oldest first: of one teacher, or of one task."""
        query = sa.select(_BATCHES).where(_BATCHES.c.collected_at.is_(None)).order_by(_BATCHES.c.created_at)
        if teacher is not None:
            query = query.where(_BATCHES.c.teacher == teacher)
        with self._engine.connect() as connection:
            found = [Submission(**row) for row in connection.execute(query).mappings()]
        return [one for one in found if task is None or one.origin.startswith(f"{task}/")]

    def keys(self, submission: str) -> list[str]:
        with self._engine.connect() as connection:
            mine = sa.select(_REQUESTS.c.request_key).where(_REQUESTS.c.submission == submission)
            return sorted(connection.execute(mine).scalars())

    def holding(self, keys: Iterable[str]) -> set[str]:
        """The submissions that hold any of these requests and have not said why it failed."""
        rows = self._among(keys, _REQUESTS.c.submission, _REQUESTS.c.error)
        return {row.submission for row in rows if row.error is None}

    def take_errors(self, keys: Iterable[str]) -> dict[str, str]:
        """Why requests have no answer. Told once: whoever asks again after that submits them anew."""
        found = self._among(keys, _REQUESTS.c.request_key, _REQUESTS.c.error)
        errors = {row.request_key: row.error for row in found if row.error is not None}
        told = list(errors)
        with self._engine.begin() as connection:
            for start in range(0, len(told), _KEYS_PER_QUERY):
                some = _REQUESTS.c.request_key.in_(told[start : start + _KEYS_PER_QUERY])
                connection.execute(_REQUESTS.delete().where(some))
        return errors

    def _among(self, keys: Iterable[str], *columns: sa.Column[Any]) -> list[sa.Row[Any]]:
        wanted, out = sorted(set(keys)), list[sa.Row[Any]]()
        with self._engine.connect() as connection:
            for start in range(0, len(wanted), _KEYS_PER_QUERY):
                some = _REQUESTS.c.request_key.in_(wanted[start : start + _KEYS_PER_QUERY])
                out += connection.execute(sa.select(*columns).where(some))
        return out
