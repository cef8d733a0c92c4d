"""Which rows of the dataset a student learns from, and how much each counts."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from distill_dagster.config import DataMixSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.curation.dataset.data_mix import count_mix, mix_rows, select_mixed_rows
from distill_dagster.tables.schemas import DATASET, build_frame


def build_rows() -> pl.DataFrame:
    """Six rows of slice shop and two of slice web that the teacher answered, and two answers of people."""
    slices = ["shop"] * 6 + ["web"] * 2 + ["(human)", "web"]
    rows: list[dict[str, Any]] = []
    for number, key in enumerate(slices):
        messages = [{"role": "user", "content": f"text {number}"}, {"role": "assistant", "content": "refund"}]
        columns = {"prompt_id": f"p{number}", "slice": key, "answer": '"refund"', "messages": messages}
        teacher = "large" if number < 8 else None
        rows.append(dict.fromkeys(DATASET) | columns | {"weight": 1.0, "split": "train", "teacher": teacher})
    return build_frame(rows, DATASET, ("prompt_id",))


def mix(**settings: Any) -> pl.DataFrame:
    return mix_rows(build_rows(), DataMixSpec.model_validate(settings))


def sum_weights(mixed: pl.DataFrame) -> dict[str, Any]:
    """The whole weight of people's answers, and of the teacher's in each slice."""
    source = pl.when(pl.col("teacher").is_null()).then(pl.lit("people")).otherwise(pl.col("slice"))
    sums = mixed.group_by(source.alias("source")).agg(pl.col("weight").sum())
    return {name: pytest.approx(weight) for name, weight in sums.iter_rows()}


def test_without_settings_every_row_counts_once_as_it_is() -> None:
    assert mix().equals(build_rows())


@pytest.mark.parametrize(("factor", "copies"), [(0.5, 1), (1.0, 1), (2.5, 2), (10.0, 10)])
def test_an_answer_of_a_person_counts_as_many_times_as_the_factor(factor: float, copies: int) -> None:
    mixed = mix(human_factor=factor)
    assert sum_weights(mixed) == {"people": 2 * factor, "shop": 6, "web": 2}
    assert mixed["prompt_id"].to_list().count("p8") == copies
    assert mixed.filter(prompt_id="p8")["messages"][0].to_list() == build_rows()["messages"][8].to_list()


def test_a_factor_of_zero_leaves_people_out() -> None:
    rows, mixed = build_rows(), mix(human_factor=0)
    assert sum_weights(mixed) == {"shop": 6, "web": 2}
    counts = count_mix(rows, mixed)
    assert (counts.human_rows, counts.teacher_rows, counts.left_out, counts.human_share) == (0, 8, 2, 0)


def test_balanced_slices_have_the_same_weight_and_their_sum_stays() -> None:
    assert sum_weights(mix(balance="slices")) == {"people": 2, "shop": 4, "web": 4}
    weighed = mix(balance="slices", slice_weights={"web": 3}, human_factor=4)
    assert sum_weights(weighed) == {"people": 8, "shop": 2, "web": 6}
    assert weighed["prompt_id"].to_list().count("p6") == 3, "a row that counts three times is there three times"


def test_a_slice_can_count_more_or_not_at_all() -> None:
    assert sum_weights(mix(slice_weights={"web": 2.5})) == {"people": 2, "shop": 6, "web": 5}
    mixed = mix(slice_weights={"shop": 0}, balance="slices")
    assert sum_weights(mixed) == {"people": 2, "web": 2}
    counts = count_mix(build_rows(), mixed)
    assert (counts.human_rows, counts.teacher_rows, counts.copies, counts.human_share) == (2, 2, 4, 0.5)


def test_weights_of_the_dataset_are_kept() -> None:
    rows = build_rows().with_columns(weight=pl.when(pl.col("teacher").is_null()).then(3.0).otherwise(1.0))
    mixed = mix_rows(rows, DataMixSpec(human_factor=2.0))
    assert sum_weights(mixed) == {"people": 12, "shop": 6, "web": 2}
    left = select_mixed_rows(rows, DataMixSpec(human_factor=0))
    assert left.equals(rows.filter(pl.col("teacher").is_not_null()))


def test_balanced_weights_are_the_same_each_time() -> None:
    """The sum over the slices has one order. A weight that is an ulp less may lose a copy."""
    keys = [f"s{n}" for n in range(300)]
    rows = build_rows().head(1).drop("slice").join(pl.DataFrame({"slice": keys}), how="cross").select(list(DATASET))
    spec = DataMixSpec(balance="slices", slice_weights={key: 1 / (n + 3) for n, key in enumerate(keys)})
    first = mix_rows(rows, spec)
    assert all(mix_rows(rows, spec).equals(first) for _ in range(20))


def test_a_dataset_without_rows_is_not_blamed_on_the_mix() -> None:
    for spec in (DataMixSpec(), DataMixSpec(human_factor=2, balance="slices")):
        assert mix_rows(build_rows().clear(), spec).is_empty()


def test_the_share_of_people_is_that_of_all_rows() -> None:
    rows = build_rows()
    replayed = rows.filter(pl.col("teacher").is_not_null()).vstack(rows.filter(pl.col("teacher").is_not_null()).head(2))
    counts = count_mix(rows, rows, replayed)
    assert (counts.human_share, counts.replayed, counts.copies) == (0.1, 10, 10)


def test_a_mix_without_a_row_says_what_to_change() -> None:
    with pytest.raises(DistillError, match="leaves no row to learn from"):
        mix(human_factor=0, slice_weights={"shop": 0, "web": 0})
