"""Great Expectations over each table: what a valid table is, and checking it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import polars as pl

from distill_dagster.core.checks import CheckResult
from distill_dagster.core.errors import DistillError

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations import ExpectationSuite


Table = pl.DataFrame | pl.LazyFrame


Expectation = tuple[str, dict[str, Any]]


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
    "predictions": [
        *_expect_unique("system", "split", "item_id"),
        _expect_share("confidence"),
        _expect_one_of("split", ["golden", "dev", "validation"]),
    ],
}


def _get_expected_columns(stage: str) -> set[str]:
    """What the expectations of a stage look at."""
    named = [arguments.get("column_list", [arguments.get("column")]) for _, arguments in EXPECTATIONS[stage]]
    return {column for columns in named for column in columns}


@lru_cache(maxsize=1)
def _get_gx_context() -> Any:
    """One for the process: making it costs more than a validation."""
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    return context


def check_table(stage: str, frame: Table) -> CheckResult:
    """Great Expectations over one table; what failed names some of the values and the ids of their rows.

    Of a long table it is given the rows that may fail, and the first ones of the rest.

    Raises:
        DistillError: an expectation could not be evaluated (which is not the same as failing).
    """
    ids = next((name for name in ID_COLUMNS if name in frame.collect_schema()), None)
    suspects = [_FAILURE_EXPRS.get(kind, lambda _: pl.lit(True))(arguments) for kind, arguments in EXPECTATIONS[stage]]
    first = pl.int_range(pl.len()) < ALWAYS_CHECKED_ROWS
    rows = select_expected_columns(stage, frame).filter(pl.any_horizontal(first, *suspects).fill_null(False))
    found = validate_table(stage, rows.collect(engine="streaming").to_pandas(), EXPECTATIONS[stage], ids)
    failed = {what: why for what, why in found.items() if why is not None}
    return CheckResult(
        "valid_table", not failed, found=failed | {"expectations": len(found), "rows": _count_rows(frame)}
    )


ALWAYS_CHECKED_ROWS = 1_000
"""Rows of a table that Great Expectations looks at in any case: it takes seconds for a million."""


_FAILURE_EXPRS: dict[str, Callable[[dict[str, Any]], pl.Expr]] = {
    "ExpectColumnValuesToNotBeNull": lambda asked: pl.col(asked["column"]).is_null(),
    "ExpectColumnValuesToBeUnique": lambda asked: pl.col(asked["column"]).is_duplicated(),
    "ExpectCompoundColumnsToBeUnique": lambda asked: pl.struct(asked["column_list"]).is_duplicated(),
    "ExpectColumnValuesToBeInSet": lambda asked: ~pl.col(asked["column"]).is_in(asked["value_set"]),
    "ExpectColumnValuesToBeBetween": lambda asked: ~_between_expr(pl.col(asked["column"]), asked),
    "ExpectColumnValueLengthsToBeBetween": lambda asked: ~_between_expr(pl.col(asked["column"]).str.len_chars(), asked),
}
"""By kind of expectation, true for every row that may fail it; of another kind that is the whole table."""


def _between_expr(value: pl.Expr, asked: dict[str, Any]) -> pl.Expr:
    return (value >= asked["min_value"]) & (value <= asked.get("max_value", float("inf")))


def select_expected_columns(stage: str, frame: Table) -> pl.LazyFrame:
    """What the expectations of a stage look at, and the ids; of messages the user turns, as `text`."""
    plain = frame.lazy()
    if "messages" in plain.collect_schema():
        from distill_dagster.tables.messages import user_text_expr

        plain = plain.with_columns(user_text_expr().alias("text"))
    names = plain.collect_schema().names()
    wanted = _get_expected_columns(stage) | set(ID_COLUMNS)
    return plain.select(name for name in names if name in wanted)  # the others would only be copied


def _count_rows(frame: Table) -> int:
    return int(frame.lazy().select(pl.len()).collect(engine="streaming").item())


ID_COLUMNS = ("prompt_id", "item_id", "id")
"""The columns by which a failing row is named, the first one that a table has."""


def validate_table(
    name: str, rows: pd.DataFrame, expectations: Sequence[Expectation], ids: str | None = None
) -> dict[str, str | None]:
    """Every expectation by its type and column, with what failed it, or None where it is met.

    Raises:
        DistillError: an expectation could not be evaluated.
    """
    batch = _get_gx_context().data_sources.add_or_update_pandas("lake").add_dataframe_asset(name)
    definition = batch.add_batch_definition_whole_dataframe("all")
    suite = build_suite(name, expectations)
    wanted: dict[str, Any] = {"result_format": "SUMMARY"}
    if ids is not None:
        wanted["unexpected_index_column_names"] = [ids]
    result = definition.get_batch({"dataframe": rows}).validate(suite, result_format=wanted)
    found: dict[str, str | None] = {}
    for one in result.results:
        if (one.exception_info or {}).get("raised_exception") or one.expectation_config is None:
            raise DistillError(f"Great Expectations could not check {name}: {one.exception_info}")
        column = one.expectation_config.kwargs.get("column", "")
        found[f"{one.expectation_config.type} {column}".strip()] = (
            None if one.success else _describe_failure(one.result, ids)
        )
    return found


def build_suite(name: str, expectations: Sequence[Expectation]) -> ExpectationSuite:
    import great_expectations as gx
    import great_expectations.expectations as gxe

    return gx.ExpectationSuite(
        name=name, expectations=[getattr(gxe, kind)(**arguments) for kind, arguments in expectations]
    )


def _describe_failure(result: Any, ids: str | None) -> str:
    """Some of the values that were not expected, with the ids of their rows; of a whole column, what was observed."""
    values = result.get("partial_unexpected_list")
    if values is None:
        return f"observed {result.get('observed_value')}"
    rows = [row[ids] for row in result.get("partial_unexpected_index_list") or [] if ids in row]
    shown = f"{result.get('unexpected_count', len(values))} rows, such as {values[:5]}"
    return f"{shown}; {ids} {', '.join(str(row) for row in rows[:20])}"[:600] if rows else shown[:300]
