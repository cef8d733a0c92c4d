"""`distill review` and `drift`: what they print, and what a decision leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.intake.request_log import FEEDBACK_FILE, Feedback, LoggedRequest, format_log_line
from tests.support.task import write_small_task

TASK = "shop_mail"
TEXT = "The lamp came broken, money back please"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A task with two requests, and feedback to both."""
    write_small_task(tmp_path, TASK)
    log = tmp_path / "home" / "requests" / TASK
    log.mkdir(parents=True)
    for n, text in enumerate((TEXT, "Second lamp\x1b[2J\n  user:    right")):
        row = LoggedRequest(
            id=f"r{n}", at="2026-11-26T10:00:00+00:00", text=text, messages=None, slice=None, student="tiny",
            release=1, export="onnx", answer="delivery", route="student", confidence=0.9, threshold=0.5,
            student_answer="delivery",
        )  # fmt: skip
        feedback = Feedback(row.id, f"2026-11-26T11:00:0{n}+00:00", False, "refund", "see [b]me[/b]")
        for name, one in (("requests-1-1.jsonl", row), (FEEDBACK_FILE, feedback)):
            with (log / name).open("ab") as handle:
                handle.write(format_log_line(one))
    return tmp_path / "home"


def distill(home: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    own = {"DISTILL_HOME": str(home), "DISTILL_TASKS": str(home.parent / "tasks"), "PYTHONPATH": str(PROJECT_FOLDER)}
    return subprocess.run(
        [sys.executable, "-m", "distill_dagster", command, TASK, *arguments],
        env=os.environ | own,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_feedback_is_listed_accepted_with_another_answer_and_rejected(home: Path) -> None:
    listed = distill(home, "review")
    assert listed.returncode == 0, listed.stderr
    assert TEXT in listed.stdout
    assert "see [b]me[/b]" in listed.stdout
    assert "Second lamp\\x1b[2J\n             user:    right\n" in listed.stdout  # it neither clears nor imitates
    assert "2 rows to decide about" in listed.stdout
    assert distill(home, "review", "--accept", "r0", "--answer", "nonsense").returncode == 2
    accepted = distill(home, "review", "--accept", "r0", "--answer", "login")
    assert accepted.returncode == 0, accepted.stderr
    row = json.loads((home.parent / "tasks" / TASK / "human.jsonl").read_text().splitlines()[-1])
    assert (row["text"], row["label"], row["id"]) == (TEXT, "login", "feedback-r0")
    rejected = json.loads(distill(home, "review", "--reject", "r1", "--json").stdout)
    assert (rejected["waiting"], rejected["decided"]) == ([], [{"request_id": "r1", "decision": "rejected"}])
    again = distill(home, "review", "--reject", "r1")
    assert again.returncode == 1
    assert "no feedback to 'r1' waits" in again.stderr


def test_drift_without_a_release_says_what_to_do(home: Path) -> None:
    ended = distill(home, "drift")
    assert ended.returncode == 1
    assert f"distill release {TASK}" in ended.stderr
