"""`distill new` and `distill label`, as a person types them: in a pipe, and at a terminal that asks."""

from __future__ import annotations

import csv
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from distill_dagster.cli import app
from distill_dagster.core.paths import PROJECT_FOLDER
from tests.new_task.table import build_rows, write_table
from tests.support.terminal import Terminal, distill_command


class Place:
    """An empty project."""

    def __init__(self, root: Path) -> None:
        self.root, self.tasks = root, root / "tasks"
        self.environment = {"DISTILL_HOME": str(root / "home"), "DISTILL_TASKS": str(self.tasks)}

    def distill(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments), env=self.environment, catch_exceptions=False)

    def new(self, rows: list[dict[str, Any]] | Path, *arguments: str) -> Result:
        path = rows if isinstance(rows, Path) else write_table(self.root / "mail.csv", rows)
        return self.distill("new", "mail", "--from", str(path), *arguments)

    def read_task(self) -> dict[str, Any]:
        value: dict[str, Any] = yaml.safe_load((self.tasks / "mail" / "task.yaml").read_text(encoding="utf-8"))
        return value


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


GERMAN = [
    {"Ticket-Nr": n, "Kanal": ["Telefonnotiz", "E-Mail"][n % 2], "Nachricht": row["text"], "Kategorie": row["label"]}
    for n, row in enumerate(build_rows(300))
]


def test_a_semicolon_csv_of_a_spreadsheet_becomes_a_task_that_checks_clean(place: Place) -> None:
    path = write_table(place.root / "export.csv", GERMAN)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_text().replace(",", ";").encode())
    ended = place.new(path, "--slice-field", "Kanal")
    assert ended.exit_code == 0, ended.output
    assert "text: Nachricht, label: Kategorie, slice: Kanal, id: Ticket-Nr" in ended.output
    checked = place.distill("check", "mail")
    assert (checked.exit_code, "0 errors, 0 warnings" in checked.output) == (0, True), checked.output
    assert sorted(path.stem for path in (place.tasks / "mail" / "slices").iterdir()) == ["e-mail", "telefonnotiz"]
    assert "distill run mail" in ended.output
    assert "Reload" in ended.output, "the way into a running UI"


def test_a_parquet_file_and_a_sheet_give_the_same_task_as_csv(place: Place) -> None:
    import polars as pl

    from tests.support.sheets import write_sheets

    rows = build_rows(60)
    pl.DataFrame(rows).write_parquet(place.root / "mail.parquet")
    write_sheets(place.root / "mail.xlsx", {"export": [list(rows[0]), *(list(row.values()) for row in rows)]})
    files = [write_table(place.root / "mail.csv", rows), place.root / "mail.parquet", place.root / "mail.xlsx"]
    golden = set()
    for number, path in enumerate(files):
        assert place.distill("new", f"mail{number}", "--from", str(path)).exit_code == 0
        lines = (place.tasks / f"mail{number}" / "golden.jsonl").read_text().splitlines()
        golden.add(frozenset(json.loads(line)["text"] for line in lines))
    assert len(golden) == 1


def test_json_is_all_that_stdout_gets(place: Place) -> None:
    ended = place.new(build_rows(60), "--json", "--golden", "20", "--seeds", "10")
    assert ended.exit_code == 0, ended.output
    value = json.loads(ended.stdout)
    assert value["parts"] == {"golden": 20, "dev": 12, "examples": 12, "seeds": 10}
    assert value["left_out"] == {"rows beyond the wanted number of seeds": 6}
    assert value["files"] == ["dev.jsonl", "examples.jsonl", "golden.jsonl", "slices/mail.yaml", "task.yaml"]
    assert value["columns"] == {"text": ["text"], "answer": ["label"], "id": "id"}


def test_a_dry_run_and_a_refusal_write_nothing(place: Place) -> None:
    assert "nothing is written" in place.new(build_rows(60), "--dry-run").output
    broken = place.new([*build_rows(60), {"id": "x", "text": "", "label": "login"}])
    assert broken.exit_code == 2
    assert "mail.csv:62 [text]: the text is empty" in broken.stderr.replace("\n", "")
    assert not place.tasks.exists()
    assert (
        "1 left out" in place.new([*build_rows(60), {"id": "x", "text": "", "label": "login"}], "--skip-invalid").output
    )


