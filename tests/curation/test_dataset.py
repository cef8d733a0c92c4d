"""Thresholds, duplicates, decontamination and split."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_dagster.config import CurationSpec
from distill_dagster.config.balance import BalanceSpec
from distill_dagster.config.dedup import DecontaminationSpec
from distill_dagster.core.checks import CheckResult
from distill_dagster.core.text import normalize_text
from distill_dagster.curation.dataset.curate import CuratedDataset, curate_dataset, list_drop_reasons
from distill_dagster.curation.dataset.human_rows import build_human_candidates
from distill_dagster.curation.dataset.invariants import check_contamination, check_dataset
from distill_dagster.curation.filters import FilterSettings, select_filters
from distill_dagster.curation.task_view import TaskView
from distill_dagster.prompts.seeds import compute_prompt_id
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.messages import get_user_text, make_user_messages
from distill_dagster.tables.schemas import DATASET, REJECTED, SCORED, build_frame
from distill_dagster.tasks import LabelledRow

LABELS = ["refund", "delivery", "data loss"]
FILTERS = {"min_agreement": 0.5, "min_confidence": 0.6, "min_words": 2, "max_words": 5, "min_judge": 0.6}
FILTERS["min_teacher_agreement"] = 0.6
STRICT = CurationSpec.model_validate(
    {"filters": FILTERS | {"target_label": "drop_disagreement"}, "validation_share": 0.25}
)

DROP_REASONS = list_drop_reasons(
    select_filters(FilterSettings.model_validate(STRICT.filters), TaskView(labels=tuple(LABELS)))
)


def scored(text: str, slice_: str = "shop", **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SCORED)
    row |= {
        "prompt_id": compute_prompt_id(make_user_messages(text)),
        "slice": slice_,
        "origin": "human",
        "messages": make_user_messages(text),
    }
    row |= {"teacher": "t", "status": "ok", "answer": '"refund"', "answer_kind": "label", "agreement": 1.0}
    row |= {"confidence": 0.9, "words": len(text.split()), "completion_ids": ["c"], "judge_score": 0.75}
    row |= {"soft_labels": [{"label": "refund", "prob": 0.9}, {"label": "data loss", "prob": 0.1}]}
    return row | changes


def table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return build_frame(rows, SCORED, ("prompt_id", "slice"))


def cut(*rows: dict[str, Any], held_out: Iterable[str] = (), spec: CurationSpec = STRICT) -> CuratedDataset:
    return curate_dataset(table(list(rows)), set(held_out), LABELS, spec)


def reasons(curated: CuratedDataset) -> dict[str, tuple[str, str | None]]:
    """By text: the drop reason and its detail."""
    return {get_user_text(r["messages"]): (r["drop_reason"], r["drop_detail"]) for r in curated.rejected.to_dicts()}


GOLDEN = {normalize_text("of golden")}
DROPS: list[tuple[dict[str, Any], str, str]] = [
    ({"status": "truncated"}, "truncated", "truncated"),
    ({"status": "refused", "error": "the teacher refused: no"}, "refused", "the teacher refused: no"),
    ({"status": "failed", "error": "timeout"}, "no_answer", "timeout"),
    ({"answer": None, "answer_kind": "number", "error": "no number"}, "invalid_answer", "no number"),
    ({"answer": '"Refund"'}, "invalid_label", '"Refund"'),
    ({"words": 1}, "too_short", "1 words"),
    ({"words": 6}, "too_long", "6 words"),
    ({"agreement": 0.4999}, "low_agreement", "agreement 0.5"),
    ({"agreement": None}, "low_agreement", ""),
    ({"confidence": 0.5}, "low_confidence", "confidence 0.5"),
    ({"teacher_agreement": 0.5}, "teachers_disagree", "agreement of teachers 0.5"),
    ({"judge_score": 0.5}, "low_judge", "judge score 0.5"),
    ({"judge_score": None}, "low_judge", "not judged"),
    ({"target_label": "data loss"}, "other_label", 'meant as data loss, answered "refund"'),
    ({"messages": make_user_messages("OF\u00a0golden\n")}, "contaminated", "same text as a golden or dev row"),
    (
        {"messages": make_user_messages("Kept\u3000Text")},
        "duplicate",
        f"same text as {compute_prompt_id(make_user_messages('kept text'))}",
    ),
]


@pytest.mark.parametrize(("change", "reason", "detail"), DROPS, ids=[f"{r}-{d}" for _, r, d in DROPS])
def test_each_drop_reason(change: dict[str, Any], reason: str, detail: str) -> None:
    row = scored("another text", **({"confidence": 0.8} | change))
    found = cut(scored("kept text"), row, held_out=GOLDEN)
    assert found.dataset["prompt_id"].to_list() == [compute_prompt_id(make_user_messages("kept text"))]
    [rejected] = found.rejected.to_dicts()
    assert (rejected["drop_reason"], rejected["drop_detail"] or "") == (reason, detail)
    assert found.count_reasons() == dict.fromkeys(DROP_REASONS, 0) | {reason: 1}


def test_every_drop_reason_is_tested() -> None:
    of_several = {"near_duplicate", "semantic_duplicate", "over_cap"}  # see test_steps.py
    assert {reason for _, reason, _ in DROPS} == set(DROP_REASONS) - of_several


@pytest.mark.parametrize("first", range(len(DROPS)))
def test_the_first_reason_wins(first: int) -> None:
    """A row that this rule and every later one would drop names this one."""
    merged: dict[str, Any] = {}
    for change, _, _ in reversed(DROPS[first:]):
        merged |= change
    found = cut(scored("kept text"), scored("another text", **merged), held_out=GOLDEN)
    assert found.rejected["drop_reason"].to_list() == [DROPS[first][1]]


def test_a_threshold_keeps_what_equals_it() -> None:
    spec = CurationSpec.model_validate(
        {"filters": {"min_agreement": 2 / 3, "min_confidence": 0.7, "min_words": 3, "max_words": 3}}
    )
    found = cut(scored("just three words", agreement=2 / 3, confidence=0.7), spec=spec)
    assert found.dataset.height == 1


def test_without_thresholds_an_unscored_row_is_kept() -> None:
    assert cut(scored("a text", agreement=None, confidence=None), spec=CurationSpec()).dataset.height == 1


def test_duplicates_across_slices_keep_the_human_row_with_the_highest_confidence() -> None:
    rows = [
        scored("Same text", "web", confidence=0.99, origin="synthetic"),
        scored("same  text", "shop", confidence=0.7),
        scored("SAME TEXT", "app", confidence=0.8),
        scored("another text", "web"),
    ]
    for turned in (rows, rows[::-1]):
        found = cut(*turned)
        assert sorted(get_user_text(r["messages"]) for r in found.dataset.to_dicts()) == ["SAME TEXT", "another text"]
        kept = compute_prompt_id(make_user_messages("SAME TEXT"))
        assert reasons(found) == dict.fromkeys(("Same text", "same  text"), ("duplicate", f"same text as {kept}"))


def test_a_human_answer_is_preferred_to_a_teacher_of_equal_confidence() -> None:
    human = build_human_candidates([LabelledRow(id="h", text="one text", label="data loss", slice="web")])
    for slice_ in ("app", "shop", "web"):
        taught = table([scored("one text", slice_, confidence=1.0), scored("one  text", slice_, confidence=1.0)])
        for frames in ([human, taught], [taught, human]):
            found = curate_dataset(pl.concat(frames), set(), LABELS, CurationSpec())
            assert found.dataset.select("answer", "teacher", "slice").rows() == [('"data loss"', None, "web")]
            assert found.rejected["drop_reason"].to_list() == ["duplicate"] * 2


def test_human_answers_that_contradict_each_other_are_settled_in_one_way() -> None:
    rows = [
        LabelledRow(id="1", text="one text", label="refund"),
        LabelledRow(id="2", text="one text", label="data loss"),
    ]
    versions = set()
    for turned in (rows, rows[::-1]):
        found = curate_dataset(build_human_candidates(turned), set(), LABELS, CurationSpec())
        assert found.dataset["answer"].to_list() == ['"data loss"']
        versions.add((compute_data_version(found.dataset), compute_data_version(found.rejected)))
    assert len(versions) == 1


def test_human_rows_are_for_training() -> None:
    rows = build_human_candidates([LabelledRow(id=str(n), text=f"text {n}", label="refund") for n in range(50)])
    dataset = curate_dataset(rows, {"text 7"}, LABELS, CurationSpec(validation_share=0.5)).dataset
    assert set(dataset["split"]) == {"train"}
    assert dataset.height == 49


def test_human_answers_have_the_weight_of_the_task() -> None:
    people = build_human_candidates([LabelledRow(id="h", text="a refund", label="refund")])
    candidates = pl.concat([table([scored("another refund")]), people])
    spec = STRICT.model_copy(update={"human_weight": 2.5})
    kept = curate_dataset(candidates, set(), LABELS, spec).dataset
    assert {r["teacher"]: r["weight"] for r in kept.to_dicts()} == {"t": 1.0, None: 2.5}


def test_the_same_prompt_in_two_slices_is_kept_once() -> None:
    rows = [scored("one text", slice_) for slice_ in ("web", "app", "shop")]
    for turned in (rows, rows[::-1], [rows[1], rows[2], rows[0]]):
        found = cut(*turned)
        assert found.dataset["slice"].to_list() == ["app"]
        assert found.rejected["slice"].to_list() == ["shop", "web"]


def test_a_dropped_row_does_not_drop_its_duplicate() -> None:
    found = cut(scored("One text", agreement=0.1), scored("one text", confidence=0.7))
    assert get_user_text(found.dataset.to_dicts()[0]["messages"]) == "one text"
    assert reasons(found) == {"One text": ("low_agreement", "agreement 0.1")}


@pytest.mark.parametrize(
    "text",
    [
        "Où est ma carte",
        "OÙ EST MA CARTE",
        "  où\test\n ma  carte ",
        "ou\u0300 est ma carte",
        "où\u00a0est ma\u2003carte",
        "où\x1fest ma carte",
        "ｏù est ma carte",
    ],
)
def test_contamination_is_seen_through_spelling(text: str) -> None:
    found = cut(scored(text), scored("où est mon chat"), held_out={normalize_text("Où est ma carte")})
    assert {k: v[0] for k, v in reasons(found).items()} == {text: "contaminated"}


def test_a_kept_row() -> None:
    row = scored('say "x"\nplease', "web", answer='"data loss"', reasoning="since")
    [kept] = cut(row, spec=CurationSpec(validation_share=0)).dataset.to_dicts()
    assert [(m["role"], m["content"]) for m in kept["messages"]] == [
        ("user", 'say "x"\nplease'),
        ("assistant", "data loss"),
    ]
    assert (kept["answer"], kept["weight"], kept["split"], kept["slice"]) == ('"data loss"', 1.0, "train", "web")
    assert kept["soft_labels"] == row["soft_labels"]
    assert (kept["completion_ids"], kept["reasoning"], kept["teacher"]) == (["c"], "since", "t")


def test_an_empty_table_gives_an_empty_table() -> None:
    found = curate_dataset(pl.DataFrame(schema=SCORED), set(), LABELS, STRICT)
    assert (found.dataset.height, found.rejected.height) == (0, 0)
    assert dict(found.dataset.schema) == dict(DATASET)
    assert dict(found.rejected.schema) == dict(REJECTED)


def test_a_text_with_sql_is_only_a_text() -> None:
    text = "'); DROP TABLE candidates; -- \" $labels"
    assert cut(scored(text), spec=CurationSpec(), held_out={"' OR 1=1"}).dataset.height == 1


def test_the_split_is_stable() -> None:
    rows = [scored(f"text {n}") for n in range(400)]
    whole = dict(cut(*rows).dataset.select("prompt_id", "split").iter_rows())
    part = dict(
        cut(*rows[:100], *rows[300:], *(scored(f"new {n}", "web") for n in range(50)))
        .dataset.select("prompt_id", "split")
        .iter_rows()
    )
    assert all(part[id_] == whole[id_] for id_ in part.keys() & whole.keys())
    validation = sum(side == "validation" for side in whole.values())
    assert 60 < validation < 140  # a quarter, give or take five standard deviations
    other = cut(*rows, spec=STRICT.model_copy(update={"seed": 1}))
    assert dict(other.dataset.select("prompt_id", "split").iter_rows()) != whole
    assert set(cut(*rows, spec=STRICT.model_copy(update={"validation_share": 0})).dataset["split"]) == {"train"}


TEXTS = st.sampled_from(
    ["a", "one text", "One  Text", "two\u00a0words", "of golden", "Of Golden", "many words of a long text", "text"]
)
CANDIDATE = st.builds(
    lambda text, slice_, **changes: scored(text, slice_, **changes),
    TEXTS,
    st.sampled_from(["shop", "web", "app"]),
    status=st.sampled_from(["ok", "ok", "ok", "failed", None]),
    answer=st.sampled_from(['"refund"', '"data loss"', '"nonsense"', None]),
    agreement=st.sampled_from([None, 0.0, 0.5, 1.0]),
    confidence=st.sampled_from([None, 0.1, 0.6, 0.9]),
    origin=st.sampled_from(["human", "synthetic"]),
)
CANDIDATES = st.lists(CANDIDATE, max_size=14, unique_by=lambda row: (row["prompt_id"], row["slice"]))


@settings(max_examples=25)
@given(CANDIDATES, st.sampled_from([STRICT, CurationSpec()]), st.randoms(use_true_random=False))
def test_no_row_is_lost_and_the_order_of_rows_is_irrelevant(
    rows: list[dict[str, Any]], spec: CurationSpec, random: Any
) -> None:
    found = cut(*rows, held_out=GOLDEN, spec=spec)
    assert found.dataset.height + found.rejected.height == len(rows)
    assert set(found.rejected["drop_reason"]) <= set(DROP_REASONS)
    assert found.rejected["drop_reason"].null_count() == 0
    keys = [(r["prompt_id"], r["slice"]) for part in (found.dataset, found.rejected) for r in part.to_dicts()]
    assert sorted(keys) == sorted((r["prompt_id"], r["slice"]) for r in rows)
    texts = [normalize_text(get_user_text(r["messages"])) for r in found.dataset.to_dicts()]
    assert len(texts) == len(set(texts))
    assert not set(texts) & GOLDEN
    checks = {c.name: c.passed for c in check_dataset(len(rows), found.dataset, found.rejected, LABELS, 1)}
    assert checks["nothing_lost"]
    assert check_contamination(found.dataset, GOLDEN).passed

    turned = rows.copy()
    random.shuffle(turned)
    frames = [build_frame([row], SCORED, ("prompt_id",)) for row in turned]  # as they stand, unsorted
    again = curate_dataset(pl.concat(frames) if frames else pl.DataFrame(schema=SCORED), GOLDEN, LABELS, spec)
    assert compute_data_version(again.dataset) == compute_data_version(found.dataset)
    assert compute_data_version(again.rejected) == compute_data_version(found.rejected)
    assert again.dataset.equals(found.dataset)


def test_the_checks_of_a_dataset_can_fail() -> None:
    good = cut(scored("one text"), scored("another text", answer='"delivery"'), spec=CurationSpec(validation_share=0))
    both = table([scored("one text"), scored("another text")])

    def failed(dataset: pl.DataFrame, min_rows: int) -> set[str]:
        checks = check_dataset(both.height, dataset, good.rejected, LABELS, min_rows)
        return {check.name for check in checks if not check.passed}

    assert failed(good.dataset, 2) == {"label_coverage"}
    assert failed(good.dataset.head(1), 1) == {"nothing_lost", "enough_rows", "label_coverage"}
    assert failed(good.dataset, 3) == {"enough_rows", "label_coverage"}


def test_the_check_of_contamination_sees_equal_and_nearly_equal_texts() -> None:
    long = "my parcel came three days late and the box was wet so I want all of my money back at once please"
    dataset = cut(scored("one text"), scored(long), spec=CurationSpec(validation_share=0)).dataset
    spec = DecontaminationSpec()

    def check(item: str, held_out: Iterable[str] = (), spec: DecontaminationSpec | None = spec) -> CheckResult:
        items = pl.DataFrame({"id": ["golden:1"], "text": [item]})
        return check_contamination(dataset, set(held_out), items, spec)

    assert check("something else").passed
    assert not check("something else", {"one text"}).passed
    near = check(long.replace("at once please", "at once now"))
    assert not near.passed
    assert "like golden:1" in str(near.details["prompt_ids"])
    assert check(long.replace("at once please", "at once now"), spec=None).passed, "the task turned it off"


def test_answers_of_people_need_no_judge() -> None:
    row = scored("of a person", teacher=None, judge_score=None, confidence=1.0)
    assert cut(row).dataset.height == 1


def test_a_row_meant_for_another_label_keeps_the_teachers_answer_by_default() -> None:
    meant, answered = scored("meant so", target_label="refund"), scored("meant else", target_label="data loss")
    found = cut(meant, answered, spec=CurationSpec(validation_share=0))
    assert found.dataset["answer"].to_list() == ['"refund"'] * 2
    strict = cut(meant, answered)
    assert strict.dataset["prompt_id"].to_list() == [meant["prompt_id"]]


def test_a_floor_of_labels_keeps_unsure_rows_that_no_other_filter_drops() -> None:
    """`data loss` is hard: the teacher is never sure of it. A row that the judge rejects stays away."""
    rows = [scored(f"refund number {n} please") for n in range(3)]
    unsure: dict[str, Any] = {"answer": '"data loss"', "soft_labels": [{"label": "data loss", "prob": 0.4}]}
    rows += [scored(f"file {n} is gone", confidence=0.3 + n / 100, **unsure) for n in range(4)]
    rows.append(scored("all files are gone", confidence=0.49, judge_score=0.1, **unsure))
    filters = {"min_confidence": 0.5, "min_judge": 0.5}

    def count(**balance: Any) -> dict[str, int]:
        spec = CurationSpec(filters=filters, validation_share=0.0, balance=BalanceSpec(**balance))
        found = cut(*rows, spec=spec)
        assert found.kept_rows + sum(found.count_reasons().values()) == len(rows)
        assert ("low_judge" in found.rejected["drop_reason"]) == bool(balance), "with floors, low_confidence is last"
        return dict(found.dataset["answer"].value_counts().iter_rows())

    assert count() == {'"refund"': 3}
    assert count(floors={"label": 2}) == {'"refund"': 3, '"data loss"': 2}
    assert count(floors={"label": {"data loss": 9}}) == {'"refund"': 3, '"data loss"': 4}


def test_a_floor_is_filled_with_texts_that_stay() -> None:
    """Duplicates, and texts of golden or dev, are dropped after the floors are filled."""
    unsure: dict[str, Any] = {"answer": '"data loss"', "soft_labels": [{"label": "data loss", "prob": 0.4}]}
    sure = [scored(text, confidence=0.9, **unsure) for text in ("my file is gone", "My file  is gone")]
    texts = ("MY FILE is gone", "held out text", "a folder is gone", "A folder is  gone", "the disk is gone")
    rows = sure + [scored(text, confidence=0.49 - n / 100, **unsure) for n, text in enumerate(texts)]
    balance = BalanceSpec(floors={"label": 3})
    spec = CurationSpec(filters={"min_confidence": 0.5}, validation_share=0.0, balance=balance)
    kept = cut(*rows, held_out={normalize_text("held out text")}, spec=spec)
    found = [normalize_text(turns[0]["content"]) for turns in kept.dataset["messages"].to_list()]
    assert sorted(found) == ["a folder is gone", "my file is gone", "the disk is gone"]
