"""A student that learns from another student: what is made, for whom, and what the report says of each step."""

from __future__ import annotations

import json

from tests.e2e.project import STUDENT, TASK, Project

TAUGHT = {"seed_only_adapter", "student_adapter", "predictions", "eval_report"}


def test_a_student_learns_from_another_one_and_each_step_is_reported(project: Project) -> None:
    project.change_task(students={"small": STUDENT | {"teacher": "student:two", "epochs": 2}})
    before = project.record("student_adapter", "two").data_version
    ended = project.run("--student", "small")
    assert ended.code == 0, ended.err
    assistant = {"assistant_adapter": ["two"], "assistant_labels": ["two"]}
    assert ended.partitions == {name: ["small"] for name in TAUGHT} | assistant
    assert project.record("student_adapter", "small").inputs.keys() == {
        "assistant_labels[two]",
        "student_settings[small]",
    }
    assert project.run("--student", "small").json["runs"] == []

    folder = project.home / "reports" / TASK / "small"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [(step["from"], step["to"]) for step in metrics["steps"]] == [
        ("teacher", "assistant"),
        ("assistant", "distilled"),
    ]
    scores = {name: system["score"]["value"] for name, system in metrics["systems"].items()}
    kept = [step["retention"]["value"] for step in metrics["steps"]]
    assert kept == [scores["assistant"] / scores["teacher"], scores["distilled"] / scores["assistant"]]
    assert metrics["retention"]["value"] == scores["distilled"] / scores["teacher"]
    assert "taught an assistant" in json.dumps(metrics["meaning"])
    assert "assistant divided by teacher" in (folder / "report.html").read_text()

    # The assistant is the student that its own report is about: it is trained once, and nothing after it changes.
    again = project.run("--student", "two")
    assert again.partitions == {"student_adapter": ["two"]}
    assert project.record("student_adapter", "two").data_version == before
    assert project.run("--student", "two", "--student", "small").json["runs"] == []


def test_a_refresh_leaves_the_chain_until_enough_rows_changed(project: Project) -> None:
    project.change_task(
        students={"small": STUDENT | {"teacher": "student:two"}, "one": None},
        default_student="two",
        refresh={"min_new_rows": 1},
    )
    assert project.run("--student", "two", "--student", "small").code == 0
    chain = {"assistant_adapter[two]", "assistant_labels[two]", "predictions[small]", "eval_report[small]"}
    project.change_slice("shop", lambda value: value["seeds"].append("a refund of one penny"))
    waiting = project.distill("refresh", TASK, "--json").json["waiting"]
    assert chain <= set(waiting)
    assert "1 row changed" in waiting["assistant_labels[two]"]
    project.change_slice("web", lambda value: value["seeds"].append("the delivery of a refund"))
    ended = project.distill("refresh", TASK, "--json")
    assert ended.code == 0, ended.err
    assert {name: ended.partitions[name] for name in ("assistant_adapter", "assistant_labels")} == {
        "assistant_adapter": ["two"],
        "assistant_labels": ["two"],
    }
    assert sorted(map(str, ended.partitions["student_adapter"])) == ["small", "two"]
    assert project.distill("refresh", TASK, "--json").json["runs"] == []
