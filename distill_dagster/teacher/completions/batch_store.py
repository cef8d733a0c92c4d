"""Notes on provider batches and the requests in them, in the completion store's database."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from distill_dagster.core.databases import insert_if_new
from distill_dagster.core.processes import get_process_name, is_on_other_host, is_process_gone
from distill_dagster.teacher.completions.ledger import split_keys
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
_REMOTE_GRACE_S = 3600


@dataclass(frozen=True)
class Submission:
    """One batch that this project submits. `batch_id` is the provider's id, None until it is known.

    `submission` is the name of the batch, `teacher` the identity hash, `origin` is `task/asset[partition]`, and
    `owner` is the process that submits the batch.
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
    def is_submitting(self) -> bool:
        """Whether the process that submits it is alive. On another host it is assumed alive for an hour."""
        if not self.owner:
            return False
        if is_on_other_host(self.owner):
            age = datetime.now(UTC) - datetime.fromisoformat(self.created_at)
            return age.total_seconds() < _REMOTE_GRACE_S
        return not is_process_gone(self.owner)


class BatchStore:
    """Submissions, and the requests that each of them claims. A request is in one open batch at most."""

    def __init__(self, store: CompletionStore) -> None:
        self._engine = store.database
        store.create_tables(*BATCH_TABLES)

    def claim(self, keys: Iterable[str], teacher: str, origin: str) -> tuple[Submission, list[str]] | None:
        """Note that this process is about to submit these requests, without those that an open batch contains.

        Returns:
            The submission and its requests, or None if no request is left. The note is durable on return.
        """
        name = uuid.uuid4().hex
        now = datetime.now(UTC).isoformat(timespec="seconds")
        wanted = sorted(set(keys))  # the same order everywhere, so that two processes cannot deadlock
        insert = insert_if_new(self._engine, _REQUESTS)
        with self._engine.begin() as connection:
            for chunk in split_keys(wanted):
                connection.execute(insert, [{"request_key": key, "submission": name} for key in chunk])
            own = sa.select(_REQUESTS.c.request_key).where(_REQUESTS.c.submission == name)
            claimed = sorted(connection.execute(own).scalars())
            if not claimed:
                return None
            submission = Submission(name, None, teacher, origin, get_process_name(), len(claimed), now, None)
            connection.execute(_BATCHES.insert().values(**vars(submission)))
        return submission, claimed

    def note_submitted(self, submission: str, batch_id: str) -> None:
        """Note that the provider has the batch, under this id."""
        with self._engine.begin() as connection:
            named = _BATCHES.update().where(_BATCHES.c.submission == submission)
            connection.execute(named.values(batch_id=batch_id))

    def abandon(self, submission: str) -> None:
        """Note that this process stops submitting the batch and does not know whether the provider has it."""
        with self._engine.begin() as connection:
            connection.execute(_BATCHES.update().where(_BATCHES.c.submission == submission).values(owner=""))

    def release(self, submission: str, keys: Iterable[str]) -> None:
        """Release some requests of a batch that is not submitted yet. Other batches may claim them."""
        with self._engine.begin() as connection:
            for chunk in split_keys(sorted(keys)):
                own = _REQUESTS.c.submission == submission
                connection.execute(_REQUESTS.delete().where(own, _REQUESTS.c.request_key.in_(chunk)))

    def forget(self, submission: str) -> None:
        """Delete the note and release its requests: the batch was never submitted, or the user gave it up."""
        with self._engine.begin() as connection:
            connection.execute(_REQUESTS.delete().where(_REQUESTS.c.submission == submission))
            connection.execute(_BATCHES.delete().where(_BATCHES.c.submission == submission))

    def note_collected(self, submission: str, errors: Mapping[str, str]) -> None:
        """Note that the store has the answers of a batch. `errors` has the reason for each missing answer."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        own = _REQUESTS.c.submission == submission
        with self._engine.begin() as connection:
            for key, error in errors.items():
                connection.execute(_REQUESTS.update().where(own, _REQUESTS.c.request_key == key).values(error=error))
            connection.execute(_REQUESTS.delete().where(own, _REQUESTS.c.error.is_(None)))
            named = _BATCHES.update().where(_BATCHES.c.submission == submission)
            connection.execute(named.values(collected_at=now))

    def list_open(self, teacher: str | None = None, task: str | None = None) -> list[Submission]:
        """The submissions of one teacher or one task that are not collected yet, oldest first."""
        query = sa.select(_BATCHES).where(_BATCHES.c.collected_at.is_(None)).order_by(_BATCHES.c.created_at)
        if teacher is not None:
            query = query.where(_BATCHES.c.teacher == teacher)
        with self._engine.connect() as connection:
            submissions = [Submission(**row) for row in connection.execute(query).mappings()]
        return [found for found in submissions if task is None or found.origin.startswith(f"{task}/")]

    def list_keys(self, submission: str) -> list[str]:
        """The requests of a submission."""
        with self._engine.connect() as connection:
            own = sa.select(_REQUESTS.c.request_key).where(_REQUESTS.c.submission == submission)
            return sorted(connection.execute(own).scalars())

    def find_submissions(self, keys: Iterable[str]) -> set[str]:
        """The names of the open submissions that contain any of these requests."""
        rows = self._select(keys, _REQUESTS.c.submission, _REQUESTS.c.error)
        return {row.submission for row in rows if row.error is None}

    def take_errors(self, keys: Iterable[str]) -> dict[str, str]:
        """Return why requests have no answer, and delete these notes: the next run submits the requests again."""
        rows = self._select(keys, _REQUESTS.c.request_key, _REQUESTS.c.error)
        errors = {row.request_key: row.error for row in rows if row.error is not None}
        with self._engine.begin() as connection:
            for chunk in split_keys(list(errors)):
                connection.execute(_REQUESTS.delete().where(_REQUESTS.c.request_key.in_(chunk)))
        return errors

    def _select(self, keys: Iterable[str], *columns: sa.Column[Any]) -> list[sa.Row[Any]]:
        rows = list[sa.Row[Any]]()
        with self._engine.connect() as connection:
            for chunk in split_keys(sorted(set(keys))):
                rows += connection.execute(sa.select(*columns).where(_REQUESTS.c.request_key.in_(chunk)))
        return rows
