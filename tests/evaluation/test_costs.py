"""What an answer and a distillation cost, worked out by hand; an unknown part makes an unknown sum."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from distill_dagster.config import EvaluationSpec, TeacherSpec
from distill_dagster.config.evaluation import MACHINE_USD_PER_HOUR
from distill_dagster.config.teacher import PriceSpec
from distill_dagster.evaluation.costs import DistillationCost, TeacherUse, compute_machine_cost, compute_teacher_cost
from distill_dagster.evaluation.metrics import compute_metrics
from distill_dagster.evaluation.recommendation import recommend
from distill_dagster.evaluation.report import ReportInputs, write_report
from tests.evaluation.build import LABELS, SPEC, patterns

PRICE = PriceSpec(input_usd=2.0, output_usd=10.0)
RECORDED = TeacherSpec(model="replay/frontier", price=PRICE)
EMBEDDED = TeacherSpec(model="embedded/smollm2-135m-instruct")
PAID = TeacherSpec(model="openai/big", price=PRICE)


def test_the_machine_has_a_price_and_its_old_name_is_read() -> None:
    assert EvaluationSpec().machine_usd_per_hour == MACHINE_USD_PER_HOUR == 0.1
    assert EvaluationSpec.model_validate({"student_usd_per_hour": 2.5}).machine_usd_per_hour == 2.5
    assert EvaluationSpec.model_validate({"machine_usd_per_hour": None}).machine_usd_per_hour is None
    with pytest.raises(ValidationError, match="student_usd_per_hour is the old name of machine_usd_per_hour"):
        EvaluationSpec.model_validate({"student_usd_per_hour": 2.5, "machine_usd_per_hour": 1})
    assert compute_machine_cost(360, 2.0) == pytest.approx(0.2)
    assert compute_machine_cost(None, 2.0) is None
    assert compute_machine_cost(360, None) is None


@pytest.mark.parametrize(
    ("use", "spec", "usd"),
    [
        (TeacherUse(10, 500, 40), RECORDED, (500 * 2 + 40 * 10) / 1e6),
        (TeacherUse(10, 500, None), RECORDED, None),
        (TeacherUse(10, 500, 40), TeacherSpec(model="replay/frontier"), None),
        (TeacherUse(10, 500, 40, usd=0.3), TeacherSpec(model="replay/frontier"), 0.3),  # the recording says so
        (TeacherUse(10, 500, 40, usd=0.3), PAID, 0.3),  # what was billed, not what the tokens would cost
        (TeacherUse(10, 500, 40), PAID, None),
        (TeacherUse(10, 500, 40, seconds=36), EMBEDDED, 0.001),
        (TeacherUse(10, 500, 40), EMBEDDED, None),
    ],
)
def test_an_answer_of_a_teacher(use: TeacherUse, spec: TeacherSpec, usd: float | None) -> None:
    assert use.compute_cost(spec, MACHINE_USD_PER_HOUR) == (None if usd is None else pytest.approx(usd))


def test_in_a_cascade_the_later_teacher_costs_where_it_was_asked() -> None:
    teachers = {"frontier": RECORDED, "embedded": EMBEDDED}
    uses = {"frontier": TeacherUse(100, 500, 40), "embedded": TeacherUse(25, seconds=36)}
    assert compute_teacher_cost(uses, teachers, 0.1) == pytest.approx(0.0014 + 0.25 * 0.001)
    assert compute_teacher_cost(uses, teachers, None) is None
    assert compute_teacher_cost({"frontier": uses["frontier"]}, teachers, None) == pytest.approx(0.0014)
    assert compute_teacher_cost({}, teachers, 0.1) is None
    assert compute_teacher_cost({"renamed": uses["frontier"]}, teachers, 0.1) is None


def test_a_distillation_pays_for_itself_after_so_many_requests() -> None:
    cost = DistillationCost(1500, 1.5, 720, 0.02, teacher_usd_per_1k=1.0, student_usd_per_1k=0.05)
    assert cost.usd == pytest.approx(1.52)
    assert cost.break_even == 1600
    assert cost.to_json()["break_even_requests"] == 1600


@pytest.mark.parametrize("unknown", ["answers_usd", "training_usd", "teacher_usd_per_1k", "student_usd_per_1k"])
def test_without_one_cost_there_is_no_break_even(unknown: str) -> None:
    known: dict[str, Any] = {"answers_usd": 1.5, "training_usd": 0.02}
    known |= {"teacher_usd_per_1k": 1.0, "student_usd_per_1k": 0.05}
    assert DistillationCost(1500, training_s=720, **known).break_even is not None
    assert DistillationCost(1500, training_s=720, **known | {unknown: None}).break_even is None


def test_a_student_that_costs_as_much_as_the_teacher_saves_nothing() -> None:
    assert DistillationCost(1500, 1.5, 720, 0.02, 1.0, 1.0).break_even is None
    assert DistillationCost(1500, 1.5, 720, 0.02, 1.0, 2.0).break_even is None


COST = DistillationCost(1500, 1.5, 720, 0.02, 1.0, 0.05, machine_usd_per_hour=0.1, requests_per_day=4000)


def test_a_day_costs_by_traffic_and_the_distillation_is_saved_after_so_many_days() -> None:
    day = COST.day
    assert day is not None
    assert (day.requests, day.machines) == (4000, 1)
    assert (day.teacher_usd, day.student_usd, day.rented_usd) == pytest.approx((4.0, 0.2, 2.4))
    assert day.days == pytest.approx(1.52 / 3.8)
    assert day.rented_days == pytest.approx(1.52 / 1.6)
    assert COST.to_json()["break_even_days"] == day.days
    assert COST.to_json()["break_even_days_rented"] == day.rented_days
    assert replace(COST, requests_per_day=None).day is None


def test_a_rented_machine_pays_from_so_many_requests_a_day() -> None:
    least = COST.rental_requests_per_day
    assert least == 2401
    assert COST.compute_day(least).rented_days is not None
    assert COST.compute_day(least - 1).rented_days is None, "a day of the machine costs as much as the teacher"
    assert COST.compute_day(least - 1).days is not None


def test_traffic_beyond_one_machine_takes_more_of_them() -> None:
    busiest = round(24 * 0.1 / (0.05 / 1000))
    assert COST.compute_day(busiest).machines == 1
    day = COST.compute_day(busiest + 1000)
    assert day.machines == 2
    assert day.rented_usd == pytest.approx(2 * 2.4)
    assert [d.requests for d in COST.list_days()] == [100, 1_000, 4_000, 10_000, 100_000, 1_000_000]


@pytest.mark.parametrize("unknown", ["teacher_usd_per_1k", "student_usd_per_1k", "machine_usd_per_hour"])
def test_a_day_with_an_unknown_cost_has_unknown_parts(unknown: str) -> None:
    day = replace(COST, **{unknown: None}).compute_day(4000)  # type: ignore[arg-type]
    assert day.rented_days is None
    assert (day.days is None) == (unknown != "machine_usd_per_hour")
    assert (day.teacher_usd is None) == (unknown == "teacher_usd_per_1k")
    assert (day.student_usd is None) == (unknown == "student_usd_per_1k")


def test_the_curves_cross_at_the_break_even() -> None:
    curves = replace(COST, requests_per_day=None).build_curves()
    assert list(curves) == ["teacher", "student"]
    assert curves["teacher"][0] == (0.0, 0.0)
    assert curves["student"][0] == (0.0, COST.usd)
    [at] = [x for (x, teacher), (_, student) in zip(*curves.values(), strict=True) if teacher == pytest.approx(student)]
    assert at == COST.break_even == 1600
    rented = COST.build_curves()
    assert rented["student, rented machine"][-1][0] == pytest.approx(2 * 4000 * 1.52 / 1.6, abs=1)
    assert rented["student, rented machine"][2][1] == pytest.approx(rented["teacher"][2][1], rel=1e-3)
    assert replace(COST, student_usd_per_1k=2.0).build_curves() == {}


def test_a_machine_that_costs_nothing_pays_for_itself_when_rented_too() -> None:
    day = replace(COST, student_usd_per_1k=0.0, machine_usd_per_hour=0.0).day
    assert day is not None
    assert (day.rented_usd, day.machines) == (0.0, None)
    assert day.rented_days == day.days == pytest.approx(1.52 / 4.0)


@pytest.mark.parametrize(("answers_usd", "word"), [(None, "unknown"), (1.5, "never")])
def test_a_distillation_of_unknown_cost_is_not_said_to_never_pay(
    answers_usd: float | None, word: str, tmp_path: Path
) -> None:
    """At 100 requests a day a rented machine costs more than the teacher: never, if it is known what to save."""
    predictions = patterns({"distilled": "1101", "teacher": "1111"})
    metrics = compute_metrics(predictions, {}, LABELS, SPEC)
    metrics = replace(metrics, distillation=replace(COST, answers_usd=answers_usd))
    inputs = ReportInputs("mail", "small", "d", "s", "2026-01-02T03:04:05+00:00", {})
    write_report(tmp_path, predictions, metrics, recommend(metrics), inputs)
    html = (tmp_path / "report.html").read_text()
    row = html[html.index('<th scope="row">100</th>') :].partition("</tr>")[0]
    assert row.endswith(f"<td>{word}</td>")
