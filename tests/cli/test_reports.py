"""`distill report` and `leaderboard` on reports that exist: what they print, and the browser that is opened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.evaluation.formatting import build_summary_rows
from distill_dagster.evaluation.recommendation import recommend
from distill_dagster.evaluation.report import ReportInputs, write_report
from tests.evaluation.build import marks, measured, patterns
from tests.support.task import write_small_task
from tests.support.terminal import Terminal

RIGHT = {"teacher": marks(38, 2), "base": marks(20, 20), "distilled": marks(36, 4)}
TASK, STUDENT = "shop_mail", "tiny"
TINY = {"model": "all-minilm-l6-v2", "architecture": "encoder"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a task and the report of its student; its path has a space."""
    home = tmp_path / "my home"
    students = dict.fromkeys(("other", "smollm2"), TINY)
    write_small_task(tmp_path, TASK, students=students)
    _write_report(home, STUDENT, RIGHT)
    return home


def _write_report(home: Path, student: str, right: dict[str, str], seconds: dict[str, float] | None = None) -> None:
    folder = home / "reports" / TASK / student
    folder.mkdir(parents=True)
    metrics = measured(right, seconds)
    inputs = ReportInputs(TASK, student, "d", "s", "now", {}, extra={"summary": build_summary_rows(metrics)})
    write_report(folder, patterns(right), metrics, recommend(metrics), inputs)


def _report(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return _distill(home, "report", *arguments, **environment)


def _distill(home: Path, command: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own: the list of browsers is kept per process."""
    own = {"DISTILL_HOME": str(home), "DISTILL_TASKS": str(home.parent / "tasks"), "PYTHONPATH": str(PROJECT_FOLDER)}
    return subprocess.run(
        [sys.executable, "-m", "distill_dagster", command, TASK, *arguments],
        env=os.environ | own | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_open_starts_the_browser_on_the_page(home: Path) -> None:
    opened = home.parent / "opened"
    browser = home.parent / "browser.sh"
    browser.write_text(f'#!/bin/sh\nprintf "%s" "$1" >> "{opened}"\n')
    browser.chmod(0o755)
    done = _report(home, "--open", BROWSER=f"{browser} %s")
    assert done.returncode == 0, done.stderr
    page = home / "reports" / TASK / STUDENT / "report.html"
    assert opened.read_text() == page.as_uri()
    assert "my%20home" in page.as_uri()
    opened.unlink()
    assert _report(home, BROWSER=f"{browser} %s").returncode == 0
    assert not opened.exists(), "nothing is opened without the option"


def test_without_a_browser_the_path_is_named(home: Path) -> None:
    (home.parent / "empty").mkdir()
    done = _report(home, "--open", BROWSER="false %s", PATH=str(home.parent / "empty"), DISPLAY="", WAYLAND_DISPLAY="")
    assert done.returncode == 1
    assert "no web browser could be started. Open " in done.stderr
    assert str(home / "reports" / TASK / STUDENT / "report.html") in done.stderr.replace("\n", "")


def test_the_next_steps_are_printed_and_those_of_an_older_report_are_not_missed(home: Path) -> None:
    path = home / "reports" / TASK / STUDENT / "metrics.json"
    figures = json.loads(path.read_text())
    assert figures["lead"].startswith(
        "Distilling pays: the student answers 90 of 100 right, the best without a teacher 50"
    )
    assert figures["meaning"].keys() >= {"Quality", "Cost"}
    shown = _report(home, COLUMNS="500").stdout
    assert f"1. {figures['next_steps'][0]}" in shown
    for name in ("lead", "meaning", "next_steps"):
        del figures[name]
    path.write_text(json.dumps(figures))
    older = _report(home)
    assert older.returncode == 0, older.stderr
    assert "1. " not in older.stdout


def _leaderboard(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _distill(home, "leaderboard", *arguments)


def test_a_leaderboard_has_the_teacher_once_and_a_verdict_for_each_student(home: Path) -> None:
    _write_report(home, "other", RIGHT | {"distilled": marks(22, 18)})
    done = _leaderboard(home)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].strip() == "shop_mail: 40 golden items"
    assert [line.split()[0] for line in lines if "0.95 [" in line] == ["teacher"]
    assert [line.split("│")[1].strip() for line in lines if line.startswith("distilled")] == [STUDENT, "other"]
    assert "tiny: Distilling pays: the student answers 90 of 100 right" in done.stdout
    assert "other: The test is too small to tell" in done.stdout
    assert (
        "\nMay I switch? Probably not for everything: the student seems to be more than 5 points below" in done.stdout
    )
    assert "\nMay I switch? Not for everything: the student is more than 5 points below the teacher" in done.stdout
    assert "Of the students tiny scores highest; other is clearly behind (+35.0 [" in done.stdout
    one = _leaderboard(home, "--student", STUDENT)
    assert "other" not in one.stdout
    assert "Of the students" not in one.stdout
    figures = json.loads(_leaderboard(home, "--json").stdout)
    assert (figures["task"], figures["metric"], figures["items"]) == (TASK, "accuracy", 40)
    assert len(figures["systems"]) == 1 + 2 * 2, "the teacher, and base and distilled of each student"
    assert figures["verdicts"][STUDENT]["worth_it"] is True
    assert figures["verdicts"]["other"]["worth_it"] is None
    assert figures["verdicts"][STUDENT]["report"].endswith(f"{TASK}/{STUDENT}/report.html")


def test_a_leaderboard_of_an_older_report_and_of_none(home: Path) -> None:
    path = home / "reports" / TASK / STUDENT / "metrics.json"
    figures = json.loads(path.read_text())
    for name in ("lead", "meaning", "next_steps", "distillation", "cost_method"):
        del figures[name]
    path.write_text(json.dumps(figures))
    older = _leaderboard(home)
    assert older.returncode == 0, older.stderr
    assert f"{STUDENT}: Yes, distilling pays: " in older.stdout
    path.unlink()
    missing = _leaderboard(home)
    assert missing.returncode == 1
    assert "shop_mail has no report yet. Run `distill run shop_mail`." in missing.stderr


def test_a_leaderboard_fits_into_80_columns(home: Path) -> None:
    """With the names of the bundled task's students, and figures as wide as theirs."""
    right = RIGHT | {"seed_only": marks(22, 18), "linear_probe": marks(35, 5)}
    _write_report(home, "smollm2", right, dict.fromkeys(right, 1.234))
    command = [sys.executable, "-m", "distill_dagster", "leaderboard", TASK]
    environment = {"DISTILL_HOME": str(home), "DISTILL_TASKS": str(home.parent / "tasks")}
    environment |= {"PYTHONPATH": str(PROJECT_FOLDER)}
    with Terminal([*command, "--student", "smollm2"], environment, home, lines=60) as terminal:
        assert terminal.wait() == 0
        screen = terminal.screen
    row = next(line for line in screen.splitlines() if line.startswith("human labels only"))
    assert len(row) <= 80
    assert row.split("│")[1].strip() == "smollm2"
    assert row.rstrip().endswith("$0.03"), "no cell is wrapped"
