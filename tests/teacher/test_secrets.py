"""No key reaches an error, the store or a table, also when the provider sends it back."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill_dagster.errors import TeacherError
from distill_dagster.lake import Record
from distill_dagster.prompts.seeds import seed_prompts
from distill_dagster.stages.common import Env
from distill_dagster.tables import data_version
from distill_dagster.teacher.ask import Asked, run_ask
from tests.support.provider import FakeProvider, Fault
from tests.support.task import LABELS, asker_of, env_of, small_task

SECRET = "sk-planted-9f8e7d6c5b4a"


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider(LABELS) as provider:
        yield provider


def env(tmp_path: Path, provider: FakeProvider, **teacher: object) -> Env:
    settings = {"api_base": provider.url, "api_key_env": "MY_TEACHER", "max_retries": 1, "min_success": 0.3} | teacher
    return env_of(small_task(tmp_path, teacher=settings), tmp_path / "home")


def asked_and_written(env: Env) -> Asked:
    """Ask for one slice and write the table, with its record, where a stage would."""
    asked = run_ask(asker_of(env.folder, env.store), seed_prompts("shop", env.folder.slice("shop")))
    errors = asked.completions["error"].to_list()
    record = Record("teacher_completions", "shop", data_version(asked.completions), "1", {}, extra={"errors": errors})
    env.lake.write(env.task_name, asked.completions, record)
    return asked


def said(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + str(error)


def assert_nowhere(secret: str, folder: Path) -> None:
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert files
    for path in files:
        assert secret.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("api", ["text", "chat"])
@pytest.mark.parametrize("status", [400, 403, 429, 500])
def test_a_key_that_the_server_sends_back(
    api: str, status: int, tmp_path: Path, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TEACHER", SECRET)
    provider.fail = lambda seen, _: Fault(status, "", echo_authorization=True) if "login" in seen.text else None
    env_ = env(tmp_path, provider, api=api)
    asked = asked_and_written(env_)
    assert {seen.authorization for seen in provider.requests} == {f"Bearer {SECRET}"}
    assert asked.missing_rows == 1
    assert "***" in next(e for e in asked.completions["error"] if e)
    table, record = env_.lake.read(env_.task_name, "teacher_completions", "shop", asked.completions.schema)
    assert SECRET not in json.dumps(table.to_dicts()) + json.dumps(record.extra)  # Parquet is compressed: read it too
    assert_nowhere(SECRET, tmp_path)
    env_.store.close()


@pytest.mark.parametrize("api", ["text", "chat"])
@pytest.mark.parametrize("status", [401, 500])
def test_a_key_in_what_is_raised(
    api: str, status: int, tmp_path: Path, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TEACHER", SECRET)
    provider.fail = lambda *_: Fault(status, "", echo_authorization=True)
    env_ = env(tmp_path, provider, api=api)
    with pytest.raises(TeacherError) as caught:
        asked_and_written(env_)
    assert "***" in str(caught.value)
    assert SECRET not in said(caught.value)
    assert_nowhere(SECRET, tmp_path)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "OTHER_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"])
def test_a_key_that_the_task_does_not_name(
    name: str, tmp_path: Path, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that a library finds in the environment by itself, and that a server may tell back."""
    monkeypatch.setenv(name, SECRET)
    provider.fail = lambda *_: Fault(401, json.dumps({"error": {"message": f"no such key {SECRET}", "type": "t"}}))
    env_ = env(tmp_path, provider, api_key_env=None)
    with pytest.raises(TeacherError, match=r"no such key \*\*\*") as caught:
        asked_and_written(env_)
    assert SECRET not in said(caught.value)
    assert {seen.authorization for seen in provider.requests} == {"Bearer no-key"}
