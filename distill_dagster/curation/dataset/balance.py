"""Caps and floors: leave out rows so that no value of a field outweighs the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import polars as pl

from distill_dagster.config.balance import BalanceSpec, RowCounts
from distill_dagster.core.embedding import EmbedFunction
from distill_dagster.core.hashing import hash_content

if TYPE_CHECKING:
    import numpy as np

OVER_CAP = "over_cap"
"""The drop reason of rows above a cap."""
LOW_CONFIDENCE = "low_confidence"
"""The drop reason of rows of which the teacher is unsure, which a floor can keep."""


def field_value_expr(field: str) -> pl.Expr:
    """The value of a field that caps and floors count, from a candidate's columns; null for a row without one."""
    if field == "slice":
        return pl.col("slice")
    if field == "label":
        return pl.col("answer").str.json_decode(pl.String)
    # A JSON path would interpret dots and brackets in the name of an axis. Axes are flat objects of texts.
    axes = pl.Struct({field: pl.String})
    return pl.col("axes").str.json_decode(axes).struct.field(field)


def balance_rows(rows: pl.DataFrame, spec: BalanceSpec, seed: int, embed: EmbedFunction | None = None) -> pl.DataFrame:
    """The rows with `drop_reason` and `drop_detail`, which are null for rows that stay.

    Rows are taken in the order of `choice`: first those that a floor still needs, then the others. A row is left out if
    one of its caps, or `max_rows`, is reached. The result does not depend on the order of the rows.

    Args:
        rows: `prompt_id`, `slice`, `teacher` (null: a person answered), `confidence`; `answer` and `axes` where a field
            needs them; `text` for the choice `diverse`. Ids are unique.
        seed: for the choice `random`, and for ties of the other choices.
        embed: for the choice `diverse`.
    """
    fields = sorted({*spec.caps, *spec.floors})
    values = rows.select(field_value_expr(field).alias(f"{place}") for place, field in enumerate(fields))
    order = _rank_rows(rows, values, spec, seed, embed)
    keys = list(values.rows()) if fields else [()] * rows.height
    places = {field: place for place, field in enumerate(fields)}
    floors = {
        (places[f], v): n for f, counts in spec.floors.items() for v, n in _list_counts(counts, values[f"{places[f]}"])
    }
    caps = {
        (places[f], v): n for f, counts in spec.caps.items() for v, n in _list_counts(counts, values[f"{places[f]}"])
    }
    taken: Counter[tuple[int, str]] = Counter()
    details: list[str | None] = [None] * rows.height
    is_taken = [False] * rows.height
    total = 0
    for floors_only in (True, False) if floors else (False,):
        for row in order:
            if is_taken[row]:
                continue
            groups = [(place, value) for place, value in enumerate(keys[row]) if value is not None]
            if floors_only and not any(taken[g] < floors.get(g, 0) for g in groups):
                continue
            full = next((g for g in groups if g in caps and taken[g] >= caps[g]), None)
            if full is not None:
                details[row] = f"cap of {fields[full[0]]} {full[1]}: {caps[full]}"
            elif spec.max_rows is not None and total >= spec.max_rows:
                details[row] = f"max_rows: {spec.max_rows}"
            else:
                is_taken[row], details[row] = True, None
                taken.update(groups)
                total += 1
    reason = [None if stays else OVER_CAP for stays in is_taken]
    return rows.with_columns(
        pl.Series("drop_reason", reason, dtype=pl.String), pl.Series("drop_detail", details, dtype=pl.String)
    )


def restore_to_floors(rows: pl.DataFrame, spec: BalanceSpec, held_out: Collection[str] = ()) -> pl.DataFrame:
    """Keep unsure rows where a floor needs them: the most confident of those that only `low_confidence` dropped.

    A filter by confidence drops most rows of the hard values, and a label without rows cannot be learned. A text counts
    once, and texts of golden or dev do not count, because later steps drop such rows.

    Args:
        rows: candidates with `drop_reason` and `drop_detail`, `confidence`, `text_key` and a unique `ident`. No other
            filter drops the rows whose reason is `low_confidence`.
        held_out: the text keys of golden and dev rows.
    """
    held = pl.Series("text_key", sorted(held_out), dtype=pl.String)
    for field, counts in sorted(spec.floors.items()):
        is_kept = pl.col("drop_reason").is_null()
        found = rows.with_row_index("row").filter(is_kept | (pl.col("drop_reason") == LOW_CONFIDENCE))
        found = found.filter(~pl.col("text_key").is_in(held.implode())).select(
            "row", "confidence", "ident", "text_key", field_value_expr(field).alias("value"), is_kept.alias("kept")
        )
        floors = pl.DataFrame(
            list(_list_counts(counts, found["value"])), {"value": pl.String, "floor": pl.Int64}, orient="row"
        )
        have = found.filter("kept").group_by("value").agg(have=pl.col("text_key").n_unique())
        unsure = found.filter(~pl.col("kept"), pl.col("value").is_not_null())
        unsure = unsure.join(found.filter("kept"), on="text_key", how="anti")
        unsure = unsure.sort(-pl.col("confidence").fill_null(0.0), "ident")
        unsure = unsure.unique("text_key", keep="first", maintain_order=True)
        ranked = unsure.with_columns(pl.int_range(pl.len()).over("value").alias("place"))
        needed = ranked.join(floors, on="value").join(have, on="value", how="left")
        back = needed.filter(pl.col("have").fill_null(0).cast(pl.Int64) + pl.col("place") < pl.col("floor"))["row"]
        stays = pl.int_range(pl.len(), dtype=pl.UInt32).is_in(back.implode())
        rows = rows.with_columns(
            pl.when(stays).then(None).otherwise(pl.col(name)).alias(name) for name in ("drop_reason", "drop_detail")
        )
    return rows


