"""Validate tables with Great Expectations: what each stage's table must look like, and the check of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import polars as pl

from distill_dagster.core.checks import CheckResult
from distill_dagster.core.collector import pause_collector
from distill_dagster.core.errors import DistillError
from distill_dagster.core.formatting import count_noun
from distill_dagster.tables.messages import user_text_expr

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations import ExpectationSuite

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

Table = pl.DataFrame | pl.LazyFrame
Expectation = tuple[str, dict[str, Any]]
"""An expectation's class name in Great Expectations, and its arguments."""
ID_COLUMNS = ("prompt_id", "item_id", "id")
"""Columns that identify a failing row: the first one that a table has."""
ALWAYS_CHECKED_ROWS = 1_000
"""Great Expectations always sees this many first rows of a table. A million rows would take it seconds."""


def _expect_unique(*columns: str) -> list[Expectation]:
    not_null: list[Expectation] = [("ExpectColumnValuesToNotBeNull", {"column": c}) for c in columns]
    if len(columns) == 1:
        return [*not_null, ("ExpectColumnValuesToBeUnique", {"column": columns[0]})]
    return [*not_null, ("ExpectCompoundColumnsToBeUnique", {"column_list": list(columns)})]


def _expect_share(column: str) -> Expectation:
    return ("ExpectColumnValuesToBeBetween", {"column": column, "min_value": 0, "max_value": 1})


def _expect_one_of(column: str, values: list[str]) -> Expectation:
    return ("ExpectColumnValuesToBeInSet", {"column": column, "value_set": values})


_STATUSES = ["ok", "failed", "refused", "truncated", "filtered"]
EXPECTATIONS: dict[str, list[Expectation]] = {
    "prompt_context": [*_expect_unique("id"), ("ExpectColumnValuesToNotBeNull", {"column": "label"})],
    "seed_prompts": [
        *_expect_unique("prompt_id"),
        ("ExpectColumnValueLengthsToBeBetween", {"column": "text", "min_value": 1}),
    ],
    "teacher_prior": [*_expect_unique("sample_index", "label"), _expect_share("prob")],
    "golden_completions": [
        *_expect_unique("prompt_id", "teacher", "sample_index"),
        _expect_one_of("status", _STATUSES),
    ],
    "teacher_gate": [*_expect_unique("system", "item_id"), _expect_one_of("system", ["teacher", "base"])],
    "teacher_completions": [
        *_expect_unique("prompt_id", "teacher", "sample_index"),
        _expect_one_of("status", _STATUSES),
        ("ExpectColumnValuesToBeBetween", {"column": "prompt_tokens", "min_value": 0}),
    ],
    "scored_completions": [
        *_expect_unique("prompt_id"),
        _expect_share("agreement"),
        _expect_share("confidence"),
        _expect_share("judge_score"),
    ],
    "filtered_dataset": [
        *_expect_unique("prompt_id"),
        ("ExpectColumnValuesToNotBeNull", {"column": "answer"}),
        _expect_one_of("split", ["train", "validation"]),
        ("ExpectColumnValuesToBeBetween", {"column": "weight", "min_value": 0}),
    ],
    "assistant_labels": [
        *_expect_unique("prompt_id"),
        ("ExpectColumnValuesToNotBeNull", {"column": "answer"}),
        _expect_one_of("split", ["train", "validation"]),
    ],
    "replay_rows": [
        *_expect_unique("dataset", "prompt_id"),
        ("ExpectColumnValuesToNotBeNull", {"column": "answer"}),
        _expect_one_of("split", ["train"]),
    ],
    "preference_pairs": [
        *_expect_unique("prompt_id", "rank"),
        ("ExpectColumnValuesToNotBeNull", {"column": "answer"}),
        ("ExpectColumnValuesToNotBeNull", {"column": "rejected_answer"}),
    ],
    "judged_pairs": [
        *_expect_unique("item_id", "shown_first"),
        _expect_one_of("decided_by", ["judge", "equal", "missing"]),
    ],
    "predictions": [
        *_expect_unique("system", "split", "item_id"),
        _expect_share("confidence"),
        _expect_one_of("split", ["golden", "dev", "validation"]),
    ],
}
"""The expectations of each stage's table. `text` is made from `messages`: see `select_expected_columns`."""


