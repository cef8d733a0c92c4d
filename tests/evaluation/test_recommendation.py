"""The recommendation in words, case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distill_dagster.evaluation.costs import DistillationCost
from distill_dagster.evaluation.metrics.types import SystemFacts
from distill_dagster.evaluation.recommendation import Recommendation, recommend
from tests.evaluation.build import marks, measured


def _decide(**right: int | str) -> Recommendation:
    """Number of right answers of 200 (the wrong ones last), or a pattern."""
    return recommend(measured({s: r if isinstance(r, str) else marks(r, 200 - r) for s, r in right.items()}))


def test_worth_it() -> None:
    right = {"teacher": 190, "base": 100, "seed_only": 150, "distilled": 180, "centroid": 140}
    metrics = measured(
        {s: marks(r, 200 - r) for s, r in right.items()},
        {"teacher": 0.5, "distilled": 0.02, "base": 0.02, "seed_only": 0.02, "centroid": 0.01},
    )
    verdict = recommend(metrics)
    assert verdict.worth_it is True
    assert verdict.best_other == "seed_only"
    assert verdict.text.startswith("Yes")
    assert "+15.0" in verdict.text
    assert "keeps 95 %" in verdict.text
    assert "25 times lower median latency (20 ms against 500 ms)" in verdict.text


def test_a_slower_student_is_not_called_faster() -> None:
    metrics = measured(
        {"teacher": marks(190, 10), "base": marks(100, 100), "distilled": marks(180, 20)},
        {"teacher": 0.01, "distilled": 0.02},
    )
    assert "2.0 times higher" in recommend(metrics).text
    assert "lower" not in recommend(metrics).text


def test_a_student_that_is_as_fast_is_not_called_faster() -> None:
    metrics = measured(
        {"teacher": marks(190, 10), "base": marks(100, 100), "distilled": marks(180, 20)},
        {"teacher": 0.0201, "distilled": 0.02},
    )
    assert "at the same median latency (20 ms against 20 ms)" in recommend(metrics).text


def test_without_latency_speed_is_not_compared() -> None:
    assert "Their speed is not compared" in _decide(teacher=190, base=100, distilled=180).text


@pytest.mark.parametrize(
    ("winner", "words"),
    [("base", "the untrained base"), ("centroid", "centroid"), ("seed_only", "human examples alone (seed_only)")],
)
def test_a_better_cheap_system_is_named(winner: str, words: str) -> None:
    right: dict[str, int | str] = {"teacher": 195, "base": 100, "seed_only": 110, "centroid": 120, "distilled": 150}
    verdict = _decide(**right | {winner: 190})
    assert verdict.worth_it is False
    assert verdict.best_other == winner
    assert verdict.text.startswith("No:")
    assert words in verdict.text
    assert "is better than the distilled student; use it instead" in verdict.text


def test_as_good_is_enough_for_the_cheap_system() -> None:
    verdict = _decide(teacher=195, base=100, centroid=180, distilled=180)
    assert verdict.worth_it is False
    assert verdict.best_other == "centroid"
    assert "at least as good" in verdict.text


def test_between_equals_the_least_work_is_named() -> None:
    verdict = _decide(teacher=195, seed_only=180, centroid=180, base=180, distilled=180)
    assert verdict.best_other == "base"
    assert _decide(teacher=195, seed_only=180, centroid=180, distilled=180).best_other == "centroid"


def test_base_better_than_the_teacher() -> None:
    verdict = _decide(teacher=130, base=190, seed_only=150, distilled=140)
    assert verdict.worth_it is False
    assert "This teacher is weaker than the untrained base" in verdict.text
    assert "choose a stronger teacher" in verdict.text


def test_a_base_equal_to_the_teacher_is_named_but_not_called_better() -> None:
    verdict = _decide(teacher=150, base=150, distilled=190)
    assert verdict.worth_it is True
    assert "scores no higher than the untrained base" in verdict.text
    assert "weaker" not in verdict.text
    assert "choose a stronger teacher" not in verdict.text


def test_slice_names_that_teach_more_than_the_teacher() -> None:
    verdict = _decide(teacher=160, base=100, distilled=150, slice_label=190)
    assert verdict.worth_it is False
    assert verdict.best_other == "slice_label"
    assert "The teacher added nothing" in verdict.text


def test_too_close_to_call() -> None:
    close = {"teacher": "1" * 38 + "00", "distilled": "1" * 35 + "0" * 5, "base": "0" * 7 + "1" * 33}
    verdict = recommend(measured(close))
    assert verdict.worth_it is None
    assert verdict.text.startswith("Too close to call at 40 golden items")
    assert verdict.best_other == "base"


def test_a_clear_lead_over_the_best_only_is_too_close_when_another_is_not_clear() -> None:
    # base is 14 items behind and never right alone. centroid is 15 behind, but often right where distilled is wrong.
    distilled = marks(160, 40)
    base = marks(146, 54)
    centroid = "0" * 55 + "1" * 105 + "1" * 40
    verdict = _decide(teacher=190, base=base, centroid=centroid, distilled=distilled)
    assert verdict.worth_it is None
    assert verdict.best_other == "base"
    assert (
        "and the class centroid of the examples' embeddings (centroid): distilled 0.800, centroid 0.725" in verdict.text
    )


def test_a_clearly_better_system_wins_over_a_larger_but_unclear_difference() -> None:
    distilled = marks(100, 100)
    clear = marks(110, 90)  # right wherever distilled is, and on ten more
    unclear = "0" * 84 + "1" * 16 + "1" * 96 + "0" * 4  # twelve more, but on other items
    verdict = _decide(teacher=190, centroid=clear, base=unclear, distilled=distilled)
    assert verdict.worth_it is False
    assert verdict.best_other == "centroid"


@pytest.mark.parametrize("items", [1, 3, 4])
def test_a_handful_of_items_decides_nothing(items: int) -> None:
    for own, other in (("1", "0"), ("0", "1"), ("1", "1")):
        verdict = recommend(measured({"teacher": "1" * items, "distilled": own * items, "base": other * items}))
        assert verdict.worth_it is None


def test_nothing_to_compare_with() -> None:
    verdict = _decide(teacher=190, distilled=180)
    assert verdict == Recommendation(None, verdict.text, "")
    assert "no other system" in verdict.text
    assert "keeps 95 %" in verdict.text


@pytest.mark.parametrize(
    ("right", "result", "words"),
    [
        (marks(195, 5), "better", "is better than the student; use it instead"),
        (marks(180, 20), "equal", "is as good as the student, without fine-tuning"),
        (
            marks(178, 22),
            "equal",
            "is as good as the student, without fine-tuning",
        ),  # more than 5 points are ruled out
        (marks(172, 28, wrong_first=True), "unclear", "is not clearly behind the student, without fine-tuning"),
        (marks(120, 80), "worse", ""),
    ],
)
def test_the_linear_probe_had_the_teacher_so_it_is_named_and_decides_nothing(
    right: str, result: str, words: str
) -> None:
    verdict = _decide(teacher=190, base=100, seed_only=120, distilled=180, linear_probe=right)
    assert verdict.worth_it is True
    assert verdict.best_other == "seed_only"
    assert verdict.text.startswith("Yes, distilling pays: distilled 0.900, seed_only 0.600;")
    assert verdict.probe == result
    assert words in verdict.text
    assert ("linear_probe" in verdict.text) == (result != "worse")


def test_a_student_that_fails_where_the_linear_probe_does_not() -> None:
    verdict = _decide(teacher=190, base=100, seed_only=160, distilled=140, linear_probe=185)
    assert (verdict.worth_it, verdict.best_other, verdict.probe) == (False, "seed_only", "better")
    assert "The linear probe" in verdict.text
    alone = _decide(teacher=190, distilled=140, linear_probe=185)
    assert (alone.worth_it, alone.best_other, alone.probe) == (None, "", "better")
    assert "learned from the same answers of the teacher and is better than the student" in alone.text


GOOD = {"teacher": marks(185, 15), "base": marks(100, 100), "seed_only": marks(150, 50), "distilled": marks(180, 20)}


def _decide_with_costs(
    student_usd: float | None,
    teacher_usd: float | None,
    seconds: dict[str, float] | None = None,
    right: dict[str, str] = GOOD,
    requests_per_day: int | None = None,
) -> Recommendation:
    metrics = measured(right, seconds)
    costs = {"teacher": teacher_usd, "distilled": student_usd}
    facts = {name: replace(fact, cost_usd_per_1k=costs.get(name)) for name, fact in metrics.facts.items()}
    cost = DistillationCost(1500, 1.5, 720, 0.02, teacher_usd, student_usd, 0.1, requests_per_day)
    return recommend(replace(metrics, facts=facts, distillation=cost))


def test_a_student_that_saves_money_is_worth_it() -> None:
    verdict = _decide_with_costs(0.1, 1.0)
    assert (verdict.worth_it, verdict.money) == (True, "saves")
    assert _decide_with_costs(None, 1.0).money is None
    assert _decide_with_costs(None, 1.0).worth_it is True


def test_a_student_that_saves_neither_money_nor_time_is_not_worth_it() -> None:
    verdict = _decide_with_costs(1.0, 0.4, {"distilled": 0.2, "teacher": 0.2})
    assert (verdict.worth_it, verdict.money, verdict.best_other) == (False, "costs", "teacher")
    assert verdict.text.startswith(
        "No: keep the teacher. The student saves no money: 1,000 of its answers cost $1.00, and $0.40 with the teacher."
    )
    faster = _decide_with_costs(1.0, 0.4, {"distilled": 0.1, "teacher": 0.2})
    assert (faster.worth_it, faster.money, faster.best_other) == (True, "costs", "seed_only")
    assert "The student saves no money" in faster.text
    better = {**GOOD, "teacher": marks(160, 40)}
    assert _decide_with_costs(1.0, 0.4, {"distilled": 0.2, "teacher": 0.2}, better).worth_it is True


def test_at_little_traffic_a_distillation_pays_too_late() -> None:
    """It took $1.52, and an answer saves $0.0009."""
    slow = {"distilled": 0.2, "teacher": 0.2}
    verdict = _decide_with_costs(0.1, 1.0, slow, requests_per_day=4)
    assert (verdict.worth_it, verdict.money, verdict.best_other) == (False, "late", "teacher")
    assert "it has paid for itself only after 422 days" in verdict.text
    assert _decide_with_costs(0.1, 1.0, slow, requests_per_day=5).money == "saves"
    assert _decide_with_costs(0.1, 1.0, slow).worth_it is True, "the traffic is not known"


def test_while_items_cannot_decide_the_cheaper_system_is_named() -> None:
    close = {"teacher": "1" * 38 + "00", "distilled": "1" * 35 + "0" * 5, "base": "0" * 7 + "1" * 33}
    metrics = measured(close)
    facts = dict(metrics.facts)
    facts["distilled"], facts["base"] = SystemFacts(cost_usd_per_1k=0.2), SystemFacts(cost_usd_per_1k=0.05)
    text = recommend(replace(metrics, facts=facts)).text
    assert "the cheaper system, the untrained base, at $0.05 for 1,000 answers instead of $0.20, is the safer" in text
