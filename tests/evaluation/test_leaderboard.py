"""The table over all students: what it shows once, what it shows for each, and which baseline."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from distill_dagster.config import Task
from distill_dagster.evaluation.leaderboard import build_leaderboard, compare_students, describe_best_student
from distill_dagster.evaluation.metrics_json import build_metrics_json
from distill_dagster.evaluation.recommendation import recommend
from distill_dagster.evaluation.report import ReportInputs
from distill_dagster.kinds import get_kind
from tests.evaluation.build import SPEC, marks, measured, patterns
from tests.support.task import TASK

_TASK = Task.model_validate(TASK)
RIGHT = {"teacher": 38, "base": 20, "seed_only": 25, "distilled": 36, "linear_probe": 35, "centroid": 24}


def _report(student: str, right: dict[str, int], seconds: float = 0.02, version: str = "d", items: int = 40) -> Any:
    systems = {name: marks(number, items - number) for name, number in right.items()}
    metrics = measured(systems, dict.fromkeys(right, seconds))
    return build_metrics_json(metrics, recommend(metrics), ReportInputs("mail", student, version, "s", "now", {}))


def test_the_teacher_and_what_is_no_student_stand_once() -> None:
    reports = {"large": _report("large", RIGHT, 0.5), "small": _report("small", RIGHT | {"distilled": 30}, 0.01)}
    board = build_leaderboard(reports)
    assert [(row.system, row.student) for row in board.rows] == [
        ("teacher", ""),
        *[(system, "large") for system in ("base", "seed_only", "distilled")],
        *[(system, "small") for system in ("base", "seed_only", "distilled")],
        ("linear_probe", ""),
        ("centroid", ""),
    ]
    assert (board.metric, board.items, board.remarks) == ("accuracy", 40, ())
    large, small = (row for row in board.rows if row.system == "distilled")
    assert (large.score, small.score) == (0.9, 0.75)
    assert large.latency_s == pytest.approx(0.5)
    cost = 1000 * 0.01 / 3600 * 0.1
    assert small.cost_usd_per_1k == pytest.approx(cost)
    cells = small.format_cells()
    assert cells[:2] == ("distilled", "small")
    assert cells[2].startswith("0.75 [0.")
    assert cells[3:] == ("10 ms", "–", "$0.00028")


def test_of_the_other_baselines_the_best_is_shown_with_its_student() -> None:
    with_slices = RIGHT | {"slice_label": 30}
    board = build_leaderboard({"large": _report("large", RIGHT), "small": _report("small", with_slices)})
    assert [(row.system, row.student) for row in board.rows][-2:] == [("linear_probe", ""), ("slice_label", "small")]


def test_a_task_without_labels_has_no_baseline() -> None:
    right = {name: RIGHT[name] for name in ("teacher", "base", "seed_only", "distilled")}
    board = build_leaderboard({"large": _report("large", right)})
    assert [row.system for row in board.rows] == ["teacher", "base", "seed_only", "distilled"]
    with pytest.raises(ValueError, match="needs a report"):
        build_leaderboard({})


def test_reports_that_are_hard_to_compare_are_named() -> None:
    mixed = {"large": _report("large", RIGHT), "small": _report("small", RIGHT, version="e", items=50)}
    assert [remark.split(".")[0] for remark in build_leaderboard(mixed).remarks] == [
        "The students were trained on different versions of the dataset",
        "The reports have different golden sets, so their scores cannot be compared",
    ]


def test_an_unknown_cost_is_not_zero() -> None:
    report = _report("large", RIGHT)
    report["systems"]["teacher"]["cost_usd_per_1k"] = None
    report["systems"]["teacher"]["model"] = "openai/big"
    report["systems"]["distilled"]["cost_usd_per_1k"] = None
    cells = {row.system: row.format_cells() for row in build_leaderboard({"large": report}).rows}
    assert cells["teacher"][-1] == "unknown"
    assert cells["distilled"][-1] == "own machine"


def test_the_best_student_is_compared_with_the_others_on_the_same_items() -> None:
    right = {"large": marks(180, 20), "small": marks(177, 23), "weak": marks(100, 100)}
    tables = {name: patterns({"teacher": "1" * 200, "distilled": pattern}) for name, pattern in right.items()}
    found = compare_students(tables, "large", SPEC, get_kind(_TASK))
    assert [(c.first, c.second, c.n, c.only_first, c.only_second) for c in found] == [
        ("large", "small", 200, 3, 0),
        ("large", "weak", 200, 80, 0),
    ]
    said = describe_best_student(found, SPEC.confidence)
    assert said.startswith("Of the students large scores highest; small is not clearly behind (+1.5 [")
    assert "weak is clearly behind (+40.0 [" in said
    assert describe_best_student([], SPEC.confidence) == ""


def test_items_whose_reference_changed_between_two_reports_are_not_compared() -> None:
    tables = {name: patterns({"distilled": "1" * 20}) for name in ("large", "small")}
    first = pl.col("item_id") == "g0000"
    changed = pl.when(first).then(pl.lit('"card"')).otherwise("reference").alias("reference")
    tables["small"] = tables["small"].with_columns(changed, (pl.col("correct") & ~first).alias("correct"))
    (found,) = compare_students(tables, "large", SPEC, get_kind(_TASK))
    assert found.n == 19
