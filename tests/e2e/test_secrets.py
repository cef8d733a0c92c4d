"""No key stands anywhere afterwards: a provider sends keys back in every way it has, whole runs fail and succeed, and
then every file of the home is read, with what the process wrote and what an alert says."""

from __future__ import annotations

import gzip
import json
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from distill_dagster.tables.schemas import COMPLETIONS
from tests.e2e.project import TASK, CommandResult, Project, create_project
from tests.e2e.test_schedule import Webhook, tick, webhook
from tests.support.leaks import find_leaks
from tests.support.provider import FakeProvider, Fault, ReceivedRequest
from tests.support.task import LABELS
from tests.support.waiting import HANG_S

__all__ = ["webhook"]  # a fixture

KEY = "sk-planted-9f8e7d6c5b4a39281706"
OTHER = "sk-other-00112233445566778899"
PASSWORD = "pw-planted-a1b2c3d4e5f6"
TOKEN = "tok-planted-f6e5d4c3b2a1"
ALL = (KEY, OTHER, PASSWORD, TOKEN)
ENVIRONMENT = {"MY_TEACHER": KEY, "OPENAI_API_KEY": OTHER, "DB_URL": f"postgresql://me:{PASSWORD}@db/x?token={TOKEN}"}
VOTES = {"api": "chat", "soft_labels": "votes", "max_tokens": 40, "api_key_env": "MY_TEACHER", "min_success": 0.3}


def tell(seen: ReceivedRequest) -> str:
    """All secrets at once, as a careless server says them."""
    key = seen.authorization.split()[-1]
    return (
        f"refused {seen.authorization}, which is {key}, and {OTHER}; see http://me:{PASSWORD}@host/v1?token={TOKEN}; "
        f"headers {{'authorization': '{seen.authorization}'}}"
    )


def fault(status: int) -> Callable[[ReceivedRequest, int], Fault]:
    return lambda seen, _: Fault(status, json.dumps({"error": {"message": tell(seen), "type": "t", "code": KEY}}))


def error_in_answer(seen: ReceivedRequest, _: int) -> Fault:
    """200, and an error in the body beside an empty list of choices."""
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": KEY, "choices": []}
    return Fault(200, json.dumps(body | {"error": {"message": tell(seen)}}))


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider(LABELS, headers={"x-echo": KEY, "x-request-id": OTHER}) as provider:
        yield provider


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def silent(project: Project, *said: str) -> None:
    """Nothing below the home, and nothing that was said, holds a secret."""
    assert find_leaks(project.home, *ALL) == []
    for text in said:
        for secret in ALL:
            assert secret not in text


def as_process(project: Project, *arguments: str, **environment: str) -> tuple[int, str]:
    """The command as a user starts it: what it, Dagster and the libraries wrote, and how it ended."""
    log = project.root / "log.txt"
    process = project.start(*arguments, log=log, **(ENVIRONMENT | environment))
    code = process.wait(timeout=HANG_S)
    return code, log.read_text()


def test_the_search_finds_what_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text(f"a {KEY} b")
    (tmp_path / "packed.gz").write_bytes(gzip.compress(f"a {KEY} b".encode()))
    pl.DataFrame({"text": [f"a {KEY} b"] * 50}).write_parquet(tmp_path / "table.parquet", compression="zstd")
    with sqlite3.connect(tmp_path / "base.db") as connection:
        connection.execute("CREATE TABLE t (a BLOB)")
        connection.execute("INSERT INTO t VALUES (?)", [zlib.compress(KEY.encode())])
    (tmp_path / "clean.txt").write_text("nothing")
    found = [one for one in find_leaks(tmp_path, KEY) if one != "table.parquet"]  # its statistics are not compressed
    assert found == ["base.db (t)", "packed.gz (unpacked)", "plain.txt", "table.parquet (table)"]
    assert find_leaks(tmp_path, OTHER) == []


def test_a_process_that_fails(tmp_path: Path, provider: FakeProvider) -> None:
    provider.fail = fault(401)
    project = create_project(tmp_path, provider.url, teacher=VOTES)
    code, said = as_process(project, "backfill", TASK, "--json")
    assert code == 1
    assert {seen.authorization for seen in provider.requests} == {f"Bearer {KEY}"}
    assert "***" in said, "the error is told, without the key"
    silent(project, said)


@pytest.mark.parametrize(
    "plan", [fault(400), fault(403), fault(429), fault(500), error_in_answer], ids=["400", "403", "429", "500", "200"]
)
def test_a_run_that_fails(
    plan: Callable[[ReceivedRequest, int], Fault],
    keys: None,
    tmp_path: Path,
    provider: FakeProvider,
    capfd: pytest.CaptureFixture[str],
) -> None:
    provider.fail = plan
    project = create_project(tmp_path, provider.url, teacher=VOTES)
    ended = project.distill("backfill", TASK, "--json")
    assert ended.code == 1
    assert {seen.authorization for seen in provider.requests} == {f"Bearer {KEY}"}
    silent(project, ended.out, ended.err, *capfd.readouterr())