def check_table(stage: str, frame: Table) -> CheckResult:
    """Check a stage's table against its expectations. A failure names some values and the ids of their rows.

    Of a long table Great Expectations sees the rows that may fail and the first `ALWAYS_CHECKED_ROWS`.

    Raises:
        DistillError: an expectation could not be evaluated, which is not the same as failing.
    """
    id_column = next((name for name in ID_COLUMNS if name in frame.collect_schema()), None)
    suspects = [_FAILURE_EXPRS.get(kind, lambda _: pl.lit(True))(arguments) for kind, arguments in EXPECTATIONS[stage]]
    is_first = pl.int_range(pl.len()) < ALWAYS_CHECKED_ROWS
    rows = select_expected_columns(stage, frame).filter(pl.any_horizontal(is_first, *suspects).fill_null(False))
    outcomes = validate_table(stage, rows.collect(engine="streaming").to_pandas(), EXPECTATIONS[stage], id_column)
    failed = {name: reason for name, reason in outcomes.items() if reason is not None}
    counts = {"expectations": len(outcomes), "rows": _count_rows(frame)}
    return CheckResult("valid_table", not failed, details=failed | counts)


_FAILURE_EXPRS: dict[str, Callable[[dict[str, Any]], pl.Expr]] = {
    "ExpectColumnValuesToNotBeNull": lambda given: pl.col(given["column"]).is_null(),
    "ExpectColumnValuesToBeUnique": lambda given: pl.col(given["column"]).is_duplicated(),
    "ExpectCompoundColumnsToBeUnique": lambda given: pl.struct(given["column_list"]).is_duplicated(),
    "ExpectColumnValuesToBeInSet": lambda given: ~pl.col(given["column"]).is_in(given["value_set"]),
    "ExpectColumnValuesToBeBetween": lambda given: ~_between_expr(pl.col(given["column"]), given),
    "ExpectColumnValueLengthsToBeBetween": lambda given: ~_between_expr(pl.col(given["column"]).str.len_chars(), given),
}
"""For each kind of expectation, true for every row that may fail it. Other kinds need the whole table."""


def _between_expr(value: pl.Expr, given: dict[str, Any]) -> pl.Expr:
    return (value >= given["min_value"]) & (value <= given.get("max_value", float("inf")))


def select_expected_columns(stage: str, frame: Table) -> pl.LazyFrame:
    """The columns that a stage's expectations read, and the ids. `text` is the user turns of `messages`."""
    rows = frame.lazy()
    if "messages" in rows.collect_schema():
        rows = rows.with_columns(user_text_expr().alias("text"))
    needed = _get_expected_columns(stage) | set(ID_COLUMNS)
    return rows.select(name for name in rows.collect_schema().names() if name in needed)


def _get_expected_columns(stage: str) -> set[str]:
    lists = [arguments.get("column_list", [arguments.get("column")]) for _, arguments in EXPECTATIONS[stage]]
    return {column for columns in lists for column in columns}


def _count_rows(frame: Table) -> int:
    return int(frame.lazy().select(pl.len()).collect(engine="streaming").item())


def validate_table(
    name: str, rows: pd.DataFrame, expectations: Sequence[Expectation], id_column: str | None = None
) -> dict[str, str | None]:
    """Evaluate expectations. Returns for each, by type and column, why it failed, or None if it is met.

    Raises:
        DistillError: an expectation could not be evaluated.
    """
    asset = _get_gx_context().data_sources.add_or_update_pandas("lake").add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": rows})
    result_format: dict[str, Any] = {"result_format": "SUMMARY"}
    if id_column is not None:
        result_format["unexpected_index_column_names"] = [id_column]
    outcomes: dict[str, str | None] = {}
    for result in batch.validate(build_suite(name, expectations), result_format=result_format).results:
        config = result.expectation_config
        if (result.exception_info or {}).get("raised_exception") or config is None:
            raise DistillError(f"Great Expectations could not check {name}: {result.exception_info}")
        key = f"{config.type} {config.kwargs.get('column', '')}".strip()
        outcomes[key] = None if result.success else _describe_failure(result.result, id_column)
    return outcomes


@lru_cache(maxsize=1)
def _get_gx_context() -> Any:
    """One context per process: creating it takes longer than a validation."""
    with pause_collector():
        import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    return context


def build_suite(name: str, expectations: Sequence[Expectation]) -> ExpectationSuite:
    """The expectations as an object of Great Expectations."""
    import great_expectations as gx
    import great_expectations.expectations as gxe

    return gx.ExpectationSuite(
        name=name, expectations=[getattr(gxe, kind)(**arguments) for kind, arguments in expectations]
    )


def _describe_failure(result: Any, id_column: str | None) -> str:
    """Some unexpected values with the ids of their rows; for a whole column, the observed value."""
    values = result.get("partial_unexpected_list")
    if values is None:
        return f"observed {result.get('observed_value')}"
    rows = result.get("partial_unexpected_index_list") or []
    ids = [row[id_column] for row in rows if id_column in row]
    text = f"{count_noun(result.get('unexpected_count', len(values)), 'row')}, such as {values[:5]}"
    return f"{text}; {id_column} {', '.join(str(value) for value in ids[:20])}"[:600] if ids else text[:300]
