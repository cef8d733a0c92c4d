"""A student with a preference phase, from the command: what is made, and that no other student is concerned."""

from __future__ import annotations

import json

from tests.e2e.project import TASK, Project
from tests.support.tiny_model import write_tiny_model


def test_pairs_are_made_for_the_student_that_learns_from_them(project: Project) -> None:
    model = write_tiny_model(project.root / "tiny-model")
    settings = {"model": str(model), "architecture": "causal_lm", "epochs": 1, "seed_only_epochs": 1}
    project.change_task(students={"aligned": settings | {"then": [{"kind": "preference"}]}})
    ended = project.run("--student", "aligned")
    assert ended.code == 0, ended.err
    assert ended.partitions["preference_pairs"] == [None]
    assert ended.partitions["student_adapter"] == ["aligned"]
    assert "preference_pairs" in project.record("student_adapter", "aligned").inputs
    assert "preference_pairs" not in project.record("student_adapter", "two").inputs
    log = json.loads((project.home / "lake" / TASK / "student_adapter" / "aligned" / "training_log.json").read_text())
    pairs = project.record("preference_pairs").rows
    assert [(phase["kind"], phase["rows"]) for phase in log["phases"]] == [("preference", pairs)]
    assert "then preference" in (project.home / "reports" / TASK / "aligned" / "report.html").read_text()
    assert project.run("--student", "aligned", "--student", "two").json["runs"] == []