def test_nothing_is_overwritten(place: Place) -> None:
    assert place.new(build_rows(60)).exit_code == 0
    before = {path: path.read_bytes() for path in place.tasks.rglob("*") if path.is_file()}
    again = place.new(build_rows(90))
    assert (again.exit_code, "there is a task of this name" in again.stderr) == (2, True)
    assert {path: path.read_bytes() for path in place.tasks.rglob("*") if path.is_file()} == before
    assert [path.name for path in place.tasks.iterdir()] == ["mail"]


def test_a_name_that_cannot_be_a_task_is_answered_with_one_that_can(place: Place) -> None:
    ended = place.distill("new", "Ticket-Mail", "--from", str(write_table(place.root / "a.csv", build_rows(60))))
    assert ended.exit_code == 2
    assert "'ticket_mail'" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["--text-field", "txt"], 2, "no record has the field 'txt'. The fields are: id, text, label."),
        (["--text-field", "label", "--label-field", "label"], 2, "'label' is the text and something else"),
        (["--map", "login"], 1, "is not `old=new`"),
        (["--slice", "A b"], 1, "cannot be a slice"),
        (["--slice", "a", "--slice-field", "id"], 1, "not both"),
        (["--from", "no.csv"], 2, "there is no such file"),
        (["--kind", "poetry"], 2, "poetry"),
    ],
)
def test_wrong_options_are_answered_in_words(place: Place, arguments: list[str], code: int, what: str) -> None:
    ended = place.new(build_rows(60), *arguments)
    assert (ended.exit_code, what in " ".join(ended.stderr.split())) == (code, True), ended.stderr
    assert not place.tasks.exists()


def test_in_a_pipe_nobody_is_asked_and_nothing_is_guessed(place: Place) -> None:
    rows = [{"body": row["text"], "channel": ["web", "phone"][n % 2]} for n, row in enumerate(build_rows(60))]
    ended = place.new(rows)
    assert ended.exit_code == 2
    assert "Name it with --label-field" in ended.stderr
    assert "Columns that may be: channel" in ended.stderr.replace("\n", " ")
    rows = [{"one": f"{row['text']}!", "two": f"{row['text']}?", "label": row["label"]} for row in build_rows(60)]
    assert "--text-field" in place.new(rows).stderr
    assert place.new(rows, "--text-field", "two").exit_code == 0


def test_a_table_without_names_of_columns_is_recognized(place: Place) -> None:
    path = place.root / "mail.csv"
    path.write_text("".join(f"{row['text']},{row['label']}\n" for row in build_rows(60)))
    assert "'billing' is the name of a column and one of its values" in " ".join(place.new(path).stderr.split())


def test_labels_written_later_complete_a_task_from_a_file_without_labels(place: Place) -> None:
    rows = [{"text": row["text"]} for row in build_rows(160)]
    ended = place.new(rows, "--label", "billing", "--label", "delivery", "--label", "login")
    assert ended.exit_code == 0, ended.output
    assert "distill label mail" in ended.output
    sheet = place.tasks / "mail" / "to_label.csv"
    with sheet.open(encoding="utf-8-sig", newline="") as handle:
        lines = list(csv.DictReader(handle))
    labels = {row["text"]: row["label"] for row in build_rows(160)}
    for number, line in enumerate(lines):
        line["label"] = labels[line["text"]].title() + " " if number < 60 else ""
    write_table(sheet, lines)
    first = place.distill("label", "mail", "--json")
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout) == {
        "task": "mail", "added": {"golden.jsonl": 30, "dev.jsonl": 15, "examples.jsonl": 15}, "unlabelled": 20
    }  # fmt: skip
    assert place.distill("check", "mail").exit_code == 0
    for line in lines:
        line["label"] = labels[line["text"]]
    write_table(sheet, lines)
    assert sum(json.loads(place.distill("label", "mail", "--json").stdout)["added"].values()) == 20
    assert json.loads(place.distill("label", "mail", "--json").stdout)["added"] == {}
    lines[3]["label"] = "parking"
    write_table(sheet, lines)
    wrong = place.distill("label", "mail")
    assert wrong.exit_code == 2
    assert "to_label.csv:5 [label]: 'parking' is not a label" in wrong.stderr.replace("\n", "")