def count_below_floors(rows: pl.DataFrame | pl.LazyFrame, spec: BalanceSpec) -> dict[str, int]:
    """Rows of each value that has fewer than its floor, by `field value`."""
    found: dict[str, int] = {}
    for field, counts in sorted(spec.floors.items()):
        have = (
            rows.lazy().select(field_value_expr(field).alias("value")).collect(engine="streaming")["value"].drop_nulls()
        )
        rows_of = dict(have.value_counts().iter_rows())
        for value, wanted in _list_counts(counts, have):
            if rows_of.get(value, 0) < wanted:
                found[f"{field} {value}"] = rows_of.get(value, 0)
    return found


def _list_counts(counts: RowCounts, values: pl.Series) -> Iterable[tuple[str, int]]:
    """Every value with its cap or floor."""
    if isinstance(counts, dict):
        return sorted(counts.items())
    return [(value, counts) for value in sorted(values.drop_nulls().unique().to_list())]


def _rank_rows(
    rows: pl.DataFrame, values: pl.DataFrame, spec: BalanceSpec, seed: int, embed: EmbedFunction | None
) -> list[int]:
    """The indexes of the rows in the order in which they are taken."""
    tie = [hash_content([seed, id_]) for id_ in rows["prompt_id"]]
    keyed = rows.select("teacher", "confidence").with_columns(pl.Series("tie", tie)).with_row_index("row")
    first: list[pl.Expr] = [pl.col("teacher").is_not_null()]
    if spec.choice == "best":
        first.append(-pl.col("confidence").fill_null(0.0))
    elif spec.choice == "diverse" and rows.height:
        assert embed is not None, "the choice `diverse` needs sentence embeddings"
        keyed = keyed.with_columns(pl.Series("rank", _rank_diverse(rows, values, keyed, spec, embed)))
        first.append(pl.col("rank"))
    return keyed.sort(*first, "tie")["row"].to_list()


def _rank_diverse(
    rows: pl.DataFrame, values: pl.DataFrame, keyed: pl.DataFrame, spec: BalanceSpec, embed: EmbedFunction
) -> list[int]:
    """The place of each row in the farthest-first order of its group. A group has the same values of all fields."""
    import numpy as np

    vectors = embed(rows["text"].to_list())
    caps = [n for counts in spec.caps.values() for n in (counts.values() if isinstance(counts, dict) else [counts])]
    most = max([*caps, spec.max_rows or 0], default=0)
    ranks = np.zeros(rows.height, dtype=np.int64)
    # Answers of people first, then by the seeded hash. This decides where the traversal starts, and ties.
    grouped = keyed.with_columns(values).sort(pl.col("teacher").is_not_null(), "tie")
    for members in grouped.group_by(values.columns or [pl.lit(0)], maintain_order=True).agg("row")["row"]:
        chosen = np.asarray(members.to_list())
        ranks[chosen[order_farthest_first(vectors[chosen], min(most or len(chosen), len(chosen)))]] = np.arange(
            len(chosen)
        )
    return ranks.tolist()


def order_farthest_first(vectors: np.ndarray, count: int) -> np.ndarray:
    """The indexes of all rows: `count` of them, each the farthest from those before it, then the others in order.

    The greedy choice of Gonzalez 1985 covers the points within twice the best possible radius. Sener and Savarese 2018
    choose training data with it. It computes O(count x rows) dot products, starts with row 0, and takes the first of
    rows at equal distance.

    Args:
        vectors: float, shape (rows, dimensions); each row has length 1.
    """
    import numpy as np

    rows = len(vectors)
    if not rows:
        return np.zeros(0, dtype=np.int64)
    nearest = np.full(rows, -np.inf)  # cosine to the nearest row taken so far
    taken = np.zeros(rows, dtype=bool)
    order = []
    place = 0
    for _ in range(min(count, rows)):
        order.append(place)
        taken[place] = True
        nearest = np.maximum(nearest, np.round(vectors @ vectors[place], 6))
        place = int(np.argmin(np.where(taken, np.inf, nearest)))
    return np.concatenate([np.asarray(order, dtype=np.int64), np.flatnonzero(~taken)])


def select_stratified(strata: pl.Series, groups: pl.Series, share: float) -> pl.Series:
    """Whether each row is validation: about `share` of every stratum, in whole groups.

    Args:
        strata: the stratum of each row; null is a stratum too.
        groups: a hash of each row's text, or of the text of its near-duplicates. Rows of one group get the same side.
            Groups are taken in the order of their hashes, so few rows change sides when rows come or go.
    """
    frame = pl.DataFrame({"stratum": strata, "group": groups})
    # A group with rows of several strata counts for the first of them.
    of_group = frame.group_by("group").agg(pl.col("stratum").min(), pl.len().alias("rows")).sort("stratum", "group")
    before = pl.col("rows").cum_sum().over("stratum") - pl.col("rows")
    wanted = pl.col("rows").sum().over("stratum") * share
    # A group is taken if at least half of it fits into the share.
    sides = of_group.select("group", side=before + pl.col("rows") / 2 <= wanted)
    return frame.join(sides, on="group", how="left", maintain_order="left")["side"]
