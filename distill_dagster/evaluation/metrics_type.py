"""The metrics table at the pandas boundary: a dagster-pandas type, used as a plain check.

dagster-pandas is imported late and only here: the one place of the engine that knows it, because its column
constraints are what validates the table that people and scripts read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

SHARE_COLUMNS = ("accuracy", "low", "high")
"""The kind's main figure and its interval; `macro_f1` is its second one, which not every kind has."""
NULLABLE_COLUMNS = ("p50_ms", "p95_ms", "parameters", "bytes", "cost_usd_per_1k")


def check_metrics_table(frame: pd.DataFrame) -> str | None:
    """What is wrong with a metrics table, or None.

    The table has one row per system: the score with its interval and the second figure as shares of 1, latencies in
    milliseconds, size in bytes, cost in US dollars per 1,000 requests; nullable where unknown.
    """
    import warnings

    # Pinned, and not for a user to act on.
    warnings.filterwarnings("ignore", message=".*currently in beta.*")
    from dagster_pandas import PandasColumn, create_dagster_pandas_dataframe_type

    share = [PandasColumn.numeric_column(name, min_value=0.0, max_value=1.0) for name in SHARE_COLUMNS]
    share.append(PandasColumn.numeric_column("macro_f1", min_value=0.0, max_value=1.0, ignore_missing_vals=True))
    known = [PandasColumn.numeric_column(name, min_value=0.0, ignore_missing_vals=True) for name in NULLABLE_COLUMNS]
    metrics_type = create_dagster_pandas_dataframe_type(
        "MetricsTable", columns=[PandasColumn.string_column("system", unique=True, non_nullable=True), *share, *known]
    )
    frame = frame.astype(dict.fromkeys(NULLABLE_COLUMNS, "float64"))
    result = metrics_type.type_check(None, frame)
    return None if result.success else str(result.description)
