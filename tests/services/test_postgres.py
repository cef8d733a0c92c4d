"""Everything in PostgreSQL by one variable: a run, processes at once, and what is said when the database is not there.

make test-services    # needs PostgreSQL's server: initdb and postgres on the PATH, or POSTGRES_BIN=/folder/of/them
"""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg
import pytest

from distill_dagster.config import TeacherSpec
from distill_dagster.core.database_urls import POSTGRES_VARIABLE, STORE_VARIABLE, add_driver
from distill_dagster.teacher.completions.batch_store import BatchStore
from distill_dagster.teacher.completions.ledger import Account, Reservation
from distill_dagster.teacher.completions.pauses import PauseStore
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers.attempts import TeacherPausedError, UnusableAnswerError
from distill_dagster.teacher.providers.exchange import Response
from distill_dagster.teacher.providers.prices import WorstCase
from distill_dagster.teacher.providers.responses import build_unusable_response
from tests.e2e.project import HELD_OUT_REQUESTS, SEED_REQUESTS, TASK, CommandResult, Project, create_project
from tests.support.postgres import Server
from tests.support.provider import FakeProvider
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.services
DATASET = [
    "prompt_context",
    "teacher_prior",
    "golden_completions",
    "teacher_gate",
    "seed_prompts",
    "teacher_completions",
]
DATASET += ["scored_completions", "filtered_dataset"]


@pytest.fixture
def project(provider: FakeProvider, tmp_path: Path) -> Project:
    """Runs up to the dataset, whose blocking check holds training back."""
    return create_project(tmp_path, provider.url, curation={"min_rows": 1000})


def partitions_made(server: Server, database: str) -> dict[str, set[str | None]]:
    """Assets with the partitions of their materializations, as the rows of Dagster's event table."""
    query = "SELECT asset_key, partition FROM event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION'"
    found: dict[str, set[str | None]] = {}
    for key, partition in server.rows(database, query):
        asset = dg.AssetKey.from_db_string(key)
        assert asset is not None
        found.setdefault(asset.path[1], set()).add(partition)
    return found


def databases_of_sqlite(project: Project) -> list[str]:
    return [str(path.relative_to(project.home)) for path in project.home.rglob("*.db*")]


