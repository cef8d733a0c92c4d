"""From samples to candidates, with answers worked out by hand."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from distill_dagster.curation.candidates import FLOOR, candidates, prior_of, uniform_prior
from distill_dagster.prompts.seeds import seed_prompts
from distill_dagster.tables import COMPLETIONS, PRIOR, SCORED, conform, data_version, frame_of
from distill_dagster.taskfiles import Slice

LABELS = ["refund", "delivery", "login"]
PROMPTS = seed_prompts(
    "shop", Slice.model_validate({"description": "d", "seeds": [f"text number {n}" for n in range(3)]})
)
IDS = PROMPTS["prompt_id"].to_list()


def sample(prompt: int, index: int, answer: str | None = None, **soft: float) -> dict[str, Any]:
    """One completion: with soft labels where there are any, else with an answer alone."""
    row: dict[str, Any] = dict.fromkeys(COMPLETIONS)
    said = answer or (max(soft, key=lambda k: soft[k]) if soft else None)
    row |= {"completion_id": f"c{prompt}{index}", "prompt_id": IDS[prompt], "sample_index": index, "status": "ok"}
    row |= {"teacher": "t", "answer": f'"{said}"' if said else None}
    return row | {"soft_labels": [{"label": k, "prob": v} for k, v in soft.items()] if soft else None}


def completions(*rows: dict[str, Any]) -> pl.DataFrame:
    return frame_of(list(rows), COMPLETIONS, ("prompt_id", "sample_index"))


def prior(*rows: tuple[int, str, float]) -> pl.DataFrame:
    frame = pl.DataFrame([(*row, 1) for row in rows], schema=PRIOR, orient="row")
    return conform(frame, PRIOR, ("sample_index", "label"))


def scored(*rows: dict[str, Any], prior_: pl.DataFrame | None = None) -> dict[int, dict[str, Any]]:
    """The candidates by the number of their prompt."""
    table = candidates(PROMPTS, completions(*rows), uniform_prior(LABELS, 3) if prior_ is None else prior_, LABELS)
    assert dict(table.schema) == dict(SCORED)
    assert table["prompt_id"].to_list() == IDS
    return dict(enumerate(table.to_dicts()))


def soft(row: dict[str, Any]) -> dict[str, float]:
    return {entry["label"]: entry["prob"] for entry in row["soft_labels"]}


def test_calibration_by_hand() -> None:
    known = prior(
        *[(0, "refund", 0.5), (0, "delivery", 0.25), (0, "login", 0.25)],
        *[(1, label, 1 / 3) for label in LABELS],
    )
    row = scored(
        sample(0, 0, refund=0.6, delivery=0.3, login=0.1),  # divided: 1.2, 1.2, 0.4 of 2.8
        sample(0, 1, refund=0.2, delivery=0.8),  # unchanged
        prior_=known,
    )[0]
    assert row["answer"] == '"delivery"'
    assert soft(row) == {
        "delivery": pytest.approx((1.2 / 2.8 + 0.8) / 2, abs=1e-6),
        "refund": pytest.approx((1.2 / 2.8 + 0.2) / 2, abs=1e-6),
        "login": pytest.approx(0.4 / 2.8 / 2, abs=1e-6),
    }
    assert list(soft(row)) == ["delivery", "refund", "login"]
    assert row["confidence"] == soft(row)["delivery"]
    assert row["agreement"] == 0.5  # the first sample is a tie, which goes to refund
    assert row["completion_ids"] == ["c00", "c01"]
    assert (row["teacher"], row["status"], row["words"]) == ("t", "ok", 3)


def test_a_uniform_prior_changes_nothing() -> None:
    row = scored(sample(0, 0, refund=0.5, delivery=0.3, login=0.2))[0]
    assert soft(row) == {"refund": 0.5, "delivery": 0.3, "login": 0.2}


def test_a_sample_without_a_prior_is_not_lost() -> None:
    known = prior(*[(0, label, share) for label, share in zip(LABELS, (0.5, 0.25, 0.25), strict=True)])
    rows = scored(
        sample(0, 0, refund=0.5, login=0.5), sample(0, 1, refund=0.5, login=0.5), sample(1, 1, login=1.0), prior_=known
    )
    assert soft(rows[0])["login"] == pytest.approx((2 / 3 + 1 / 2) / 2, abs=1e-5)
    assert rows[1]["answer"] == '"login"'
    empty = scored(sample(0, 0, refund=0.25, login=0.75), prior_=prior().clear())
    assert soft(empty[0]) == pytest.approx({"login": 0.75, "refund": 0.25, "delivery": FLOOR}, abs=2e-6)


def test_votes() -> None:
    rows = scored(*(sample(0, n, said) for n, said in enumerate(["login", "refund", "login"])))
    assert (rows[0]["answer"], rows[0]["agreement"], rows[0]["confidence"]) == (
        '"login"',
        pytest.approx(2 / 3),
        0.666667,
    )
    assert soft(rows[0]) == {"login": 0.666667, "refund": 0.333333}


def test_ties_go_to_the_label_that_stands_first_in_the_task() -> None:
    rows = scored(
        *[sample(0, 0, "login"), sample(0, 1, "delivery")],
        *[sample(1, 0, login=0.5, refund=0.5), sample(1, 1, refund=0.5, login=0.5)],
        sample(2, 0, login=0.4, delivery=0.4, refund=0.2),
    )
    assert [rows[n]["answer"] for n in range(3)] == ['"delivery"', '"refund"', '"delivery"']
    assert [rows[n]["agreement"] for n in range(3)] == [0.5, 1.0, 1.0]


def test_agreement_is_of_usable_samples() -> None:
    failed = sample(0, 2) | {"status": "failed", "error": "timeout"}
    unclear = sample(0, 1)
    row = scored(sample(0, 0, refund=0.9, login=0.1), unclear, failed)[0]
    assert (row["agreement"], row["status"], row["error"]) == (1.0, "ok", "timeout")
    assert row["completion_ids"] == ["c00", "c01", "c02"]


def test_prompts_without_an_answer_are_candidates_too() -> None:
    rows = scored(sample(0, 0), sample(1, 0) | {"status": "failed", "error": "no", "completion_id": "x"})
    assert [(rows[n]["status"], rows[n]["answer"], rows[n]["agreement"]) for n in range(3)] == [
        ("ok", None, None),
        ("failed", None, None),
        (None, None, None),
    ]
    assert rows[1]["error"] == "no"


def test_the_order_of_completions_does_not_count() -> None:
    rows = [
        sample(p, s, refund=0.3 + p / 10 + s / 100, login=0.2, delivery=0.1 * s) for p in range(3) for s in range(3)
    ]
    one, other = (
        candidates(
            PROMPTS.sample(3, shuffle=True, seed=n),
            pl.concat([completions(r) for r in turned]),
            uniform_prior(LABELS, 3),
            LABELS,
        )
        for n, turned in ((1, rows), (2, rows[::-1]))
    )
    assert data_version(one) == data_version(other)


def test_the_prior_is_the_geometric_mean_of_each_sample() -> None:
    table = prior_of(
        completions(
            *[sample(0, 0, refund=0.8, delivery=0.1, login=0.1), sample(1, 0, refund=0.2, delivery=0.4, login=0.4)],
            *[sample(0, 1, refund=1.0), sample(2, 1) | {"status": "failed"}, sample(1, 1, "login")],
        ),
        LABELS,
    )
    shares = {(s, label): share for s, label, share, _ in table.iter_rows()}
    total = 0.4 + 0.2 + 0.2  # square roots of 0.16, 0.04, 0.04
    assert [shares[0, label] for label in LABELS] == pytest.approx([0.4 / total, 0.2 / total, 0.2 / total])
    assert [shares[1, label] for label in LABELS] == pytest.approx([1, FLOOR, FLOOR], rel=1e-3)
    assert {(s, n) for s, _, _, n in table.iter_rows()} == {(0, 2), (1, 1)}


def test_the_uniform_prior() -> None:
    table = uniform_prior(LABELS, 2)
    assert table.height == 6
    assert set(table["prob"]) == {1 / 3}
