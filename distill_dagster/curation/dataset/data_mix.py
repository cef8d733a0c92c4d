"""Mix the rows that one student learns from: human answers with a factor, and slices balanced or weighted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from distill_dagster.config import DataMixSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.core.hashing import hash_content


@dataclass(frozen=True)
class MixCounts:
    """What a mix consists of. `human_rows` and `teacher_rows` count each row once, `copies` counts repeated rows too.

    `human_share` is the share that rows answered by people have of the weight of all rows, with the replayed ones.
    `replayed` counts the rows of an earlier dataset; the other figures are without them.
    """

    human_rows: int
    teacher_rows: int
    copies: int
    human_share: float
    left_out: int
    replayed: int

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
        DistillError: the mix leaves out all rows.
    """
    kept = select_mixed_rows(rows, mix)
    if kept.is_empty() and not rows.is_empty():
        raise DistillError(
            "`data` of this student leaves no row to learn from. Raise `human_factor` or a value of `slice_weights`."
        )
    if mix.is_plain or kept.is_empty():
        return kept
    times = _count_times_expr(mix)
    if mix.balance == "slices":
        taught = pl.col("teacher").is_not_null()
        in_slice = pl.col("weight").filter(taught).sum().over("slice")
        by_slice = kept.filter(taught).unique("slice").sort("slice").select(times).to_series()
        total = sum(kept.filter(taught)["weight"]) / (sum(by_slice) or 1.0)
        times = pl.when(taught).then(times * total / in_slice).otherwise(times)
    counted = kept.with_columns(times.alias("times"))
    copies = counted["times"].floor().clip(1).cast(pl.UInt32)
    weighed = counted.with_columns(weight=pl.col("weight") * pl.col("times") / copies).drop("times")
    places = pl.select(row=pl.int_range(kept.height), copies=copies).select(pl.col("row").repeat_by("copies").explode())
    return weighed[places["row"]]


def choose_replayed_rows(earlier: pl.DataFrame, share: float, rows: int, seed: int) -> pl.DataFrame:
    """Choose rows of an earlier dataset (schema DATASET) to be trained on next to others, in the order of their ids.

    Args:
        share: of all rows together, the most that are from the earlier dataset. There may be fewer.
        rows: how many rows they are trained on with.
    """
    wanted = min(earlier.height, round(share / (1 - share) * rows))
    draws = [hash_content([seed, prompt_id]) for prompt_id in earlier["prompt_id"]]
    chosen = earlier.with_columns(draw=pl.Series(draws, dtype=pl.String)).sort("draw").head(wanted)
    return chosen.drop("draw").sort("prompt_id", "slice")


def count_mix(rows: pl.DataFrame, mixed: pl.DataFrame, replayed: pl.DataFrame | None = None) -> MixCounts:
    """Count what a mix consists of, from the training rows of the dataset before and after mixing.

    Args:
        replayed: the rows of an earlier dataset that are trained on with them.
    """
    is_human = pl.col("teacher").is_null()
    earlier = rows.clear() if replayed is None else replayed
    total, human = sum(mixed["weight"]) + sum(earlier["weight"]), sum(mixed.filter(is_human)["weight"])
    once = mixed.unique(["prompt_id", "slice", "answer"])
    return MixCounts(
        human_rows=once.filter(is_human).height,
        teacher_rows=once.filter(~is_human).height,
        copies=mixed.height,
        human_share=round(human / total, 4) if total else 0.0,
        left_out=rows.height - once.height,
        replayed=earlier.height,
    )


def _count_times_expr(mix: DataMixSpec) -> pl.Expr:
    """How many times each row counts, before slices are balanced."""
    weights = pl.col("slice").replace_strict(mix.slice_weights, default=1.0, return_dtype=pl.Float64)
    return pl.when(pl.col("teacher").is_null()).then(pl.lit(mix.human_factor)).otherwise(weights)
