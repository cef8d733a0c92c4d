"""Drift: each of the three kinds is found, and traffic as before raises no alarm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from distill_dagster.evaluation.risk_coverage import RoutingRows
from distill_dagster.intake.request_log import LoggedRequest
from distill_dagster.release.routing.calibration import calibrate_router
from distill_dagster.release.routing.drift import Familiarity, TrafficDrift, measure_drift, measure_familiarity
from distill_dagster.release.routing.table import ExportRouting

PLAIN = LoggedRequest(
    id="r", at="2026-11-26T10:00:00+00:00", text="Hello", messages=None, slice=None, student="s", release=1,
    export="onnx", answer="refund", route="student", confidence=0.9, threshold=0.5, student_answer="refund",
)  # fmt: skip


@pytest.fixture(scope="module")
def routing() -> ExportRouting:
    """Calibrated on 400 rows, of which the student keeps three quarters."""
    rows = RoutingRows.from_answers([0.9] * 300 + [0.3] * 100, [True] * 300 + [False] * 100, [True] * 400)
    calibration = calibrate_router(rows, 0.01)
    assert calibration.threshold is not None
    return ExportRouting(calibration.threshold, "dev", calibration)


def measure(
    routing: ExportRouting,
    sure: int,
    unsure: int,
    right: int = 0,
    wrong: int = 0,
    familiarity: Familiarity | None = None,
) -> TrafficDrift:
    requests = [PLAIN] * (sure - right - wrong) + [replace(PLAIN, confidence=0.2, route="teacher")] * unsure
    requests += [replace(PLAIN, shadowed=True, teacher_answer="refund")] * right
    requests += [replace(PLAIN, shadowed=True, teacher_answer="login")] * wrong
    return measure_drift(requests, routing, 0.01, lambda a, b: a == b, familiarity)


def test_traffic_as_before_raises_no_alarm(routing: ExportRouting) -> None:
    drift = measure(routing, 370, 130, right=40, wrong=1, familiarity=Familiarity(500, 30, 200))
    assert not drift.has_drifted
    assert (drift.requests, drift.kept, drift.kept_before) == (500, 0.74, 0.75)
    assert (drift.shadowed, drift.disagreed, drift.unfamiliar) == (41, 1, 0.06)
    assert drift.describe("mail") == "No drift in 500 requests."


def test_a_smaller_kept_share_is_drift(routing: ExportRouting) -> None:
    drift = measure(routing, 250, 250)
    assert drift.has_drifted
    assert "sure enough of 50% of 500 requests; it was of 75%" in drift.describe("mail")
    assert "distill refresh mail" in drift.describe("mail")
    assert not measure(routing, 357, 143).has_drifted  # beyond chance or not, too small to matter


def test_disagreement_on_shadowed_requests_is_drift(routing: ExportRouting) -> None:
    drift = measure(routing, 375, 125, right=25, wrong=10)
    (reason,) = drift.reasons
    assert "10 of 35 shadowed requests otherwise" in reason
    assert drift.disagreement_low is not None
    assert 0.01 < drift.disagreement_low < 0.75 * 10 / 35


def test_unfamiliar_requests_are_drift(routing: ExportRouting) -> None:
    (reason,) = measure(routing, 375, 125, familiarity=Familiarity(200, 50, 200)).reasons
    assert "50 of 200 requests are unlike the training rows" in reason


def test_a_few_held_out_rows_raise_no_alarm_by_chance(routing: ExportRouting) -> None:
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(200):
        angles = {f"held {n}": angle for n, angle in enumerate(rng.random(20))}
        angles |= {f"request {n}": angle for n, angle in enumerate(rng.random(500))} | {"train": 0.0}

        def embed(texts: list[str], angles: dict[str, float] = angles) -> np.ndarray:
            places = np.array([angles[text] for text in texts])
            return np.column_stack([np.cos(places), np.sin(places)])

        learned, held, asked = (
            [name for name in angles if name.startswith(start)] for start in ("train", "held", "request")
        )
        familiarity = measure_familiarity(learned, held, asked, embed)
        alarms += measure(routing, 375, 125, familiarity=familiarity).has_drifted
    assert alarms / 200 <= 0.03


def test_few_requests_say_nothing(routing: ExportRouting) -> None:
    drift = measure(routing, 5, 40, familiarity=Familiarity(45, 45, 200))
    assert not drift.has_drifted
    assert "45 requests of the current release are logged" in drift.describe("mail")
    assert not measure_drift([], routing, 0.01, lambda a, b: a == b).has_drifted


def test_what_is_not_sampled_does_not_count(routing: ExportRouting) -> None:
    requests = [PLAIN] * 75 + [replace(PLAIN, confidence=0.2)] * 25 + [replace(PLAIN, sampled=False)] * 500
    assert measure_drift(requests, routing, 0.01, lambda a, b: a == b).requests == 100


def test_familiarity_by_distance_to_the_training_rows() -> None:
    places = {"train": 0.0, "near": 0.1, "usual": 0.2, "far": 1.5}

    def embed(texts: list[str]) -> np.ndarray:
        angles = np.array([places[text] for text in texts])
        return np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)

    found = measure_familiarity(["train"], ["near"] * 10 + ["usual"] * 10, ["near"] * 3 + ["far"] * 2, embed)
    assert found == Familiarity(5, 2, 20)
    assert measure_familiarity([], ["near"], ["far"], embed) is None
