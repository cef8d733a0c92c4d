"""Checks of what a stage made: Great Expectations over each table, and the invariants that guard training.

The list of checks stands here; assets show them in Dagster. A blocking check that failed is also kept in the
artifact's record, so that nothing downstream reads it, from wherever it is started.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from distill_dagster.errors import DistillError

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations import ExpectationSuite

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")


Table = pl.DataFrame | pl.LazyFrame


@dataclass(frozen=True)
class CheckSpec:
    name: str
    description: str
    blocking: bool = False


@dataclass(frozen=True)
class Check:
    """The outcome of one check; `found` names what failed, with some of the failing rows."""

    name: str
    passed: bool
    severity: Literal["error", "warning"] = "error"
    found: dict[str, Any] = field(default_factory=dict)


VALID_TABLE = CheckSpec(
    "valid_table", "Great Expectations: ids unique, nothing null that must not be, values in range.", blocking=True
)
TERMS = CheckSpec(
    "terms_acknowledged",
    "Where the provider's terms restrict training with its answers, task.yaml acknowledges it (`teacher.terms`). "
    "Stands before the first request.",
    blocking=True,
)
# A check of its own: automation waits for blocking checks that failed, also where they only warn.
TERMS_KNOWN = CheckSpec("terms_known", "What the provider's terms say of training with its answers is known.")
NO_MISSING_ROWS = CheckSpec("no_missing_rows", "Every prompt has an answer.")
LOSS_FELL = CheckSpec("loss_fell", "The training loss ended below where it began.")
CHECKS: dict[str, tuple[CheckSpec, ...]] = {
    "prompt_context": (
        VALID_TABLE,
        CheckSpec("no_row_removed", "No few-shot example repeats another or a golden row."),
    ),
    "seed_prompts": (VALID_TABLE, CheckSpec("target_reached", "A slice with a target has that many prompts.")),
    "teacher_prior": (VALID_TABLE,),
    "golden_completions": (TERMS, TERMS_KNOWN, VALID_TABLE, NO_MISSING_ROWS),
    "teacher_gate": (
        VALID_TABLE,
        CheckSpec(
            "teacher_good_enough",
            "On dev the teacher reaches gate.teacher_min, and the untrained student with gate.teacher_over_base.",
            blocking=True,
        ),
    ),
    "teacher_completions": (TERMS, TERMS_KNOWN, VALID_TABLE, NO_MISSING_ROWS),
    "scored_completions": (
        VALID_TABLE,
        CheckSpec("all_judged", "Where there is a judge, every answer that it was shown has its verdict."),
    ),
    "filtered_dataset": (
        VALID_TABLE,
        CheckSpec("nothing_lost", "Rows kept + rows rejected = candidates, each rejected row with one reason.", True),
        CheckSpec("no_contamination", "No golden or dev text is in the dataset.", True),
        CheckSpec(
            "enough_rows",
            "At least curation.min_rows training rows, and of labels two or more.",
            True,
        ),
        CheckSpec(
            "enough_slices", "At least curation.min_slices slices give rows: today's, or their last good ones.", True
        ),
        CheckSpec("drop_rates", "No drop reason takes much more or less than in the last good dataset.", True),
        CheckSpec(
            "same_distribution", "Labels and lengths are distributed as in the last good dataset (KL divergence).", True
        ),
        CheckSpec("floors_met", "Every value with a floor (`balance.floors`) has that many rows."),
        CheckSpec("slices_current", "Every slice gives the rows of today's files."),
        CheckSpec("label_coverage", "Every label has a training row."),
    ),
    "seed_only_adapter": (LOSS_FELL,),
    "student_adapter": (LOSS_FELL,),
    "slice_label_adapter": (LOSS_FELL,),
    "predictions": (
        VALID_TABLE,
        CheckSpec("complete", "Every system answered every golden and dev item once.", blocking=True),
    ),
    "eval_report": (
        CheckSpec("metrics_table", "The metrics table has the declared columns and ranges (dagster-pandas)."),
    ),
}

Expectation = tuple[str, dict[str, Any]]


def _unique(*columns: str) -> list[Expectation]:
    not_null: list[Expectation] = [("ExpectColumnValuesToNotBeNull", {"column": c}) for c in columns]
    if len(columns) == 1:
        return [*not_null, ("ExpectColumnValuesToBeUnique", {"column": columns[0]})]
    return [*not_null, ("ExpectCompoundColumnsToBeUnique", {"column_list": list(columns)})]


def _share(column: str) -> Expectation:
    return ("ExpectColumnValuesToBeBetween", {"column": column, "min_value": 0, "max_value": 1})


def _one_of(column: str, values: list[str]) -> Expectation:
    return ("ExpectColumnValuesToBeInSet", {"column": column, "value_set": values})


_STATUS = ["ok", "failed", "refused", "truncated", "filtered"]
EXPECTATIONS: dict[str, list[Expectation]] = {
    "prompt_context": [*_unique("id"), ("ExpectColumnValuesToNotBeNull", {"column": "label"})],
    "seed_prompts": [
        *_unique("prompt_id"),
        ("ExpectColumnValueLengthsToBeBetween", {"column": "text", "min_value": 1}),
    ],
    "teacher_prior": [*_unique("sample_index", "label"), _share("prob")],
    "golden_completions": [*_unique("prompt_id", "teacher", "sample_index"), _one_of("status", _STATUS)],
    "teacher_gate": [*_unique("system", "item_id"), _one_of("system", ["teacher", "base"])],
    "teacher_completions": [
        *_unique("prompt_id", "teacher", "sample_index"),
        _one_of("status", _STATUS),
        ("ExpectColumnValuesToBeBetween", {"column": "prompt_tokens", "min_value": 0}),
    ],
    "scored_completions": [*_unique("prompt_id"), _share("agreement"), _share("confidence"), _share("judge_score")],
    "filtered_dataset": [
        *_unique("prompt_id"),
        ("ExpectColumnValuesToNotBeNull", {"column": "answer"}),
        _one_of("split", ["train", "validation"]),
        ("ExpectColumnValuesToBeBetween", {"column": "weight", "min_value": 0}),
    ],
    "predictions": [
        *_unique("system", "split", "item_id"),
        _share("confidence"),
        _one_of("split", ["golden", "dev", "validation"]),
    ],
}


def _columns(stage: str) -> set[str]:
    """What the expectations of a stage look at."""
    named = [arguments.get("column_list", [arguments.get("column")]) for _, arguments in EXPECTATIONS[stage]]
    return {column for columns in named for column in columns}


@lru_cache(maxsize=1)
def _context() -> Any:
    """One for the process: making it costs more than a validation."""
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    return context


def valid_table(stage: str, frame: Table) -> Check:
    """Great Expectations over one table; what failed names some of the values and the ids of their rows.

    Of a long table it is given the rows that may fail, and the first ones of the rest.

    Raises:
        DistillError: an expectation could not be evaluated (which is not the same as failing).
    """
    ids = next((name for name in IDS if name in frame.collect_schema()), None)
    suspects = [_FAILS.get(kind, lambda _: pl.lit(True))(arguments) for kind, arguments in EXPECTATIONS[stage]]
    first = pl.int_range(pl.len()) < JUDGED
    rows = plain_columns(stage, frame).filter(pl.any_horizontal(first, *suspects).fill_null(False))
    found = validate(stage, rows.collect(engine="streaming").to_pandas(), EXPECTATIONS[stage], ids)
    failed = {what: why for what, why in found.items() if why is not None}
    return Check("valid_table", not failed, found=failed | {"expectations": len(found), "rows": _height(frame)})


JUDGED = 1_000
"""Rows of a table that Great Expectations looks at in any case: it takes seconds for a million."""
_FAILS: dict[str, Callable[[dict[str, Any]], pl.Expr]] = {
    "ExpectColumnValuesToNotBeNull": lambda asked: pl.col(asked["column"]).is_null(),
    "ExpectColumnValuesToBeUnique": lambda asked: pl.col(asked["column"]).is_duplicated(),
    "ExpectCompoundColumnsToBeUnique": lambda asked: pl.struct(asked["column_list"]).is_duplicated(),
    "ExpectColumnValuesToBeInSet": lambda asked: ~pl.col(asked["column"]).is_in(asked["value_set"]),
    "ExpectColumnValuesToBeBetween": lambda asked: ~_between(pl.col(asked["column"]), asked),
    "ExpectColumnValueLengthsToBeBetween": lambda asked: ~_between(pl.col(asked["column"]).str.len_chars(), asked),
}
"""By kind of expectation, true for every row that may fail it; of another kind that is the whole table."""


def _between(value: pl.Expr, asked: dict[str, Any]) -> pl.Expr:
    return (value >= asked["min_value"]) & (value <= asked.get("max_value", float("inf")))


def plain_columns(stage: str, frame: Table) -> pl.LazyFrame:
    """What the expectations of a stage look at, and the ids; of messages the user turns, as `text`."""
    plain = frame.lazy()
    if "messages" in plain.collect_schema():
        from distill_dagster.tables import user_text_expr

        plain = plain.with_columns(user_text_expr().alias("text"))
    names = plain.collect_schema().names()
    wanted = _columns(stage) | set(IDS)
    return plain.select(name for name in names if name in wanted)  # the others would only be copied


def _height(frame: Table) -> int:
    return int(frame.lazy().select(pl.len()).collect(engine="streaming").item())


IDS = ("prompt_id", "item_id", "id")
"""The columns by which a failing row is named, the first one that a table has."""


def validate(
    name: str, rows: pd.DataFrame, expectations: Sequence[Expectation], ids: str | None = None
) -> dict[str, str | None]:
    """Every expectation by its type and column, with what failed it, or None where it is met.

    Raises:
        DistillError: an expectation could not be evaluated.
    """
    batch = _context().data_sources.add_or_update_pandas("lake").add_dataframe_asset(name)
    definition = batch.add_batch_definition_whole_dataframe("all")
    suite = suite_of(name, expectations)
    wanted: dict[str, Any] = {"result_format": "SUMMARY"}
    if ids is not None:
        wanted["unexpected_index_column_names"] = [ids]
    result = definition.get_batch({"dataframe": rows}).validate(suite, result_format=wanted)
    found: dict[str, str | None] = {}
    for one in result.results:
        if (one.exception_info or {}).get("raised_exception") or one.expectation_config is None:
            raise DistillError(f"Great Expectations could not check {name}: {one.exception_info}")
        column = one.expectation_config.kwargs.get("column", "")
        found[f"{one.expectation_config.type} {column}".strip()] = None if one.success else _unexpected(one.result, ids)
    return found


def suite_of(name: str, expectations: Sequence[Expectation]) -> ExpectationSuite:
    import great_expectations as gx
    import great_expectations.expectations as gxe

    return gx.ExpectationSuite(
        name=name, expectations=[getattr(gxe, kind)(**arguments) for kind, arguments in expectations]
    )


def _unexpected(result: Any, ids: str | None) -> str:
    """Some of the values that were not expected, with the ids of their rows; of a whole column, what was observed."""
    values = result.get("partial_unexpected_list")
    if values is None:
        return f"observed {result.get('observed_value')}"
    rows = [row[ids] for row in result.get("partial_unexpected_index_list") or [] if ids in row]
    shown = f"{result.get('unexpected_count', len(values))} rows, such as {values[:5]}"
    return f"{shown}; {ids} {', '.join(str(row) for row in rows[:20])}"[:600] if rows else shown[:300]


def no_missing_rows(missing: int, frame: pl.DataFrame) -> Check:
    errors = frame.filter(pl.col("error").is_not_null())["error"].value_counts(sort=True).head(5)
    found = {"missing_rows": missing, "errors": "; ".join(f"{n} × {e}" for e, n in errors.iter_rows())}
    return Check("no_missing_rows", missing == 0, "warning", found)


def dataset_checks(
    candidates: int,
    dataset: Table,
    rejected: Table,
    held_out: set[str],
    labels: list[str],
    min_rows: int,
) -> list[Check]:
    """Invariants 1 and 2, and whether there is enough to train on.

    Args:
        candidates: how many there were.
    """
    dataset, reasons = dataset.lazy(), rejected.lazy().select("drop_reason").collect(engine="streaming")["drop_reason"]
    sides = dataset.select("split").collect(engine="streaming")["split"]
    train_rows = int((sides == "train").sum())
    balance = {"candidates": candidates, "kept": len(sides), "rejected": len(reasons)}
    leaked = _held_out(dataset, held_out)
    present = set[str]()
    if labels:
        train = dataset.filter(pl.col("split") == "train").select(pl.col("answer").unique())
        present = set(train.collect(engine="streaming")["answer"].str.json_decode(pl.String))
    absent = [label for label in labels if label not in present]
    return [
        Check("nothing_lost", len(sides) + len(reasons) == candidates and not reasons.null_count(), found=balance),
        Check("no_contamination", not leaked, found={"prompt_ids": ", ".join(leaked[:20])}),
        Check(
            "enough_rows",
            train_rows >= min_rows and (not labels or len(present) >= 2),
            found={"train_rows": train_rows, "min_rows": min_rows, "labels": len(present)},
        ),
        Check("label_coverage", not absent, "warning", {"labels_without_rows": ", ".join(absent)}),
    ]


def _held_out(dataset: pl.LazyFrame, held_out: set[str]) -> list[str]:
    """The ids of rows with the very text of a golden or dev row."""
    from distill_dagster.curation.texts import text_keys, user_texts

    keys = pl.Series(sorted(held_out), dtype=pl.String)

    def work(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select("prompt_id").filter(text_keys(user_texts(rows["messages"])).is_in(keys.implode()))

    read = dataset.select("prompt_id", "messages").map_batches(work, schema={"prompt_id": pl.String}, streamable=True)
    return read.collect(engine="streaming")["prompt_id"].to_list()


def slice_checks(slices: list[dict[str, Any]], wanted: int) -> list[Check]:
    """Whether enough slices give rows; `slices` has one line each with `slice`, `gives` and `why`."""
    silent = [line["slice"] for line in slices if line["gives"] == "nothing"]
    behind = [f"{line['slice']}: {line['why']}" for line in slices if line["gives"] != "its rows"]
    giving = len(slices) - len(silent)
    found = {"slices_with_rows": giving, "min_slices": wanted, "slices_without_rows": ", ".join(silent)}
    return [
        Check("enough_slices", giving >= wanted, found=found),
        Check("slices_current", not behind, "warning", {"slices": "\n".join(behind[:50])}),
    ]


def loss_fell(losses: list[float]) -> Check:
    """The mean of the last fifth of the logged losses against the first fifth."""
    if len(losses) < 2:
        return Check("loss_fell", True, "warning", {"logged_steps": len(losses)})
    part = max(1, len(losses) // 5)
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    return Check("loss_fell", last < first, "warning", {"first": round(first, 4), "last": round(last, 4)})


def complete(predictions: pl.DataFrame) -> Check:
    held_out = predictions.filter(pl.col("split").is_in(["golden", "dev"]))
    counts = held_out.group_by("split", "system").len().sort("split", "system")
    even = counts.group_by("split").agg(pl.col("len").n_unique().alias("n"))["n"].to_list() == [1] * 2
    found = {f"{split} {system}": n for split, system, n in counts.iter_rows()}
    return Check("complete", even, found=found)
