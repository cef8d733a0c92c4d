"""What commands print: JSON alone on stdout, tables that are cut nowhere, errors in one line."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.tables.schemas import PROMPTS
from tests.e2e.project import TASK, Project
from tests.support.task import jsonl

LONG = "invoices-portal-of-the-northern-partners"


def check_json(project: Project, *arguments: str) -> dict[str, Any]:
    value = json.loads(project.distill(*arguments, "--json").out)
    assert isinstance(value, dict)
    return value


def test_json_is_all_that_stdout_gets(project: Project) -> None:
    rows = project.root / "more.jsonl"
    rows.write_text(jsonl([{"text": "a refund, please"}]))
    assert check_json(project, "filters", TASK)["filters"]
    assert "No row was dropped" in check_json(project, "filters", TASK, "--dropped", "duplicate")["error"]
    assert check_json(project, "tasks")["tasks"][0]["task"] == TASK
    assert check_json(project, "check", TASK) == {"task": TASK, "errors": 0, "problems": []}
    assert len(check_json(project, "status", TASK)["artifacts"]) == 19
    assert check_json(project, "run", TASK)["runs"] == []
    assert check_json(project, "refresh", TASK)["runs"] == []
    assert check_json(project, "backfill", TASK)["runs"] == []
    assert check_json(project, "backfill", TASK, "--dry-run")["partitions"] == {"teacher_completions": []}
    assert check_json(project, "estimate", TASK)["teacher_calls"] == 0
    assert check_json(project, "ledger", TASK)["ledger"][0]["requests"] > 0
    assert check_json(project, "inbox", TASK)["files"] == []
    assert check_json(project, "batches", TASK)["under_way"] == []
    assert check_json(project, "import", TASK, str(rows), "--as", "seeds", "--slice", "shop", "--dry-run")["added"]
    assert set(check_json(project, "report", TASK)["reports"]) == {"one", "two"}
    frame, _ = project.lake.read(TASK, "seed_prompts", "shop", PROMPTS)
    assert check_json(project, "explain", TASK, frame["prompt_id"][0])["slices"][0]["slice"] == "shop"
    assert check_json(project, "data-docs", TASK)["tables"] > 10


def test_errors_are_json_too(project: Project) -> None:
    assert "no slice 'nowhere'" in check_json(project, "run", TASK, "--slice", "nowhere")["problems"][0]["message"]
    assert "Select slices in one way" in check_json(project, "backfill", "--slice", "shop", "--to", "web")["error"]
    (project.folder / "task.yaml").write_text("labels: [\n")
    found = project.distill("check", TASK, "--json")
    assert found.code == 2
    problem = json.loads(found.out)["problems"][0]
    assert (problem["file"], problem["severity"]) == (str(project.folder / "task.yaml"), "error")
    assert project.distill("tasks", "--json").json["tasks"][0]["problems"]


def test_names_are_whole_where_output_is_piped(fresh: Project) -> None:
    (fresh.folder / "slices" / "shop.yaml").rename(fresh.folder / "slices" / f"{LONG}.yaml")
    lines = fresh.distill("status", TASK).out.splitlines()
    row = next(line for line in lines if f"scored_completions[{LONG}]" in line)
    assert f"seed_prompts[{LONG}] is missing" in row
    assert any(LONG in line for line in fresh.distill("estimate", TASK).out.splitlines())
    task = next(line for line in fresh.distill("tasks").out.splitlines() if TASK in line)
    assert all(word in task for word in ("classification", "one, two", "openai/fake"))


def test_a_line_number_is_no_emoji(fresh: Project) -> None:
    path = fresh.folder / "examples.jsonl"
    path.write_text(path.read_text() + "\n" * 90 + "{\n")
    assert f"{path}:100:" in fresh.distill("check", TASK).err


def test_a_name_that_cannot_be_a_task_is_said_to_be_wrong(fresh: Project) -> None:
    (fresh.root / "tasks" / "My-Task").mkdir()
    (fresh.root / "tasks" / "My-Task" / "task.yaml").write_text("kind: classification\n")
    said = fresh.distill("check", "My-Task").err
    assert "'My-Task' cannot be the name of a task" in said
    assert "Rename the folder" in said
    assert "Known tasks" not in said


def test_the_state_of_a_slice_is_that_of_its_first_stale_artifact(project: Project) -> None:
    project.change_slice("shop", lambda value: value["seeds"].append("one more refund"))
    shown = project.distill("backfill", TASK, "--dry-run").out
    row = next(line for line in shown.splitlines() if "shop" in line)
    assert [cell.strip() for cell in row.split("│")[1:5]] == ["shop", "stale", "7", "2"]


def test_counts_have_the_right_number(fresh: Project) -> None:
    (fresh.folder / "slices" / "web.yaml").unlink()
    assert "\n1 slice: 36 requests to send" in fresh.distill("estimate", TASK).out
    (fresh.folder / "task.yaml").write_text("labels: [\n")
    assert f"{TASK}: 1 error, 0 warnings" in fresh.distill("check", TASK).out or fresh.distill("check", TASK).code == 2
    assert "1 problem;" in fresh.distill("tasks").out


def drop_rights() -> None:
    """Let file permissions hold for root too, in a process that is about to start."""
    if os.geteuid() == 0:
        bounding_set, override, search = 24, 1, 2
        for capability in (override, search):
            assert ctypes.CDLL(None).prctl(bounding_set, capability, 0, 0, 0) == 0


@pytest.mark.parametrize(
    ("command", "code"),
    [("env", 0), ("estimate", 0), ("ledger", 0), ("run", 1), ("refresh", 1), ("inbox", 1), ("import", 1), ("ui", 1)],
)
def test_a_folder_that_cannot_be_written_is_one_line(fresh: Project, command: str, code: int) -> None:
    rows = fresh.root / "more.jsonl"
    rows.write_text(jsonl([{"text": "a refund, please"}]))
    fresh.home.mkdir()
    fresh.home.chmod(0o555)
    arguments = {"env": (), "ui": (), "import": (TASK, str(rows), "--as", "seeds", "--slice", "shop")}
    ended = subprocess.run(
        [sys.executable, "-m", "distill_dagster", command, *arguments.get(command, (TASK,))],
        env={name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
        | fresh.environment(PYTHONPATH=str(PROJECT_FOLDER)),
        cwd=fresh.root,
        capture_output=True,
        text=True,
        preexec_fn=drop_rights,
    )
    assert ended.returncode == code, ended.stderr
    lines = ended.stderr.splitlines()
    if command == "env":
        assert f"export DAGSTER_HOME='{fresh.home / 'instance'}'" in ended.stdout
    if command in ("estimate", "ledger"):
        assert lines == []
        assert TASK in ended.stdout or "48 requests to send" in ended.stdout
    else:
        assert len(lines) == 1, ended.stderr
        assert str(fresh.home) in lines[0]
        assert "permission denied" in lines[0]
        assert "DISTILL_HOME" in lines[0]
    assert list(fresh.home.iterdir()) == []


def test_what_is_read_only_can_be_looked_at(project: Project) -> None:
    before = project.distill("ledger", TASK, "--json").json
    for folder, _, files in os.walk(project.home / "store"):
        for file in files:
            (Path(folder) / file).chmod(0o444)
        Path(folder).chmod(0o555)
    ended = subprocess.run(
        [sys.executable, "-m", "distill_dagster", "ledger", TASK, "--json"],
        env=os.environ | project.environment(PYTHONPATH=str(PROJECT_FOLDER)),
        capture_output=True,
        text=True,
        preexec_fn=drop_rights,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == before