def test_a_file_without_answers_of_another_kind_becomes_a_sheet_too(place: Place) -> None:
    rows = [{"message": row["text"]} for row in build_rows(60)]
    assert place.new(rows, "--kind", "generation").exit_code == 2
    assert place.new(rows, "--kind", "generation", "--unlabelled").exit_code == 0
    sheet = place.tasks / "mail" / "to_label.csv"
    with sheet.open(encoding="utf-8-sig", newline="") as handle:
        lines = list(csv.DictReader(handle))
    write_table(sheet, [line | {"answer": f"Dear customer, {line['text']}"} for line in lines])
    assert place.distill("label", "mail").exit_code == 0
    checked = place.distill("check", "mail")
    assert (checked.exit_code, "0 warnings" in checked.output) == (0, True), checked.output


def test_a_real_teacher_is_named_with_its_key_and_its_terms_stay_a_decision(place: Place) -> None:
    ended = place.new(build_rows(60), "--teacher", "openai/gpt-4o-mini")
    assert ended.exit_code == 0, ended.output
    assert place.read_task()["teacher"]["api_key_env"] == "OPENAI_API_KEY"
    assert "terms" in ended.stderr
    assert place.distill("check", "mail").exit_code == 2


def waits(question: str, times: int, screen: str) -> bool:
    """Whether a screen ends with a question that was asked so often."""
    return screen.rstrip().endswith(":") and screen.count(question) == times


def ask(place: Place, rows: list[dict[str, Any]], *answers: tuple[str, str], arguments: tuple[str, ...] = ()) -> str:
    """Answer the questions of `distill new` at a terminal. Returns all that the terminal showed."""
    path = write_table(place.root / "mail.csv", rows)
    command = distill_command("new", "mail", "--from", str(path), *arguments)
    environment = place.environment | {"PYTHONPATH": str(PROJECT_FOLDER)}
    asked = Counter[str]()
    with Terminal(command, environment, place.root, columns=100, lines=60) as terminal:
        for question, answer in answers:
            asked[question] += 1
            assert terminal.process.poll() is None, terminal.everything
            terminal.wait_for(partial(waits, question, asked[question]), question)
            terminal.press(f"{answer}\n")
        terminal.wait()
        return terminal.everything


def test_at_a_terminal_it_asks_for_columns_and_enter_takes_what_they_suggest(place: Place) -> None:
    seen = ask(
        place,
        GERMAN,
        ("Which column is the text", ""),
        ("What kind of task", ""),
        ("Which column is the label", ""),
        ("where a row comes from", "2"),
        ("Write", "y"),
    )
    assert "mail is written" in seen
    assert sorted(path.stem for path in (place.tasks / "mail" / "slices").iterdir()) == ["e-mail", "telefonnotiz"]
    assert place.distill("check", "mail").exit_code == 0


def test_at_a_terminal_a_wrong_answer_is_asked_again_and_no_writes_nothing(place: Place) -> None:
    seen = ask(
        place,
        GERMAN,
        ("Which column is the text", "Nachrichten"),
        ("Which column is the text", "3"),
        ("What kind of task", "classification"),
        ("Which column is the label", "Kategorie"),
        ("where a row comes from", "-"),
        ("Write", "n"),
    )
    assert "There is no column 'Nachrichten'" in seen
    assert not (place.tasks / "mail").exists()


def test_at_a_terminal_labels_are_asked_for_and_bad_rows_are_left_out(place: Place) -> None:
    rows = [{"text": row["text"], "channel": "web"} for row in build_rows(100)]
    rows[5]["text"] = " "
    ask(
        place,
        rows,
        ("Which column is the text", ""),
        ("What kind of task", ""),
        ("Which column is the label", "-"),
        ("Which labels", "billing, delivery,login"),
        ("Leave these rows out", "y"),
        ("Write", ""),
    )
    assert [label["name"] for label in place.read_task()["labels"]] == ["billing", "delivery", "login"]
    assert (place.tasks / "mail" / "to_label.csv").exists()
