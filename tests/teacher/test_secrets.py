"""No key reaches an error, the store or a table, also when the provider sends it back."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest

from distill_dagster.core.errors import TeacherError
from distill_dagster.core.redaction import is_plain_url, list_credentials, redact, redact_traceback
from distill_dagster.pipeline.stages.context import StageContext
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.lake import ArtifactRecord
from distill_dagster.teacher.asking.ask import AskResult, run_ask
from distill_dagster.teacher.providers.exchange import Response
from distill_dagster.teacher.providers.responses import redact_response
from tests.support.provider import FakeProvider, Fault
from tests.support.task import build_asker, build_stage_context, write_small_task

SECRET = "sk-planted-9f8e7d6c5b4a"


def env(tmp_path: Path, provider: FakeProvider, **teacher: object) -> StageContext:
    settings = {"api_base": provider.url, "api_key_env": "MY_TEACHER", "max_retries": 1, "min_success": 0.3} | teacher
    return build_stage_context(write_small_task(tmp_path, teacher=settings), tmp_path / "home")


def asked_and_written(env: StageContext) -> AskResult:
    """Ask for one slice and write the table, with its record, where a stage would."""
    asked = run_ask(build_asker(env.folder, env.store), build_seed_prompts("shop", env.folder.read_slice("shop")))
    errors = asked.completions["error"].to_list()
    record = ArtifactRecord(
        "teacher_completions", "shop", compute_data_version(asked.completions), "1", {}, extra={"errors": errors}
    )
    env.lake.write(env.task_name, asked.completions, record)
    return asked


def format_error(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + str(error)


def assert_nowhere(secret: str, folder: Path) -> None:
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert files
    for path in files:
        assert secret.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("api", ["text", "chat"])
@pytest.mark.parametrize("status", [400, 403, 429, 500])
def test_a_key_in_a_response_is_redacted(
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
def test_a_key_in_an_error_is_redacted(
    api: str, status: int, tmp_path: Path, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TEACHER", SECRET)
    provider.fail = lambda *_: Fault(status, "", echo_authorization=True)
    env_ = env(tmp_path, provider, api=api)
    with pytest.raises(TeacherError) as caught:
        asked_and_written(env_)
    assert "***" in str(caught.value)
    assert SECRET not in format_error(caught.value)
    assert_nowhere(SECRET, tmp_path)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "OTHER_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"])
def test_a_key_from_the_environment_is_redacted(
    name: str, tmp_path: Path, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that a library finds in the environment by itself, and that a server may tell back."""
    monkeypatch.setenv(name, SECRET)
    provider.fail = lambda *_: Fault(401, json.dumps({"error": {"message": f"no such key {SECRET}", "type": "t"}}))
    env_ = env(tmp_path, provider, api_key_env=None)
    with pytest.raises(TeacherError, match=r"no such key \*\*\*") as caught:
        asked_and_written(env_)
    assert SECRET not in format_error(caught.value)
    assert {seen.authorization for seen in provider.requests} == {"Bearer no-key"}


def answer(*tokens: str, text: str | None = None) -> Response:
    """A response with these tokens, each with a less likely alternative."""
    positions = [[(token, -0.1), ("other", -2.0)] for token in tokens]
    answer = "".join(tokens) if text is None else text
    return Response(answer, "stop", positions, 1, 1, None, None, 0.1, 1, "m", "2026-11-22T00:00:00.000+00:00")


def test_a_key_across_tokens_is_not_stored() -> None:
    clean = redact_response(answer(" refund", "\n", SECRET[:7], SECRET[7:15], SECRET[15:]), [SECRET])
    assert clean.text == " refund\n***"
    assert SECRET not in "".join(position[0][0] for position in clean.positions)
    assert SECRET[7:15] not in json.dumps(clean.positions)


def test_an_answer_without_a_key_is_stored_unchanged() -> None:
    response = answer(" refund", " key", " no-key")
    assert redact_response(response, [SECRET]) is response


def test_a_truncated_key_is_redacted() -> None:
    assert redact_response(answer(text=f"it is {SECRET[:12]}"), [SECRET]).text == "it is ***"
    assert redact_response(answer(text=f"it is {SECRET[:5]}"), [SECRET]).text == f"it is {SECRET[:5]}"


@pytest.mark.parametrize(
    "text",
    [
        f"Bearer {SECRET}",
        f"b'Bearer {SECRET}\\n'",
        f"see https://me:{SECRET}@host/v1",
        f"see https://{SECRET}@host/v1",
        f"see https://host/v1?api-key={SECRET}&x=1",
        f"see https://host/v1?x=1&code={SECRET}",
    ],
)
def test_a_secret_is_found_by_its_position(text: str) -> None:
    """Also one that this process does not know."""
    assert SECRET not in redact(text)
    assert "***" in redact(text)


def test_a_secret_in_another_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", 'a/b+c"d e&f1234\n')
    for spelled in ("a%2Fb%2Bc%22d%20e%26f1234", "a%2Fb%2Bc%22d+e%26f1234", 'a/b+c\\"d e&f1234', 'a/b+c"d e&f1234'):
        assert redact(f"<{spelled}>") == "<***>"
    monkeypatch.setenv("DB_URL", "postgresql://me:p%40ss-9876@host/db")
    assert redact("p@ss-9876 p%40ss-9876 bWU6cEBzcy05ODc2") == "*** *** ***"


def test_words_stay_in_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is named like a secret and holds a word must not change what a teacher says."""
    monkeypatch.setenv("PRIMARY_KEY", "customers")
    monkeypatch.setenv("OTHER_KEY", SECRET)
    assert "customers" not in list_credentials()
    assert SECRET in list_credentials()
    assert redact("customers") == "***", "a message may lose a word"


def test_a_secret_in_an_unexpected_error_is_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", SECRET)

    def raised() -> BaseException:
        try:
            try:
                raise ValueError(f"deep down: {SECRET}")
            except ValueError as error:
                raise KeyError("on top") from error
        except KeyError as error:
            return error

    clean = redact_traceback(raised())
    assert clean is not None
    assert "deep down: ***" in clean
    assert "on top" in clean
    assert SECRET not in clean
    assert redact_traceback(ValueError("nothing")) is None


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("https://my.openai.azure.com", True),
        ("http://[::1]:8000/v1", True),
        ("http://me:secret@host/v1", False),
        ("http://secret@host/v1", False),
        ("http://host/v1?key=secret", False),
        ("http://host/v1#secret", False),
        ("http://[::1", False),
    ],
)
def test_a_plain_address_is_recognized(address: str, plain: bool) -> None:
    assert is_plain_url(address) is plain
