"""Mix the rows that one student learns from: human answers with a factor, and slices balanced or weighted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from distill_dagster.config import DataMixSpec
from distill_dagster.core.errors import DistillError


@dataclass(frozen=True)
class MixCounts:
    """What a mix consists of. `human_rows` and `teacher_rows` count each row once, `copies` counts repeated rows too.

    `human_share` is the share of the whole weight that rows answered by people have.
    """

    human_rows: int
    teacher_rows: int
    copies: int
    human_share: float
    left_out: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def select_mixed_rows(rows: pl.DataFrame, mix: DataMixSpec) -> pl.DataFrame:
    """The rows of a dataset (schema DATASET) that the mix does not leave out, as they are."""
    return rows.filter(_count_times_expr(mix) > 0)


def mix_rows(rows: pl.DataFrame, mix: DataMixSpec) -> pl.DataFrame:
    """Repeat and weigh the training rows of a dataset (schema DATASET), in the order of the rows.

    A row that counts k times is repeated floor(k) times, and each copy weighs k / floor(k) times its weight. So a
    factor of 10 does not make one gradient ten times as large, and the sum of all weights is exact.
    With `balance: slices` the sum of the weights of the teacher's rows stays as it is. Answers of people are not
    balanced: only their factor applies.

    Raises:
        DistillError: no row remains.
    """
    kept = select_mixed_rows(rows, mix)
    if kept.is_empty():
        raise DistillError(
            "`data` of this student leaves no row to learn from. Raise `human_factor` or a value of `slice_weights`."
        )
    if mix.is_plain:
        return kept
    times = _count_times_expr(mix)
    if mix.balance == "slices":
        taught = pl.col("teacher").is_not_null()
        in_slice = pl.col("weight").filter(taught).sum().over("slice")
        by_slice = kept.filter(taught).unique("slice").select(times).to_series()
        total = kept.filter(taught)["weight"].sum() / (by_slice.sum() or 1.0)
        times = pl.when(taught).then(times * total / in_slice).otherwise(times)
    counted = kept.with_columns(times.alias("times"))
    copies = counted["times"].floor().clip(1).cast(pl.UInt32)
    weighed = counted.with_columns(weight=pl.col("weight") * pl.col("times") / copies).drop("times")
    places = pl.select(row=pl.int_range(kept.height), copies=copies).select(pl.col("row").repeat_by("copies").explode())
    return weighed[places["row"]]


def count_mix(rows: pl.DataFrame, mixed: pl.DataFrame) -> MixCounts:
    """Count what a mix consists of, from the training rows of the dataset before and after mixing."""
    is_human = pl.col("teacher").is_null()
    total = mixed["weight"].sum()
    once = mixed.unique(["prompt_id", "slice", "answer"])
    return MixCounts(
        human_rows=once.filter(is_human).height,
        teacher_rows=once.filter(~is_human).height,
        copies=mixed.height,
        human_share=round(mixed.filter(is_human)["weight"].sum() / total, 4) if total else 0.0,
        left_out=rows.height - once.height,
    )


def _count_times_expr(mix: DataMixSpec) -> pl.Expr:
    """How many times each row counts, before slices are balanced."""
    weights = pl.col("slice").replace_strict(mix.slice_weights, default=1.0, return_dtype=pl.Float64)
    return pl.when(pl.col("teacher").is_null()).then(pl.lit(mix.human_factor)).otherwise(weights)