def test_a_run_that_fails_in_part(keys: None, tmp_path: Path, provider: FakeProvider, webhook: Webhook) -> None:
    """Rows with an error, checks and metadata that show it, then a failure, its alert and the webhook."""
    once = fault(400)
    provider.fail = lambda seen, n: once(seen, n) if "refund" in seen.text and ":" not in seen.text else None
    project = create_project(tmp_path, provider.url, teacher=VOTES)
    ended = project.distill("backfill", TASK, "--slice", "shop", "--json")
    assert ended.code == 0, ended.err
    table, _ = project.lake.read(TASK, "teacher_completions", "shop", COMPLETIONS)
    errors = table["error"].drop_nulls().to_list()
    assert errors
    assert all("***" in error for error in errors)
    silent(project, ended.out, ended.err)
    project.change_task(teacher={"min_success": 1.0})
    project.change_slice("web", lambda value: value["seeds"].append("one more refund"))
    ended = project.distill("backfill", TASK, "--slice", "web", "--json")
    assert ended.code == 1
    with project.instance() as instance:
        [failed] = instance.get_runs(dg.RunsFilter(ended.json["runs"], statuses=[dg.DagsterRunStatus.FAILURE]))
        tick(project, instance, failed.run_id)
    assert list((project.home / "alerts").glob("*.md"))
    silent(project, ended.out, ended.err, json.dumps(webhook.got))


def test_a_run_that_succeeds_with_keys_in_its_answers(tmp_path: Path, provider: FakeProvider) -> None:
    """All the way to the report: the answers say a label, and then the key."""
    provider.answer = lambda seen: (
        next(x for x in [*LABELS, "refund"] if x in seen.text or x == "refund")
        + (f"\n{seen.authorization} {OTHER} {KEY[:-4]}")
    )
    project = create_project(tmp_path, provider.url, teacher=VOTES)
    code, said = as_process(project, "run", TASK, "--json")
    assert code == 0, said
    table, _ = project.lake.read(TASK, "teacher_completions", "shop", COMPLETIONS)
    assert all("Bearer *** ***" in text for text in table["raw_text"])
    assert not any(KEY[:8] in text for text in table["raw_text"]), "not its beginning either, where an answer was cut"
    assert (project.home / "reports" / TASK / "one" / "report.html").exists()
    metrics = json.loads((project.home / "reports" / TASK / "one" / "metrics.json").read_text())
    assert metrics["terms"][0]["acknowledged"] is True
    silent(project, said)


def test_keys_in_the_tokens_of_an_answer(keys: None, tmp_path: Path) -> None:
    """With log-probabilities an answer is stored token by token, and with every token that might have stood there."""
    with FakeProvider([f"{label} {KEY}" for label in LABELS]) as provider:
        teacher = {"api_key_env": "MY_TEACHER", "min_success": 0.0}
        project = create_project(tmp_path, provider.url, teacher=teacher)
        ended = project.distill("backfill", TASK, "--slice", "shop", "--json")
        assert provider.requests
    silent(project, ended.out, ended.err)
    store = sqlite3.connect(project.home / "store" / "completions.db")
    answers = [json.loads(row[0]) for row in store.execute("SELECT response FROM completions")]
    store.close()
    assert any("***" in answer["text"] for answer in answers)


def test_a_key_with_a_line_break(
    keys: None,
    tmp_path: Path,
    provider: FakeProvider,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Many tools leave one behind a key: no header can hold it, and the error quotes it."""
    monkeypatch.setenv("MY_TEACHER", f"{KEY}\n")
    project = create_project(tmp_path, provider.url, teacher=VOTES)
    ended = project.distill("backfill", TASK, "--slice", "shop")
    silent(project, ended.out, ended.err, *capfd.readouterr())


def test_an_address_from_the_environment(
    keys: None,
    tmp_path: Path,
    provider: FakeProvider,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """litellm reads OPENAI_BASE_URL by itself, and asks nobody where it holds a password; the error is about it."""
    for name in ("OPENAI_BASE_URL", "OPENAI_API_BASE"):
        monkeypatch.setenv(name, provider.url.replace("http://", f"http://me:{PASSWORD}@"))
    project = create_project(tmp_path, provider.url, teacher=VOTES)
    project.change_task(teacher={"api_base": None, "api_key_env": None})
    ended = project.distill("backfill", TASK, "--slice", "shop")
    assert ended.code == 1
    silent(project, ended.out, ended.err, *capfd.readouterr())


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ({"api_base": f"http://me:{PASSWORD}@127.0.0.1:9/v1"}, "use an address such as"),
        ({"api_base": f"http://127.0.0.1:9/v1?api-key={TOKEN}"}, "use an address such as"),
        ({"api_key_env": KEY}, "use the name of an environment variable"),
        ({"api_key": KEY}, "unknown field"),
        ({"api_base": [KEY]}, "valid string"),
    ],
)
def test_a_key_in_the_wrong_place_is_refused_and_not_repeated(
    setting: dict[str, Any], remedy: str, tmp_path: Path, provider: FakeProvider
) -> None:
    project = create_project(tmp_path, provider.url)
    project.change_task(teacher=setting)
    for command in ("check", "run", "refresh", "backfill", "status", "tasks"):
        ended = project.distill(command, *[TASK] * (command != "tasks"))
        if command != "tasks":
            assert remedy in ended.err, command
        silent_without_home(ended)
    if project.home.exists():
        silent(project)


def silent_without_home(ended: CommandResult) -> None:
    for secret in ALL:
        assert secret not in ended.out + ended.err
