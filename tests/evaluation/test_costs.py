"""What an answer and a distillation cost, worked out by hand; an unknown part makes an unknown sum."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from distill_dagster.config import EvaluationSpec, TeacherSpec
from distill_dagster.config.evaluation import MACHINE_USD_PER_HOUR
from distill_dagster.config.teacher import PriceSpec
from distill_dagster.evaluation.costs import DistillationCost, TeacherUse, compute_machine_cost, compute_teacher_cost

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
    known = {"answers_usd": 1.5, "training_usd": 0.02, "teacher_usd_per_1k": 1.0, "student_usd_per_1k": 0.05}
    assert DistillationCost(1500, training_s=720, **known).break_even is not None
    assert DistillationCost(1500, training_s=720, **known | {unknown: None}).break_even is None  # type: ignore[arg-type]


def test_a_student_that_costs_as_much_as_the_teacher_saves_nothing() -> None:
    assert DistillationCost(1500, 1.5, 720, 0.02, 1.0, 1.0).break_even is None
    assert DistillationCost(1500, 1.5, 720, 0.02, 1.0, 2.0).break_even is None
