"""The check of served requests in Dagster: a sensor starts it after new requests, and it says when to refresh."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest

from distill_dagster.core.paths import Home
from distill_dagster.definitions import build_definitions
from distill_dagster.evaluation.risk_coverage import RoutingRows
from distill_dagster.intake.request_log import LoggedRequest, format_log_line
from distill_dagster.pipeline import served_traffic
from distill_dagster.pipeline.open_task import open_task
from distill_dagster.pipeline.served_traffic import list_traffic_items, measure_traffic_drift
from distill_dagster.release.routing.calibration import calibrate_router
from distill_dagster.release.routing.table import ExportRouting, RoutingTable
from distill_dagster.tables.lake import Lake
from distill_dagster.tasks.accepted import AcceptedPrompt, get_accepted_path
from tests.support.task import write_small_task

NAME = "shop_mail"
PLAIN = LoggedRequest(
    id="r", at="2026-11-26T10:00:00+00:00", text="", messages=None, slice=None, student="tiny", release=1,
    export="onnx", answer="refund", route="student", confidence=0.9, threshold=0.5, student_answer="refund",
)  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A task with a release, whose student keeps three quarters of the rows that it was calibrated on."""
    write_small_task(tmp_path, NAME)
    home = Home(root=tmp_path / "home", tasks=tmp_path / "tasks")
    folder = home.releases / NAME / "1"
    folder.mkdir(parents=True)
    rows = RoutingRows.from_answers([0.9] * 300 + [0.3] * 100, [True] * 300 + [False] * 100, [True] * 400)
    calibration = calibrate_router(rows, 0.01)
    RoutingTable(0.1, {"onnx": ExportRouting(calibration.threshold, "dev", calibration)}).write(folder)
    return home


def serve(home: Home, rows: Iterable[LoggedRequest], name: str = "requests-1-1.jsonl") -> None:
    folder = home.requests / NAME
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("ab") as handle:
        handle.writelines(format_log_line(row) for row in rows)


def make(n: int, confidence: float, **change: Any) -> LoggedRequest:
    return replace(PLAIN, id=f"r{n}", text=f"question {n}", confidence=confidence, **change)


def tick(home: Home, cursor: str | None = None) -> dg.SensorResult | dg.SkipReason:
    repository = build_definitions(home).get_repository_def()
    resources = {"tasks": repository.get_top_level_resources()["tasks"]}
    context = dg.build_sensor_context(cursor=cursor, repository_def=repository, resources=resources)
    found: Any = repository.get_sensor_def(f"{NAME}_traffic_sensor")(context)
    return found


def run_check(home: Home) -> dg.AssetCheckEvaluation:
    result = build_definitions(home).resolve_job_def(f"{NAME}_traffic").execute_in_process()
    (evaluation,) = result.get_asset_check_evaluations()
    return evaluation


def test_the_sensor_starts_the_check_only_after_new_requests(home: Home) -> None:
    assert isinstance(tick(home), dg.SkipReason)
    serve(home, [make(1, 0.9)])
    first = tick(home)
    assert isinstance(first, dg.SensorResult)
    assert len(first.run_requests or []) == 1
    assert isinstance(tick(home, first.cursor), dg.SkipReason)
    serve(home, [make(2, 0.9)])
    assert isinstance(tick(home, first.cursor), dg.SensorResult)


def test_the_check_says_when_to_refresh(home: Home) -> None:
    serve(home, [make(n, 0.9 if n % 4 else 0.2) for n in range(200)])
    evaluation = run_check(home)
    assert evaluation.passed
    assert evaluation.description == "No drift in 200 requests."
    serve(home, [make(n, 0.2, route="teacher", teacher_answer="refund") for n in range(200, 600)])
    evaluation = run_check(home)
    assert not evaluation.passed
    assert evaluation.severity == dg.AssetCheckSeverity.WARN
    assert evaluation.description is not None
    assert f"distill refresh {NAME}" in evaluation.description


def test_only_requests_of_the_current_release_count_and_without_one_there_is_no_answer(home: Home) -> None:
    serve(home, [make(n, 0.2, release=7) for n in range(100)])
    folder = open_task(home.tasks, NAME, home.accepted)
    lake = Lake(home.lake, home.reports)
    found = measure_traffic_drift(folder, lake, home.models, home.requests / NAME, home.releases)
    assert found is not None
    assert found.requests == 0
    assert measure_traffic_drift(folder, lake, home.models, home.requests / NAME, home.root / "none") is None


def test_requests_unlike_the_training_rows_are_counted(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def embed(texts: list[str], _: Path) -> np.ndarray:
        angles = np.array([2.0 if text.startswith("question") else len(text) % 7 / 100 for text in texts])
        return np.column_stack([np.cos(angles), np.sin(angles)])

    monkeypatch.setattr(served_traffic, "embed_sentences", embed)
    lake = Lake(home.lake, home.reports)
    dataset = pl.DataFrame(
        {"split": ["train"] * 3, "messages": [[{"role": "user", "content": f"refund {n}"}] for n in range(3)]}
    )
    monkeypatch.setattr(Lake, "read_record", lambda *_: object())
    monkeypatch.setattr(Lake, "read", lambda *_: (dataset, None))
    serve(home, [make(n, 0.9 if n % 4 else 0.2) for n in range(100)])
    folder = open_task(home.tasks, NAME, home.accepted)
    found = measure_traffic_drift(folder, lake, home.models, home.requests / NAME, home.releases)
    assert found is not None
    assert found.unfamiliar == 1.0
    assert "100 of 100 requests are unlike the training rows" in found.reasons[0]


def test_shadowed_requests_calibrate_unless_a_student_learned_from_them(home: Home) -> None:
    shadowed = [make(n, 0.9, shadowed=True, teacher_answer="login") for n in range(4)]
    serve(home, [*shadowed, replace(shadowed[3], id="again"), make(9, 0.9)])
    path = get_accepted_path(home.accepted / NAME, "shop")
    path.parent.mkdir(parents=True)
    known = AcceptedPrompt(text="Question 2", source="log", batch="b", accepted_at="2026-11-26T10:00:00+00:00")
    path.write_text(known.model_dump_json(exclude_none=True) + "\n")
    folder = open_task(home.tasks, NAME, home.accepted)
    items = list_traffic_items(folder, home.requests / NAME, home.releases)
    assert [item.prompt.text for item in items] == ["question 0", "question 1", "question 3"]
    assert {item.reference for item in items} == {"login"}
