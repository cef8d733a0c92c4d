"""The import and replay commands of the documentation, as a user types them."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from distill_dagster.tables.schemas import COMPLETIONS
from tests.e2e.project import SEEDS, TASK, Project
from tests.support.provider import FakeProvider
from tests.support.task import LABELS, jsonl


def test_a_log_is_imported_and_replayed_without_a_single_request(
    fresh: Project, provider: FakeProvider, tmp_path: Path
) -> None:
    rows = [
        {"request": {"messages": [{"role": "user", "content": text}]}, "response": {"choices": [{"text": label}]}}
        for text in [*SEEDS["shop"], *SEEDS["web"][:-1]]
        for label in LABELS
        if label in text
    ]
    log = tmp_path / "gateway.jsonl"
    log.write_text(jsonl(rows))
    imported = fresh.distill("import", TASK, str(log), "--as", "recorded", "--json")
    assert imported.json["added"] == {"recorded/gateway.jsonl": 11}
    assert fresh.distill("import", TASK, str(log), "--as", "recorded", "--json").json["added"] == {}
    fresh.change_task(teacher={"model": "replay/gateway", "soft_labels": "votes", "min_success": 0.0, "api_base": None})
    ended = fresh.distill("backfill", TASK, "--which", "all", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["teacher_calls"] == 0
    assert ended.json["cost_usd"] == 0
    assert provider.requests == []
    frame, _ = fresh.lake.read(TASK, "teacher_completions", "web", COMPLETIONS)
    assert dict(frame["status"].value_counts().iter_rows()) == {"ok": 5, "failed": 1}
    assert fresh.lake.read(TASK, "teacher_completions", "shop", COMPLETIONS)[0]["answer"].null_count() == 0
    assert set(frame["mode"]) == {"replay"}
    status = fresh.distill("status", TASK, "--json").json["artifacts"]
    [web] = [a for a in status if a["name"] == "teacher_completions[web]"]
    assert (web["state"], web["why"]) == ("stale", ["1 row has no answer yet"])

    last = {"prompt": SEEDS["web"][-1], "completion": "login"}
    log.write_text(jsonl([last]))
    assert fresh.distill("import", TASK, str(log), "--as", "recorded", "--json").json["added"]
    assert fresh.distill("backfill", TASK, "--which", "stale", "--json").code == 0
    frame, record = fresh.lake.read(TASK, "teacher_completions", "web", COMPLETIONS)
    assert record.missing_rows == 0
    assert frame.filter(pl.col("status") == "ok").height == 6


def test_seeds_are_imported_and_asked(fresh: Project, provider: FakeProvider, tmp_path: Path) -> None:
    rows = tmp_path / "tickets.csv"
    rows.write_text("when,body\n1,my refund is lost\n2,a login by phone\n")
    arguments = ("import", TASK, str(rows), "--as", "seeds", "--slice", "desk", "--text-field", "body", "--json")
    assert fresh.distill(*arguments).json["added"] == {"slice desk": 2}
    assert fresh.distill(*arguments).json["skipped"] == {"duplicate": 2}
    ended = fresh.distill("backfill", TASK, "--slice", "desk", "--json")
    assert ended.code == 0, ended.err
    assert fresh.lake.read(TASK, "teacher_completions", "desk", COMPLETIONS)[0]["answer"].null_count() == 0


def test_what_is_wrong_with_an_import_is_said_in_words(fresh: Project, tmp_path: Path) -> None:
    rows = tmp_path / "tickets.csv"
    rows.write_text("body,kind\na refund,parking\n")
    fields = ("--text-field", "body", "--label-field", "kind")
    ended = fresh.distill("import", TASK, str(rows), "--as", "golden", *fields)
    assert ended.code == 2
    assert f"{rows}:2 [kind]: 'parking' is not a label" in ended.err
    assert fresh.distill("import", TASK, str(rows), "--as", "nothing").code == 2
    assert fresh.distill("import", TASK, str(rows), "--as", "seeds", "--name", "x").code == 1


def test_one_mistake_is_one_line_and_can_be_passed_over(fresh: Project, tmp_path: Path) -> None:
    rows = tmp_path / "tickets.csv"
    lines = [f"message {n};Refund \n" for n in range(298)]
    rows.write_text("\ufeffnachricht;kategorie\r\n" + "".join(lines) + ";login\r\nodd;parking\r\n", encoding="utf-8")
    command = ("import", TASK, str(rows), "--as", "golden")
    ended = fresh.distill(*command, "--label-field", "kategorie")
    assert ended.code == 2
    [line] = [line for line in ended.err.split("\n") if line]
    assert f"{rows}:2 [text]: the text is missing. Name its field with --text-field." in line
    assert "The record has: nachricht, kategorie. (300 times, in lines 2-301)" in line

    fields = ("--text-field", "nachricht", "--label-field", "kategorie")
    ended = fresh.distill(*command, *fields)
    assert ended.code == 2
    assert [line.split(" ")[1] for line in ended.err.split("\n") if line] == [
        f"{rows}:300",
        f"{rows}:301",
    ], "all mistakes at once"
    options = (*fields, "--map", "Refund =refund", "--skip-invalid", "--dry-run")
    shown = fresh.distill(*command, *options)
    assert shown.code == 0, shown.err
    assert "2 left out: cannot be used" in shown.out
    assert f"{rows}:301" in shown.err
    assert "separated by semicolons" in shown.out
    assert "298 would be added to golden.jsonl" in shown.out.replace("\n", " ")
    done = fresh.distill(*command, *options, "--json").json
    assert (done["added"], done["skipped"]) == ({"golden.jsonl": 298}, {"cannot be used": 2})
    assert fresh.distill(*command, *fields, "--map", "Refund").code == 1
    assert "is not `old=new`" in fresh.distill(*command, *fields, "--map", "Refund").err


def test_the_problems_of_a_check_are_said_once(fresh: Project) -> None:
    golden = fresh.folder / "golden.jsonl"
    golden.write_text(golden.read_text() + '{"id": "x"\n' * 200)
    ended = fresh.distill("check", TASK)
    assert ended.code == 2
    assert len([line for line in ended.err.split("\n") if "malformed JSON" in line]) == 1
    assert "200 times, in lines" in ended.err


def test_a_task_whose_prompts_are_all_imported_runs(fresh: Project, provider: FakeProvider, tmp_path: Path) -> None:
    for file in (fresh.folder / "slices").iterdir():
        file.unlink()
    ended = fresh.distill("check", TASK)
    assert ended.code == 2
    assert "or import prompts: `distill import" in ended.err
    rows = tmp_path / "mail.csv"
    rows.write_text("body;area\nmy refund is lost;desk\na login by phone;desk\nwhere is my delivery, please;phone\n")
    fields = ("--text-field", "body", "--slice-field", "area")
    added = fresh.distill("import", TASK, str(rows), "--as", "seeds", *fields, "--json").json["added"]
    assert added == {"slice desk": 2, "slice phone": 1}
    (fresh.folder / "slices" / "phone.yaml").write_text("description: Notes from the phone.\n")
    assert fresh.distill("check", TASK).code == 0
    ended = fresh.distill("backfill", TASK, "--which", "all", "--json")
    assert ended.code == 0, ended.err
    for key, height in (("desk", 2), ("phone", 1)):
        frame, _ = fresh.lake.read(TASK, "teacher_completions", key, COMPLETIONS)
        assert (frame.n_unique("prompt_id"), frame["answer"].null_count()) == (height, 0)
