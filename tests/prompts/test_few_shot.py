"""The pool of few-shot examples, its draws, and tables of prompts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_dagster.config import FewShotSpec
from distill_dagster.core.text import normalize_text
from distill_dagster.prompts.few_shot import (
    FewShotExample,
    build_draws,
    build_prompt_context,
    choose_calibration_examples,
    read_example_pool,
)
from distill_dagster.prompts.seeds import build_labelled_prompts, build_seed_prompts
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tasks import LabelledRow, Slice
from distill_dagster.tasks.rows import collect_held_out_keys

LABELS = ["a", "b", "c"]


def examples(per_label: int) -> list[FewShotExample]:
    return [FewShotExample(f"{label}{n}", f"text {label}{n}", label) for label in LABELS for n in range(per_label)]


@given(st.integers(0, 6), st.integers(1, 6), st.integers(1, 12), st.integers(0, 9))
def test_draws(per_label: int, number: int, have: int, seed: int) -> None:
    chosen = build_draws(examples(have), LABELS, FewShotSpec(per_label=per_label, draws=number, seed=seed))
    assert len(chosen) == number
    for draw in chosen:
        assert Counter(e.label for e in draw) == Counter(dict.fromkeys(LABELS, min(per_label, have)))
        assert len({e.id for e in draw}) == len(draw)
    lasting = have // per_label if per_label else 0
    ids = [e.id for draw in chosen[:lasting] for e in draw]
    assert len(ids) == len(set(ids))


@given(st.permutations(range(9)))
def test_draws_do_not_depend_on_the_order_of_examples(order: list[int]) -> None:
    few_shot = FewShotSpec(per_label=2, draws=3, seed=4)
    pool_ = examples(3)
    assert build_draws([pool_[n] for n in order], LABELS, few_shot) == build_draws(pool_, LABELS, few_shot)


def test_draws_of_another_seed_differ() -> None:
    a, b = (build_draws(examples(6), LABELS, FewShotSpec(seed=seed)) for seed in (0, 1))
    assert a != b


def test_the_order_of_a_draw_mixes_labels() -> None:
    orders = {
        tuple(e.label for e in draw) for draw in build_draws(examples(8), LABELS, FewShotSpec(per_label=2, draws=4))
    }
    assert len(orders) > 1


@given(st.integers(0, 4), st.integers(1, 5), st.integers(1, 8), st.integers(1, 4))
def test_calibration_examples_are_in_no_draw(per_label: int, number: int, have: int, items: int) -> None:
    pool_ = examples(have)
    for draw in build_draws(pool_, LABELS, FewShotSpec(per_label=per_label, draws=number)):
        left = choose_calibration_examples(pool_, draw, LABELS, items)
        assert not {e.id for e in left} & {e.id for e in draw}
        expected = min(items, have - min(per_label, have))
        assert Counter(e.label for e in left) == Counter({k: expected for k in LABELS if expected})
        assert left == choose_calibration_examples(pool_[::-1], draw, LABELS, items)


HELD_OUT = ["Where is my card?", "Über Öl und Ähre", "two words"]
VARIANTS = [
    lambda t: t,
    str.upper,
    lambda t: f"  {t}\n",
    lambda t: t.replace(" ", "\u00a0\u3000"),
    lambda t: t.replace(" ", "\x1f\n"),
    lambda t: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in t),  # full-width letters
]


@given(
    st.lists(st.tuples(st.sampled_from(HELD_OUT), st.sampled_from(VARIANTS), st.sampled_from(LABELS)), max_size=6),
    st.integers(0, 3),
)
def test_no_draw_contains_a_golden_or_dev_text(leaks: list[Any], seed: int) -> None:
    rows = [
        LabelledRow(id=f"leak{n}", text=variant(text), label=label) for n, (text, variant, label) in enumerate(leaks)
    ]
    rows += [LabelledRow(id=e.id, text=e.text, label=e.label) for e in examples(3)]
    golden, dev = (
        [LabelledRow(id="g", text=HELD_OUT[0]), LabelledRow(id="h", text=HELD_OUT[1])],
        [LabelledRow(id="d", text=HELD_OUT[2])],
    )
    keys = collect_held_out_keys(golden, dev)
    context = build_prompt_context(rows, keys)
    assert context.height == len(rows)
    used = read_example_pool(context)
    assert len(used) == 9
    for draw in build_draws(used, LABELS, FewShotSpec(per_label=3, draws=3, seed=seed)):
        assert not {normalize_text(e.text) for e in draw} & keys
        assert not {normalize_text(e.text) for e in choose_calibration_examples(used, draw, LABELS, 3)} & keys


def test_removed_rows_stay_with_their_reason() -> None:
    rows = [
        LabelledRow(id="4", text="new", label="a"),
        LabelledRow(id="3", text=" NEW ", label="b"),
        LabelledRow(id="2", text="Golden", label="a"),
        LabelledRow(id="1", text=" other ", label="a"),
    ]
    context = build_prompt_context(rows, {"golden"})
    assert list(context.select("id", "text", "removed").iter_rows()) == [
        ("1", "other", None),
        ("2", "Golden", "contaminated"),
        ("3", "NEW", None),
        ("4", "new", "duplicate"),
    ]
    assert [e.id for e in read_example_pool(context)] == ["1", "3"]
    assert compute_data_version(build_prompt_context(rows[::-1], {"golden"})) == compute_data_version(context)


def slice_of(*seeds: object) -> Slice:
    return Slice.model_validate({"description": "d", "seeds": list(seeds)})


def test_each_seed_text_is_one_prompt() -> None:
    table = build_seed_prompts(
        "shop", slice_of("one", " one\n", {"text": "two", "axes": {"b": "1", "a": "2"}, "reference": "r"})
    )
    assert table.height == 2
    row = next(r for r in table.to_dicts() if r["reference"])
    assert (row["slice"], row["origin"], row["axes"]) == ("shop", "human", '{"a":"2","b":"1"}')
    assert table["prompt_id"].is_sorted()


@given(st.permutations([{"text": "one", "reference": "a"}, {"text": "one ", "reference": "b"}, {"text": "two"}]))
def test_the_order_of_seeds_does_not_decide_which_duplicate_is_kept(seeds: list[dict[str, str]]) -> None:
    expected = build_seed_prompts(
        "shop", slice_of({"text": "one", "reference": "a"}, {"text": "one ", "reference": "b"}, "two")
    )
    assert build_seed_prompts("shop", slice_of(*seeds)).equals(expected)


@pytest.mark.parametrize("source", ["golden", "dev"])
def test_labelled_prompts(source: str) -> None:
    rows = [
        LabelledRow(id="1", text=" x ", label="a"),
        LabelledRow(id="2", text="y", label="b", slice="shop"),
        LabelledRow(id="3", text="x", label="b"),
    ]
    table = {r["messages"][0]["content"]: r for r in build_labelled_prompts(rows, source).to_dicts()}
    assert {k: (r["slice"], r["reference"], r["source"]) for k, r in table.items()} == {
        "x": (source, "a", source),
        "y": ("shop", "b", source),
    }
    shared = build_seed_prompts("shop", slice_of("x"))["prompt_id"].item()
    assert table["x"]["prompt_id"] == shared  # a prompt has one id in all files
