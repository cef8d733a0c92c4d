"""From samples to candidates, compared with results computed by hand."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from distill_dagster.curation.candidates.free_text import choose_free_text_candidates
from distill_dagster.curation.candidates.label_answers import choose_label_candidates
from distill_dagster.curation.candidates.priors import (
    MIN_LABEL_PROB,
    build_uniform_prior,
    estimate_prior,
    estimate_vote_prior,
)
from distill_dagster.kinds import get_kind
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.schemas import COMPLETIONS, SCORED, TEACHER_PRIOR, build_frame, conform_to_schema
from distill_dagster.tasks import Slice
from tests.support.kinds import build_task

LABELS = ["refund", "delivery", "login"]
PROMPTS = build_seed_prompts(
    "shop", Slice.model_validate({"description": "d", "seeds": [f"text number {n}" for n in range(3)]})
)
IDS = PROMPTS["prompt_id"].to_list()


def sample(prompt: int, index: int, answer: str | None = None, **soft: float) -> dict[str, Any]:
    """One completion, with soft labels if there are any, otherwise with only an answer."""
    row: dict[str, Any] = dict.fromkeys(COMPLETIONS)
    said = answer or (max(soft, key=lambda k: soft[k]) if soft else None)
    row |= {"completion_id": f"c{prompt}{index}", "prompt_id": IDS[prompt], "sample_index": index, "status": "ok"}
    row |= {"teacher": "t", "answer": f'"{said}"' if said else None}
    return row | {"soft_labels": [{"label": k, "prob": v} for k, v in soft.items()] if soft else None}


def completions(*rows: dict[str, Any]) -> pl.DataFrame:
    return build_frame(list(rows), COMPLETIONS, ("prompt_id", "sample_index"))


def prior(*rows: tuple[int, str, float]) -> pl.DataFrame:
    frame = pl.DataFrame([(*row, 1) for row in rows], schema=TEACHER_PRIOR, orient="row")
    return conform_to_schema(frame, TEACHER_PRIOR, ("sample_index", "label"))


def scored(*rows: dict[str, Any], prior_: pl.DataFrame | None = None) -> dict[int, dict[str, Any]]:
    """The candidates by the number of the prompt."""
    table = choose_label_candidates(
        PROMPTS, completions(*rows), build_uniform_prior(LABELS, 3) if prior_ is None else prior_, LABELS
    )
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
    assert soft(empty[0]) == pytest.approx({"login": 0.75, "refund": 0.25, "delivery": MIN_LABEL_PROB}, abs=2e-6)


def test_votes() -> None:
    rows = scored(*(sample(0, n, said) for n, said in enumerate(["login", "refund", "login"])))
    assert (rows[0]["answer"], rows[0]["agreement"], rows[0]["confidence"]) == (
        '"login"',
        pytest.approx(2 / 3),
        0.666667,
    )
    assert soft(rows[0]) == {"login": 0.666667, "refund": 0.333333}


def test_votes_are_divided_by_the_vote_prior() -> None:
    """On 9 balanced prompts draw 0 answers refund 7 times, delivery twice and login never; draw 1 has none."""
    said = ["refund"] * 7 + ["delivery"] * 2
    votes = pl.concat([completions(sample(0, 0, label)) for label in said])
    known = estimate_vote_prior(votes, LABELS, draws=2)
    assert {(s, k): (p, n) for s, k, p, n in known.iter_rows()} == {
        (0, "refund"): (pytest.approx(8 / 12), 9),
        (0, "delivery"): (pytest.approx(3 / 12), 9),
        (0, "login"): (pytest.approx(1 / 12), 9),
    }
    table = choose_label_candidates(
        PROMPTS,
        completions(
            *[sample(0, 0, "refund"), sample(0, 2, "refund"), sample(0, 4, "delivery")],
            *[sample(1, 0, "refund"), sample(1, 1, "delivery")],
        ),
        prior(*[(s, label, share) for s in (0, 2, 4) for _, label, share, _ in known.rows()]),
        LABELS,
        correct_votes=True,
    )
    rows = dict(enumerate(table.to_dicts()))
    # Two votes of 12/8 against one of 12/3: the label that is hardly ever said wins.
    assert rows[0]["answer"] == '"delivery"'
    assert soft(rows[0]) == {"delivery": pytest.approx(4 / 7, abs=1e-6), "refund": pytest.approx(3 / 7, abs=1e-6)}
    assert rows[0]["confidence"] == soft(rows[0])["delivery"]
    assert rows[0]["agreement"] == pytest.approx(1 / 3), "it is still one sample of three that says so"
    # A sample without a prior counts as under a uniform one: 12/8 against 3.
    assert soft(rows[1]) == {"delivery": pytest.approx(3 / 4.5, abs=1e-6), "refund": pytest.approx(1.5 / 4.5, abs=1e-6)}
    flat = choose_label_candidates(
        PROMPTS, completions(*(sample(0, n, "login") for n in range(3))), known, LABELS, correct_votes=True
    )
    assert soft(flat.to_dicts()[0]) == {"login": 1.0}


def test_all_samples_of_a_draw_share_its_votes() -> None:
    asked = completions(sample(0, 0, "refund"), sample(0, 2, "refund"), sample(0, 1, "login"))
    known = {(s, label): share for s, label, share, _ in estimate_vote_prior(asked, LABELS, draws=2).iter_rows()}
    assert known[0, "refund"] == known[2, "refund"] == pytest.approx(3 / 5)
    assert known[1, "login"] == pytest.approx(2 / 4)


def test_labels_after_reasoning_are_weighted_the_same_way() -> None:
    task = build_task("classification", reasoning=True)
    known = prior((0, "refund", 0.75), (0, "delivery", 0.25), (1, "refund", 0.75), (1, "delivery", 0.25))
    rows = completions(sample(0, 0, "refund"), sample(0, 1, "refund"), sample(0, 2, "delivery"), sample(1, 0, "refund"))
    found = choose_free_text_candidates(get_kind(task), PROMPTS, rows, known).to_dicts()
    assert (found[0]["answer"], found[0]["agreement"]) == ('"refund"', pytest.approx(2 / 3, abs=1e-6))
    share = (2 / 0.75) / (2 / 0.75 + 2)  # the third sample has no prior, and one of two labels counts twice
    assert (found[0]["confidence"], soft(found[0])["refund"]) == pytest.approx((share, share), abs=1e-6)
    assert (found[1]["answer"], found[1]["confidence"], found[1]["soft_labels"]) == ('"refund"', 1.0, None)


def test_ties_go_to_the_first_label_of_the_task() -> None:
    rows = scored(
        *[sample(0, 0, "login"), sample(0, 1, "delivery")],
        *[sample(1, 0, login=0.5, refund=0.5), sample(1, 1, refund=0.5, login=0.5)],
        sample(2, 0, login=0.4, delivery=0.4, refund=0.2),
    )
    assert [rows[n]["answer"] for n in range(3)] == ['"delivery"', '"refund"', '"delivery"']
    assert [rows[n]["agreement"] for n in range(3)] == [0.5, 1.0, 1.0]


def test_agreement_counts_usable_samples_only() -> None:
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
        choose_label_candidates(
            PROMPTS.sample(3, shuffle=True, seed=n),
            pl.concat([completions(r) for r in turned]),
            build_uniform_prior(LABELS, 3),
            LABELS,
        )
        for n, turned in ((1, rows), (2, rows[::-1]))
    )
    assert compute_data_version(one) == compute_data_version(other)


def test_the_prior_is_the_geometric_mean_of_each_sample() -> None:
    table = estimate_prior(
        completions(
            *[sample(0, 0, refund=0.8, delivery=0.1, login=0.1), sample(1, 0, refund=0.2, delivery=0.4, login=0.4)],
            *[sample(0, 1, refund=1.0), sample(2, 1) | {"status": "failed"}, sample(1, 1, "login")],
        ),
        LABELS,
    )
    shares = {(s, label): share for s, label, share, _ in table.iter_rows()}
    total = 0.4 + 0.2 + 0.2  # square roots of 0.16, 0.04, 0.04
    assert [shares[0, label] for label in LABELS] == pytest.approx([0.4 / total, 0.2 / total, 0.2 / total])
    assert [shares[1, label] for label in LABELS] == pytest.approx([1, MIN_LABEL_PROB, MIN_LABEL_PROB], rel=1e-3)
    assert {(s, n) for s, _, _, n in table.iter_rows()} == {(0, 2), (1, 1)}


def test_the_uniform_prior() -> None:
    table = build_uniform_prior(LABELS, 2)
    assert table.height == 6
    assert set(table["prob"]) == {1 / 3}
