"""The command line itself: version, help, completion, tables and messages, without running anything."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from distill_dagster.cli import COMMANDS, GROUPS, app, console
from distill_dagster.cli.console import build_table, print_problem, print_table
from distill_dagster.core.errors import Problem
from distill_dagster.core.paths import PROJECT_FOLDER
from tests.support.task import write_small_task


def test_the_version() -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.stdout) == (0, f"distill {version('distill-dagster')}\n")


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_short_and_long_help_are_the_same(command: list[str]) -> None:
    short, long = (CliRunner().invoke(app, [*command, option]) for option in ("-h", "--help"))
    assert short.exit_code == 0
    assert short.stdout == long.stdout != ""


def test_commands_are_listed_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = CliRunner().invoke(app, ["-h"]).stdout.splitlines()
    place = -1
    for title, commands in GROUPS.items():
        start = next(number for number, line in enumerate(lines) if f"─ {title} ─" in line)
        assert start > place
        place = start
        for name in commands:
            place = next(number for number, line in enumerate(lines) if number > place and f"│ {name} " in line)


def complete(tmp_path: Path, *words: str) -> list[str]:
    """What bash would offer for the last word."""
    program = "from distill_dagster.cli import app; app(prog_name='distill')"
    shown = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ
        | {
            "_DISTILL_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(("distill", *words)),
            "COMP_CWORD": str(len(words)),
            "DISTILL_TASKS": str(tmp_path / "tasks"),
            "DISTILL_HOME": str(tmp_path / "home"),
            "PYTHONPATH": str(PROJECT_FOLDER),
        },
        capture_output=True,
        text=True,
    )
    assert shown.stderr == ""
    return shown.stdout.split()


def test_the_shell_completes_commands_tasks_slices_and_students(tmp_path: Path) -> None:
    write_small_task(tmp_path, "shop_mail")
    write_small_task(tmp_path, "ship_mail")
    assert complete(tmp_path, "ref") == ["refresh"]
    assert complete(tmp_path, "run", "sh") == ["ship_mail", "shop_mail"]
    assert complete(tmp_path, "run", "shop_mail", "--slice", "") == ["shop", "web"]
    assert complete(tmp_path, "run", "shop_mail", "--student", "ti") == ["tiny"]
    (tmp_path / "tasks" / "shop_mail" / "task.yaml").write_text("labels: [\n")
    assert complete(tmp_path, "run", "shop_mail", "--student", "") == []


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 40 columns in the place of stdout."""
    written = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=written, width=40, force_terminal=True, color_system=None))
    return written


def test_no_table_is_cut_on_a_terminal(narrow: io.StringIO) -> None:
    table = build_table("task", "students", "teacher")
    table.add_row("support_triage", "smollm2-135m, smollm2-360m, minilm", "embedded/qwen2.5-1.5b-instruct")
    print_table(table)
    lines = narrow.getvalue().splitlines()
    assert max(map(len, lines)) <= 40
    assert any("support_triage" in line for line in lines), "the name that one has to type is whole"
    cells = ["".join(line.split("│")[number].strip() for line in lines if "│" in line) for number in (2, 3)]
    assert cells == ["smollm2-135m,smollm2-360m,minilm", "embedded/qwen2.5-1.5b-instruct"]
    assert "…" not in narrow.getvalue()


def test_messages_say_what_they_were_given() -> None:
    with console.err.capture() as written:
        for line in (1, 8, 100, 1000):
            print_problem(Problem(Path("golden.jsonl"), "the label is [bold]x[/bold] :smile:.", "Write :100:.", line))
    assert written.get().splitlines() == [
        f"error golden.jsonl:{line}: the label is [bold]x[/bold] :smile:. Write :100:." for line in (1, 8, 100, 1000)
    ]
