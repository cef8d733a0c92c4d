"""`distill report` on a report that exists: what it prints, and the browser that it opens."""

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

RIGHT = {"teacher": marks(38, 2), "base": marks(20, 20), "distilled": marks(36, 4)}
TASK, STUDENT = "shop_mail", "tiny"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a task and the report of its student; its path has a space."""
    home = tmp_path / "my home"
    write_small_task(tmp_path, TASK)
    folder = home / "reports" / TASK / STUDENT
    folder.mkdir(parents=True)
    metrics = measured(RIGHT)
    inputs = ReportInputs(TASK, STUDENT, "d", "s", "now", {}, extra={"summary": build_summary_rows(metrics)})
    write_report(folder, patterns(RIGHT), metrics, recommend(metrics), inputs)
    return home


def _report(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`distill report` in a process of its own: the list of browsers is kept per process."""
    own = {"DISTILL_HOME": str(home), "DISTILL_TASKS": str(home.parent / "tasks"), "PYTHONPATH": str(PROJECT_FOLDER)}
    return subprocess.run(
        [sys.executable, "-c", "from distill_dagster.cli import app; app()", "report", TASK, *arguments],
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
    assert figures["lead"].startswith("Distilling pays: the student answers 90 of 100 right, base 50")
    assert figures["meaning"].keys() >= {"Quality", "Cost"}
    shown = _report(home, COLUMNS="500").stdout
    assert f"1. {figures['next_steps'][0]}" in shown
    for name in ("lead", "meaning", "next_steps"):
        del figures[name]
    path.write_text(json.dumps(figures))
    older = _report(home)
    assert older.returncode == 0, older.stderr
    assert "1. " not in older.stdout
