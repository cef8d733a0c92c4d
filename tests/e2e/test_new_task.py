"""From a table of a spreadsheet to a report, with the commands that the documentation names."""

from __future__ import annotations

import csv
from pathlib import Path

import yaml

from distill_dagster.tables.schemas import COMPLETIONS
from tests.e2e.project import Project
from tests.support.provider import FakeProvider
from tests.support.task import LABELS

WORDS = ["late", "wrong", "again", "today", "here", "twice", "never"]


def write_export(path: Path, rows: int) -> Path:
    """What a German spreadsheet writes: semicolons, a byte order mark, labels with spaces and capitals."""
    with path.open("w", encoding="utf-8-sig", newline="") as handle:
        writer = csv.writer(handle, delimiter=";")
        writer.writerow(["Nr", "Kanal", "Nachricht", "Kategorie"])
        for n in range(rows):
            label = LABELS[n % len(LABELS)]
            text = f"Hallo; the {label} {WORDS[n % 7]} {WORDS[n // 7 % 7]}, matter {n}"
            written = {0: f"{label} ", 1: label.title()}.get(n % 5, label)
            writer.writerow([n, ["phone note", "E-Mail"][n % 2], text, written])
    return path


def test_300_labelled_rows_become_a_task_that_checks_clean_and_runs(tmp_path: Path) -> None:
    project = Project(tmp_path)
    export = write_export(tmp_path / "export.csv", 300)
    with FakeProvider(LABELS) as provider:
        teacher = ("--teacher", "openai/fake", "--api-base", provider.url)
        made = project.distill("new", "mail", "--from", str(export), "--slice-field", "Kanal", *teacher, "--json")
        assert made.code == 0, made.err
        assert made.json["parts"] == {"golden": 90, "dev": 60, "examples": 60, "seeds": 90}
        checked = project.distill("check", "mail")
        assert (checked.code, "0 errors" in checked.out) == (0, True), checked.err
        path = tmp_path / "tasks" / "mail" / "task.yaml"
        task = yaml.safe_load(path.read_text())
        task["students"]["minilm"] |= {"epochs": 1, "seed_only_epochs": 1}
        task["gate"] = {"teacher_over_base": None}
        path.write_text(yaml.safe_dump(task))
        ended = project.distill("run", "mail", "--json")
        assert ended.code == 0, ended.err
        asked = set(provider.texts)
    report = tmp_path / "home" / "reports" / "mail" / "minilm" / "report.html"
    assert report.exists()
    for key in ("phone-note", "e-mail"):
        answers, _ = project.lake.read("mail", "teacher_completions", key, COMPLETIONS)
        assert answers["answer"].null_count() == 0
    assert len(asked) == 90 + 60 + 90, "each row once, whatever its part"


def test_more_prompts_of_the_same_table_are_imported_without_what_is_held_out(tmp_path: Path) -> None:
    project = Project(tmp_path)
    export = write_export(tmp_path / "export.csv", 120)
    made = project.distill("new", "mail", "--from", str(export), "--seeds", "10", "--slice", "desk", "--json")
    assert made.json["left_out"] == {"rows beyond the wanted number of seeds": 26}
    more = ("import", "mail", str(export), "--as", "seeds", "--text-field", "Nachricht", "--slice", "desk", "--json")
    imported = project.distill(*more).json
    assert imported["added"] == {"slice desk": 26 + 24}, "the rest, and the examples, which a prompt may equal"
    assert imported["skipped"]["golden or dev"] == 60
    assert project.distill("check", "mail").code == 0
