"""Check the metrics table with the column constraints of a dagster-pandas type.

Only this module imports dagster-pandas, and only when the check runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

SHARE_COLUMNS = ("score", "low", "high")
"""The kind's main figure and its interval. `second_score` may be missing: not every kind has a second figure."""
NULLABLE_COLUMNS = ("p50_ms", "p95_ms", "parameters", "bytes", "cost_usd_per_1k")


def check_metrics_table(frame: pd.DataFrame) -> str | None:
    """Return what is wrong with a metrics table, or None.

    The table has one row per system. Scores are shares of 1, latencies are in milliseconds, sizes in bytes and costs in
    US dollars per 1,000 requests. Unknown latencies, sizes and costs are null.
    """
    import warnings

    # The version is pinned, so this warning does not concern users.
    warnings.filterwarnings("ignore", message=".*currently in beta.*")
    from dagster_pandas import PandasColumn, create_dagster_pandas_dataframe_type

    share = [PandasColumn.numeric_column(name, min_value=0.0, max_value=1.0) for name in SHARE_COLUMNS]
    share.append(PandasColumn.numeric_column("second_score", min_value=0.0, max_value=1.0, ignore_missing_vals=True))
    known = [PandasColumn.numeric_column(name, min_value=0.0, ignore_missing_vals=True) for name in NULLABLE_COLUMNS]
    metrics_type = create_dagster_pandas_dataframe_type(
        "MetricsTable", columns=[PandasColumn.string_column("system", unique=True, non_nullable=True), *share, *known]
    )
    frame = frame.astype(dict.fromkeys(NULLABLE_COLUMNS, "float64"))
    result = metrics_type.type_check(None, frame)
    return None if result.success else str(result.description)
