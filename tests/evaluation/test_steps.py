"""What a report says if a student learned from another student: what each step keeps, and who is no rival."""

from __future__ import annotations

import pytest

from distill_dagster.evaluation.leaderboard import build_leaderboard
from distill_dagster.evaluation.metrics_json import build_metrics_json
from distill_dagster.evaluation.plain_summary import build_plain_summary
from distill_dagster.evaluation.recommendation import list_rivals, recommend
from distill_dagster.evaluation.report import ReportInputs
from tests.evaluation.build import marks, measured

RIGHT = {"teacher": 100, "assistant": 90, "base": 30, "seed_only": 40, "distilled": 81}


def test_each_step_and_the_whole_way_are_reported() -> None:
    metrics = measured({name: marks(right, 100 - right) for name, right in RIGHT.items()})
    verdict = recommend(metrics)
    figures = build_metrics_json(metrics, verdict, ReportInputs("mail", "small", "d", "s", "now", {}))
    first, second = figures["steps"]
    assert (first["from"], first["to"], second["from"], second["to"]) == (
        "teacher",
        "assistant",
        "assistant",
        "distilled",
    )
    assert first["retention"]["value"] == pytest.approx(0.9)
    assert second["retention"]["value"] == pytest.approx(0.9)
    assert second["retention"]["low"] < 0.9 < second["retention"]["high"]
    assert figures["retention"]["value"] == pytest.approx(0.81)
    assert "(the assistant 90 % of the teacher's, the student 90 % of the assistant's)" in verdict.text
    steps = dict(build_plain_summary(metrics, verdict, "mail", "small").meaning)["Steps"]
    assert "keeps 90 % of the teacher's score" in steps


def test_an_assistant_had_the_teacher_so_it_is_no_rival() -> None:
    """It is better than the student, and distilling pays all the same."""
    metrics = measured({name: marks(right, 100 - right) for name, right in RIGHT.items()})
    assert recommend(metrics).worth_it is True
    assert "assistant" not in list_rivals(metrics)
    reports = {
        "small": build_metrics_json(metrics, recommend(metrics), ReportInputs("m", "small", "d", "s", "now", {}))
    }
    board = build_leaderboard(reports)
    assert [row.system for row in board.rows] == ["teacher", "base", "seed_only", "assistant", "distilled"]
    assert {row.student for row in board.rows if row.system == "assistant"} == {"small"}


def test_without_an_assistant_there_are_no_steps() -> None:
    metrics = measured({name: marks(right, 100 - right) for name, right in RIGHT.items() if name != "assistant"})
    verdict = recommend(metrics)
    assert metrics.golden.steps == ()
    assert "assistant" not in verdict.text
    assert "Steps" not in dict(build_plain_summary(metrics, verdict, "mail", "small").meaning)
