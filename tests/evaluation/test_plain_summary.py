"""What a report means and what to do next: right for every verdict, kind of teacher and price."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distill_dagster.config import EvaluationSpec
from distill_dagster.curation.soft_labels.reliability import Reliability
from distill_dagster.evaluation.costs import DistillationCost
from distill_dagster.evaluation.metrics import Metrics, compute_metrics
from distill_dagster.evaluation.plain_summary import PlainSummary, build_plain_summary
from distill_dagster.evaluation.recommendation import list_rivals, recommend
from distill_dagster.evaluation.statistics import Interval, estimate_needed_items
from tests.evaluation.build import LABELS, row, table

ITEMS = 200
YES = {"teacher": 190, "base": 100, "seed_only": 150, "distilled": 180, "centroid": 140}
NO = YES | {"seed_only": 198, "distilled": 170}
CLOSE = YES | {"seed_only": 179, "distilled": 180}


def _measure(
    right: dict[str, int],
    facts: dict[str, dict[str, Any]] | None = None,
    items: int = ITEMS,
    seconds: dict[str, float] | None = None,
    usd_per_hour: float | None = None,
) -> Metrics:
    """Every system gets its number of items right: other ones than the next system, so that pairs differ."""
    rows = []
    for shift, (system, number) in enumerate(right.items()):
        for i in range(items):
            label = LABELS[i % len(LABELS)]
            wrong = LABELS[(i + 1) % len(LABELS)]
            is_right = (i + 9 * shift) % items < number
            latency = (seconds or {}).get(system)
            rows.append(row(system, f"g{i}", label, label if is_right else wrong, latency_s=latency))
    return compute_metrics(table(rows), facts or {}, LABELS, EvaluationSpec(machine_usd_per_hour=usd_per_hour))


def _summarize(metrics: Metrics) -> PlainSummary:
    return build_plain_summary(metrics, recommend(metrics), "mail", "small")


def _get(summary: PlainSummary, word: str) -> str:
    return dict(summary.meaning)[word]


def test_worth_it() -> None:
    summary = _summarize(_measure(YES))
    assert summary.lead == (
        "Distilling pays: the student answers 90 of 100 right, the best without a teacher 75 (human labels only)."
    )
    assert "the distilled student answers 90 of 100 items right (teacher 95; human labels only 75)" in _get(
        summary, "Quality"
    )
    assert "the golden set, 200 items that people labelled and no system was trained on" in _get(summary, "Quality")
    assert "`distill release mail --student small` makes a folder that you can deploy" in summary.next_steps[0]
    assert "`lake/mail/student_adapter/small/`" in summary.next_steps[0]
    assert "`distill refresh mail`" in summary.next_steps[-1]


def test_not_worth_it_says_what_to_use() -> None:
    summary = _summarize(_measure(NO))
    assert summary.lead.startswith(
        "Distilling does not pay here: the student answers 85 of 100 right, the best without"
    )
    assert "Better use seed_only (the student trained on your labelled examples alone" in summary.lead
    assert "`lake/mail/seed_only_adapter/small/`" in summary.next_steps[0]
    untrained = _summarize(_measure(YES | {"base": 198}))
    assert untrained.next_steps[0] == "Use the untrained model as it is; there is nothing to train."
    nearest = _summarize(_measure(YES | {"centroid": 198}))
    assert "each label's mean embedding" in nearest.next_steps[0]


def test_undecided_names_the_rivals_and_how_many_items_would_decide() -> None:
    metrics = _measure(CLOSE)
    assert list_rivals(metrics) == ["seed_only"]
    summary = _summarize(metrics)
    assert summary.lead.startswith(
        "The test is too small to tell whether the distilled student is better than seed_only ("
    )
    assert "Now there are 200." in summary.next_steps[0]
    assert "safer choice: seed_only." in summary.next_steps[1]
    assert not any("adapter is in" in step for step in summary.next_steps)


def test_a_rival_is_not_the_best_other_where_that_one_is_clearly_worse() -> None:
    """base is behind on few items but always; centroid is behind by more, but on other items."""
    rows = []
    for i in range(ITEMS):
        label, wrong = LABELS[i % len(LABELS)], LABELS[(i + 1) % len(LABELS)]
        right = {"teacher": i < 190, "distilled": i < 160, "base": i < 146, "centroid": i >= 55}
        rows += [row(system, f"g{i}", label, label if ok else wrong) for system, ok in right.items()]
    metrics = compute_metrics(table(rows), {}, LABELS, EvaluationSpec())
    assert recommend(metrics).best_other == "base"
    assert list_rivals(metrics) == ["centroid"]
    assert "better than centroid (" in _summarize(metrics).lead


def test_nothing_to_compare_with() -> None:
    summary = _summarize(_measure({"teacher": 190, "distilled": 180}))
    assert summary.lead == "There is nothing yet to compare the distilled student with."
    assert summary.next_steps[0].startswith("Run `distill run mail` to the end")


def test_enough_items_without_a_difference_are_no_reason_to_label_more() -> None:
    items = 4000
    summary = _summarize(_measure({"teacher": 3900, "base": 2000, "seed_only": 3600, "distilled": 3605}, items=items))
    assert summary.next_steps[0].startswith("Decide by cost and effort: with these 4000 items")


@pytest.mark.parametrize(
    ("facts", "usd_per_hour", "words"),
    [
        ({"teacher": {"cost_usd_per_1k": 4.0}}, None, "1,000 answers of the teacher cost $4.00."),
        ({"teacher": {"cost_usd_per_1k": 4.0}}, 3.6, "1,000 answers cost $0.10 with the student and $4.00 with the te"),
        ({"teacher": {"model": "embedded/smollm2-135m-instruct"}}, None, "no answer is billed. Set `evaluation."),
        ({"teacher": {"model": "embedded/smollm2-135m-instruct"}}, 3.6, "1,000 answers of the student cost $0.10."),
        ({"teacher": {"model": "openai/my-model"}}, None, "the price of the teacher is not known. Set its `price`"),
        ({"teacher": {"model": "replay/big"}}, 3.6, "Set its `price` in task.yaml. 1,000 answers of the student cost"),
        ({"teacher": {"model": "embedded/a, openai/my-model"}}, None, "the price of the teacher is not known."),
    ],
)
def test_cost(facts: dict[str, dict[str, Any]], usd_per_hour: float | None, words: str) -> None:
    seconds = dict.fromkeys(YES, 0.1)
    assert words in _get(_summarize(_measure(YES, facts, seconds=seconds, usd_per_hour=usd_per_hour)), "Cost")


@pytest.mark.parametrize(
    ("teacher_usd", "words"),
    [
        (4.0, "The distillation took $6.02: 1,500 answers of the teacher, and 12 min 0 s of training. It has paid for "
              "itself after about 1,600 requests."),
        (0.1, "of training. The student costs no less, so it saves no money."),
        (None, None),
    ],
)  # fmt: skip
def test_what_the_distillation_took_and_when_it_has_paid_for_itself(
    teacher_usd: float | None, words: str | None
) -> None:
    facts = {"teacher": {"cost_usd_per_1k": teacher_usd}}
    metrics = _measure(YES, facts, seconds=dict.fromkeys(YES, 0.1), usd_per_hour=3.6)
    spent = None if teacher_usd is None else 1.5 * teacher_usd
    cost = DistillationCost(1500, spent, 720, 0.02, teacher_usd, 0.1)
    found = _get(_summarize(replace(metrics, distillation=cost)), "Cost")
    assert words in found if words else "The distillation" not in found


def test_the_key_figures_are_those_that_are_known() -> None:
    facts = {"teacher": {"cost_usd_per_1k": 4.0}}
    metrics = _measure(YES, facts, seconds={"distilled": 0.1, "teacher": 0.5}, usd_per_hour=3.6)
    cost = DistillationCost(1500, 6.0, 720, 0.02, 4.0, 0.1)
    assert _summarize(replace(metrics, distillation=cost)).figures == (
        ("Accuracy", "0.90", "teacher 0.95, human labels only 0.75"),
        ("One answer takes", "100 ms", "teacher 500 ms"),
        ("1,000 answers cost", "$0.10", "teacher $4.00"),
        ("Paid for itself after", "1,600 requests", "distilling took $6.02"),
    )
    untimed = _measure({"teacher": 190, "distilled": 180, "linear_probe": 170})
    assert _summarize(untimed).figures == (("Accuracy", "0.90", "teacher 0.95, linear probe 0.85"),)


def test_a_linear_probe_that_is_as_good_is_in_the_first_line() -> None:
    equal = _summarize(_measure(YES | {"linear_probe": 182}))
    assert equal.lead.endswith("A linear probe, trained on the same answers, is as good (91).")
    assert equal.next_steps[0].startswith("Use the distilled student")
    assert equal.next_steps[1].startswith("Or use the linear probe, which is as good")
    better = _summarize(_measure(YES | {"linear_probe": 199}))
    assert better.lead.endswith("But a linear probe, trained on the same answers, is better (100).")
    assert better.next_steps[0].startswith("Use the linear probe: a logistic regression")
    assert not any("the distilled student" in step for step in better.next_steps)
    behind = _summarize(_measure(YES | {"linear_probe": 150}))
    assert "linear probe" not in behind.lead
    assert "linear probe 75" in _get(behind, "Quality")


@pytest.mark.parametrize(
    ("own", "words"), [(0.01, "20 times faster"), (0.4, "2.0 times slower"), (0.2, "no difference"), (None, None)]
)
def test_speed(own: float | None, words: str | None) -> None:
    seconds = {"teacher": 0.2} | ({} if own is None else {"distilled": own})
    meaning = dict(_summarize(_measure(YES, seconds=seconds)).meaning)
    assert (words in meaning["Speed"]) if words else "Speed" not in meaning


def test_a_recorded_teacher_has_no_latency_and_the_student_has_one() -> None:
    speed = _get(_summarize(_measure(YES, seconds={"distilled": 0.02})), "Speed")
    assert speed == "one answer takes the student 20 ms; the teacher was not timed."


def test_an_embedded_teacher_is_for_trying_out() -> None:
    embedded = {"teacher": {"model": "embedded/smollm2-135m-instruct"}}
    assert any("Ask a larger teacher" in step for step in _summarize(_measure(NO, embedded)).next_steps)
    assert not any("larger teacher" in step for step in _summarize(_measure(YES, embedded)).next_steps)
    paid = {"teacher": {"model": "openai/gpt-4o-mini"}}
    weak = _summarize(_measure({"teacher": 100, "base": 180, "distilled": 120}, paid))
    assert any(step.startswith("Choose a stronger teacher") for step in weak.next_steps)


def test_the_most_frequent_mistake_is_named() -> None:
    rows = [row(s, f"g{i}", "card", "card" if i % 2 else "refund") for i in range(20) for s in ("teacher", "distilled")]
    summary = _summarize(compute_metrics(table(rows), {}, LABELS, EvaluationSpec()))
    assert any("“card” was answered as “refund” 10 times" in step for step in summary.next_steps)
    silent = [row("distilled", f"g{i}", "card", "card" if i % 2 else None) for i in range(20)]
    summary = _summarize(compute_metrics(table(silent), {}, LABELS, EvaluationSpec()))
    assert any("“card” was answered without a label 10 times" in step for step in summary.next_steps)
    assert not any("mistake" in step for step in _summarize(_measure(dict.fromkeys(YES, ITEMS))).next_steps)


def test_needed_items_follow_from_the_width_of_the_interval() -> None:
    """Fleiss (1981): (1.96 + 0.84)² times the variance over the squared difference; here with discordant shares."""
    error = 0.04
    interval = Interval(0.0, -1.959964 * error, 1.959964 * error)
    needed = estimate_needed_items(interval, 250, 0.05, 0.95, 0.8)
    assert needed == pytest.approx(250 * ((1.959964 + 0.841621) * error / 0.05) ** 2, abs=1)
    assert estimate_needed_items(Interval(0.1), 250, 0.05, 0.95, 0.8) is None


def _sentence(right: dict[str, int], word: str, items: int = ITEMS) -> str:
    return _get(_summarize(_measure(right, items=items)), word)


@pytest.mark.parametrize(
    ("distilled", "items", "answer"),
    [
        (1870, 2000, "Yes: the student is at most 5 points below the teacher, and the test shows it ("),
        (1600, 2000, "Not for everything: the student is more than 5 points below the teacher ("),
        (92, 100, "Not shown yet: the student seems to be at most 5 points below the teacher ("),
        (88, 100, "Probably not for everything: the student seems to be more than 5 points below the teacher, but 100"),
    ],
)
def test_may_i_switch(distilled: int, items: int, answer: str) -> None:
    right = {"teacher": items * 95 // 100, "base": items // 2, "distilled": distilled}
    assert _sentence(right, "Switch", items).startswith(answer)


def test_without_a_teacher_nothing_can_be_replaced() -> None:
    assert _sentence({"base": 100, "distilled": 180}, "Switch").startswith("Unknown: the teacher answered no golden")


def test_the_risk_names_own_errors_and_confidence_that_misleads() -> None:
    metrics = _measure(YES)
    origins = metrics.golden.systems["distilled"].errors
    assert origins is not None
    risk = _get(_summarize(metrics), "Risk")
    assert risk.startswith(f"20 of 200 answers are wrong, {origins.own} of them where the teacher is right.")
    sure = Reliability(200, stated=0.98, right=0.9, ece=0.08, chance_ece=0.05, bins=())
    told = build_plain_summary(metrics, recommend(metrics), "mail", "small", sure)
    assert _get(told, "Risk").endswith(
        "The student is too sure: it states 98 % on average, and 90 % of its answers are right."
    )
    calm = replace(sure, ece=0.01)
    assert _get(build_plain_summary(metrics, recommend(metrics), "mail", "small", calm), "Risk") == risk


def test_the_days_until_it_has_paid_for_itself_depend_on_the_traffic() -> None:
    cost = DistillationCost(100, 9.0, 60.0, 1.0, 4.0, 0.1, machine_usd_per_hour=0.1, requests_per_day=1000)
    metrics = replace(_measure(YES, {"teacher": {"cost_usd_per_1k": 4.0}, "distilled": {"cost_usd_per_1k": 0.1}}))
    said = _get(_summarize(replace(metrics, distillation=cost)), "Cost")
    assert "It has paid for itself after about 2,600 requests, which is 3 days at 1,000 a day, or 6 days on a " in said
    quiet = _get(_summarize(replace(metrics, distillation=replace(cost, requests_per_day=100))), "Cost")
    assert "which is 26 days at 100 a day; a machine rented for it around the clock would cost more than" in quiet
    assert "a day" not in _get(_summarize(replace(metrics, distillation=replace(cost, requests_per_day=None))), "Cost")


def test_a_student_without_anything_over_the_teacher_is_no_reason_to_switch() -> None:
    facts = {"teacher": {"cost_usd_per_1k": 0.05}}
    summary = _summarize(_measure(YES, facts, seconds=dict.fromkeys(YES, 0.1), usd_per_hour=3.6))
    assert summary.lead == (
        "Distilling does not pay here. The student saves no money: 1,000 of its answers cost $0.10, and $0.05 with the "
        "teacher. Better keep the teacher."
    )
    assert summary.next_steps[0].startswith("Keep the teacher: ")


def test_a_student_that_saves_little_is_not_called_more_expensive() -> None:
    """It is cheaper than the teacher, but takes years to pay for itself."""
    seconds = {"teacher": 0.5, "distilled": 2.0, "base": 2.0}
    facts = {"teacher": {"cost_usd_per_1k": 0.1}}
    metrics = _measure({"teacher": 190, "base": 20, "distilled": 180}, facts, seconds=seconds, usd_per_hour=0.1)
    cost = DistillationCost(100, 1.0, 60, 0.1, 0.1, 0.0555, 0.1, requests_per_day=10)
    metrics = replace(metrics, distillation=cost)
    summary = _summarize(metrics)
    assert recommend(metrics).money == "late"
    assert summary.next_steps[0].startswith("Keep the teacher: the student saves little or no money")


def test_the_risk_is_never_empty() -> None:
    """Without a teacher and with one slice there is still something to say."""
    alone = _get(_summarize(_measure({"base": 20, "distilled": 180})), "Risk")
    assert alone == "20 of 200 answers are wrong; there is no teacher to compare them with."
    graded = replace(_measure({"base": 20, "distilled": 180}), metric="rouge_l")
    assert "No figure shows one" in _get(_summarize(graded), "Risk")
