"""Bounds of a parity check, and the comparison on dev."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill_dagster.kinds import Kind
from distill_dagster.release.parity import compare_on_dev, count_rows_for_margin, find_largest, judge_parity
from distill_dagster.release.types import DevItem, ExportSource
from distill_dagster.student.types import StudentPrompt


class ExactKind:
    def score(self, answer: Any, reference: Any) -> float:
        return float(answer == reference)


class GradedKind:
    def score(self, answer: Any, reference: Any) -> float:
        return 1 - abs(float(answer) - float(reference))


def build_source(kind: Any, references: list[Any], answers: list[Any]) -> ExportSource:
    """A source of which only what the comparison reads is real."""
    dev = tuple(
        DevItem(str(n), StudentPrompt.from_text("?"), reference, answer, kind.score(answer, reference))
        for n, (reference, answer) in enumerate(zip(references, answers, strict=True))
    )
    unused: Any = SimpleNamespace()
    checked: Kind = kind
    folder = Path()
    return ExportSource(
        "task", "student", folder, folder, unused, checked, (), unused, folder, (), dev, wanted=(), margin=0.05
    )


def test_a_figure_beyond_its_bound_is_named() -> None:
    good = judge_parity("conversion", "a.onnx", {"max_log_prob_difference": 0.01, "agreement": 1.0},
                        {"max_log_prob_difference": 0.05}, {"agreement": 0.95})  # fmt: skip
    assert good.passed
    assert good.bounds == {"max_log_prob_difference": 0.05, "agreement": 0.95}
    bad = judge_parity(
        "quantization", "a.onnx", {"mean_kl": 0.2, "agreement": 0.9}, {"mean_kl": 0.1}, {"agreement": 0.95}
    )
    assert not bad.passed
    assert bad.text == "a.onnx: mean kl is 0.2, more than 0.1; agreement is 0.9, less than 0.95."


@pytest.mark.parametrize("bounds", [({"figure": 1.0}, {}), ({}, {"figure": 1.0})])
def test_what_is_not_a_number_fails(bounds: tuple[dict[str, float], dict[str, float]]) -> None:
    assert not judge_parity("conversion", "a", {"figure": math.nan}, *bounds).passed


def test_a_difference_that_is_not_a_number_is_the_largest() -> None:
    assert find_largest([]) == 0
    assert find_largest([0.1, 0.3, 0.2]) == 0.3
    for differences in ([math.nan, 0.1], [0.1, math.nan]):  # `max` keeps what comes first
        assert find_largest(differences) == math.inf


def test_equal_answers_are_as_good_if_there_are_enough_rows() -> None:
    enough = count_rows_for_margin(0.05, 0.95)
    assert enough == 52
    for rows, passes in ((enough, True), (enough - 1, False)):
        source = build_source(ExactKind(), ["a"] * rows, ["a"] * rows)
        figures = compare_on_dev(source, ["a"] * rows)
        assert (figures["dev_agreement"], figures["dev_score"]) == (1, 1)
        assert (figures["dev_p_value"] < 0.05) == passes
    assert compare_on_dev(build_source(ExactKind(), [], []), [])["dev_p_value"] == 1


def test_lost_answers_are_seen() -> None:
    source = build_source(ExactKind(), ["a"] * 100, ["a"] * 100)
    figures = compare_on_dev(source, ["a"] * 92 + ["b"] * 7 + [None])
    assert figures["dev_agreement"] == 0.92
    assert figures["dev_p_value"] > 0.5
    assert figures["dev_adapter_score"] - figures["dev_score"] == pytest.approx(0.08)


def test_graded_scores_are_compared_too() -> None:
    references = [n / 100 for n in range(80)]
    source = build_source(GradedKind(), references, references)
    near = [r + (0.02 if n % 2 else 0) for n, r in enumerate(references)]
    assert compare_on_dev(source, near)["dev_p_value"] < 0.05
    far = [r + 0.2 for r in references]
    assert compare_on_dev(source, far)["dev_p_value"] > 0.95