def files_with(text: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_run_leaves_everything_in_postgresql_and_a_second_one_asks_nothing(
    server: Server, database: str, project: Project, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POSTGRES_VARIABLE, server.url(database))
    first = project.run("--student", "one")
    assert list(first.json["failed"]) == ["filtered_dataset"], first.err
    assert set(first.partitions) == set(DATASET), "nothing is trained without a dataset"
    assert len(provider.requests) == first.json["teacher_calls"] == SEED_REQUESTS + HELD_OUT_REQUESTS
    made = partitions_made(server, database)
    assert made == {asset: set(keys) for asset, keys in first.partitions.items()}
    assert server.rows(database, "SELECT count(*) FROM runs") == [(len(first.json["runs"]),)]
    assert server.rows(database, "SELECT count(*) FROM completions") == [(len(provider.requests),)]
    assert databases_of_sqlite(project) == []

    second = project.run("--student", "one")
    assert second.json["runs"] == []
    assert len(provider.requests) == first.json["teacher_calls"]

    copied = project.home / "instance" / "dagster.yaml"
    assert f"env: {POSTGRES_VARIABLE}" in copied.read_text()
    assert files_with(server.password, project.home) == []
    dump = "SELECT table_to_xml(oid, true, false, '')::text FROM pg_class WHERE relkind = 'r' AND relnamespace = "
    rows = server.rows(database, dump + "'public'::regnamespace")
    assert len(rows) > 10
    assert not [row for row in rows if server.password in row[0]]


def test_processes_that_start_together_on_an_empty_database_lose_nothing(
    server: Server, database: str, project: Project, provider: FakeProvider
) -> None:
    environment: dict[str, Any] = {POSTGRES_VARIABLE: server.url(database)}
    started = {key: project.start("backfill", TASK, "--slice", key, "--json", **environment) for key in ("shop", "web")}
    try:
        for key, process in started.items():
            out, err = process.communicate(timeout=HANG_S)
            ended = CommandResult(process.returncode, out, err)
            assert ended.code == 0, ended.err
            assert ended.partitions["scored_completions"] == [key]
    finally:
        for process in started.values():
            process.kill()
    made = partitions_made(server, database)
    for asset in ("seed_prompts", "teacher_completions", "scored_completions"):
        assert made[asset] == {"shop", "web"}
    for key in started:
        assert project.record("teacher_completions", key).rows == SEED_REQUESTS // 2
    every = SEED_REQUESTS + HELD_OUT_REQUESTS
    assert len(provider.requests) == every, "nothing is asked twice"
    assert server.rows(database, "SELECT count(*) FROM completions") == [(every,)], "nothing is lost"
    assert databases_of_sqlite(project) == []


def test_stores_that_open_together_on_an_empty_database_all_work(server: Server) -> None:
    def count(url: str) -> int:
        store = CompletionStore(url)
        try:
            return store.count()
        finally:
            store.close()

    for number in range(5):
        server.rows("postgres", f"CREATE DATABASE together_{number}")
        with ThreadPoolExecutor(8) as threads:
            url = add_driver(server.url(f"together_{number}"))
            assert list(threads.map(count, [url] * 8)) == [0] * 8


def test_pauses_and_unusable_answers_of_a_teacher(server: Server, database: str) -> None:
    store = CompletionStore(add_driver(server.url(database)))
    pauses, spec = PauseStore(store), TeacherSpec(model="openai/fake")
    for wait_s, reason in ((60.0, "a minute"), (3600.0, "an hour")):
        pauses.note(spec, TeacherPausedError(spec.model, wait_s, reason))
    found = PauseStore(store).find(spec)
    assert found is not None
    assert found.reason == "an hour"
    pauses.clear(spec, before=found.noted_at)
    assert pauses.find(spec) is not None, "an answer that was sent for before the pause does not end it"
    pauses.clear(spec, before=found.noted_at + 1)
    assert pauses.find(spec) is None
    answer = build_unusable_response("\u2028 <html>")
    for reason in ("cut", "no JSON"):
        store.commit({}, unusable={"k": UnusableAnswerError(reason, answer)})
    assert str(store.find_unusable(["k"])["k"]) == "no JSON"
    store.close()


def test_a_new_store_takes_over_what_is_in_the_old_one(
    server: Server, database: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = CompletionStore.open_in_folder(project.home / "store")
    given = {str(n): Response("a\x00b", "stop", [], 1, 1, 0, None, 0.1, 1, None, "2026-01-01") for n in range(600)}
    for key, response in given.items():
        old.put(key, response)
    account = Account(TASK, "c", "slices")
    old.commit({}, (), [Reservation("asked", account, "t", WorstCase(5, 0.1), 0.0, mode="batch")])
    assert BatchStore(old).claim(["asked"], "t", f"{TASK}/teacher_completions[shop]") is not None
    notes = BatchStore(old).list_open()
    old.close()
    monkeypatch.setenv(POSTGRES_VARIABLE, server.url(database))
    assert project.distill("backfill", TASK, "--dry-run").code == 0
    new = CompletionStore(add_driver(server.url(database)))
    assert new.get(given) == given
    assert new.sum_budget_usage(account).reserved_tokens == 5
    assert BatchStore(new).list_open() == notes
    assert BatchStore(new).list_keys(notes[0].submission) == ["asked"]
    server.rows(database, "DELETE FROM completions WHERE request_key <> '7'")
    assert project.distill("backfill", TASK, "--dry-run").code == 0
    assert new.find_stored_keys(given) == {"7"}, "only a store without any answer"
    new.close()


def refused(project: Project, *, provider: FakeProvider, **environment: str) -> str:
    """What `distill run` says when its database cannot be used."""
    with mock.patch.dict(os.environ, environment):
        ended = project.run()
    assert ended.code == 1
    assert provider.requests == []
    assert "Traceback" not in ended.err + ended.out
    assert len(ended.err.strip().splitlines()) == 1, ended.err
    return ended.out + ended.err


def test_a_database_that_cannot_be_used_is_named_without_the_password(
    server: Server, database: str, project: Project, provider: FakeProvider
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        for name in (POSTGRES_VARIABLE, STORE_VARIABLE):
            address = f"postgresql://me:s3cret@127.0.0.1:{port}/answers"
            said = refused(project, provider=provider, **{name: address})
            assert f"{name} cannot be used: postgresql+psycopg2://***@127.0.0.1:{port}/answers" in said
            assert "Connection refused" in said
            assert "unset it" in said
            assert "s3cret" not in said
    said = refused(project, provider=provider, **{POSTGRES_VARIABLE: server.url(database, password="s3cret")})
    assert "password authentication failed" in said
    assert "s3cret" not in said
    said = refused(project, provider=provider, **{POSTGRES_VARIABLE: server.url("nowhere")})
    assert '"nowhere" does not exist' in said
    assert server.password not in said
    assert not (project.home / "lake").exists()


def test_a_user_who_may_not_make_tables_is_told_so(
    server: Server, database: str, project: Project, provider: FakeProvider
) -> None:
    server.rows("postgres", "CREATE USER guest PASSWORD 's3cret'")
    server.rows(database, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")  # as it is by default from PostgreSQL 15 on
    said = refused(project, provider=provider, **{POSTGRES_VARIABLE: server.url(database, "guest", "s3cret")})
    assert "permission denied for schema public" in said
    assert POSTGRES_VARIABLE in said
    assert "s3cret" not in said


def test_the_store_alone_moves_by_its_own_variable_and_stays_by_it(
    server: Server, database: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORE_VARIABLE, server.url(database))
    assert project.distill("backfill", TASK, "--dry-run").code == 0
    assert server.rows(database, "SELECT count(*) FROM completions") == [(0,)]
    assert (project.home / "instance" / "history" / "runs.db").exists()
    server.rows(database, "DROP TABLE completions")

    monkeypatch.setenv(POSTGRES_VARIABLE, server.url(database))
    monkeypatch.setenv(STORE_VARIABLE, f"sqlite:///{project.root / 'kept.db'}")
    assert project.distill("backfill", TASK, "--dry-run").code == 0
    assert (project.root / "kept.db").exists()
    tables = {name for (name,) in server.rows(database, "SELECT tablename FROM pg_tables")}
    assert "event_logs" in tables
    assert "completions" not in tables
