"""A filter by one SQL expression of task.yaml, on a locked DuckDB.

A task folder is not trusted. DuckDB parses the expression, which has to be exactly one, over the columns of one row. No
second statement, subquery, table, aggregate or function whose result may change is allowed. The connection reaches no
file and no network, loads no extension and cannot be configured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache, lru_cache
from threading import local
from typing import TYPE_CHECKING, Any

import polars as pl
from pydantic import Field

from distill_dagster.core.errors import DistillError
from distill_dagster.curation.filters.base import Filter, score_expr
from distill_dagster.curation.scores import SCORERS, Scorer
from distill_dagster.curation.task_view import TaskView
from distill_dagster.curation.text_columns import extract_answer_texts, extract_user_texts
from distill_dagster.tables.schemas import SCORES

if TYPE_CHECKING:
    import duckdb

SQL_COLUMNS = {
    **dict.fromkeys(("prompt_id", "slice", "origin", "text", "answer", "answer_json", "reasoning"), pl.String),
    **dict.fromkeys(("reference", "target_label", "teacher"), pl.String),
    "words": pl.Int64,
    **dict.fromkeys(("agreement", "confidence", "teacher_agreement", "judge_score"), pl.Float64),
}
"""The columns of an expression, next to every score. `answer` is the answer as text, `text` the user's turns."""
SQL_SCHEMA = pl.Schema({**SQL_COLUMNS, **SCORES.to_schema()})
# The parts of an expression. All other classes of DuckDB's parser look beyond the row, or are placeholders.
_ALLOWED_CLASSES = frozenset(
    (
        "BETWEEN",
        "CASE",
        "CAST",
        "COLLATE",
        "COLUMN_REF",
        "COMPARISON",
        "CONJUNCTION",
        "CONSTANT",
        "FUNCTION",
        "OPERATOR",
    )
) | {"TYPE"}
_FORBIDDEN_CLAUSES = ("where_clause", "having", "qualify", "sample", "group_expressions", "modifiers")


def open_locked_duckdb() -> duckdb.DuckDBPyConnection:
    """A DuckDB in memory without access to files, network and extensions. SQL cannot unlock it."""
    import duckdb

    return duckdb.connect(
        ":memory:",
        config={
            "enable_external_access": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "python_enable_replacements": False,  # a name in the SQL is never a Python variable
            "memory_limit": "2GB",
            "max_temp_directory_size": "0GB",
            "lock_configuration": True,
        },
    )


_THREAD_LOCAL = local()


def _get_thread_connection() -> duckdb.DuckDBPyConnection:
    """One per thread: to open one takes longer than most expressions over a batch."""
    if not hasattr(_THREAD_LOCAL, "connection"):
        _THREAD_LOCAL.connection = open_locked_duckdb()
    connection: duckdb.DuckDBPyConnection = _THREAD_LOCAL.connection
    return connection


@cache
def _list_pure_functions() -> frozenset[str]:
    """Functions of one row that always return the same result for the same arguments."""
    query = """
        SELECT function_name FROM duckdb_functions() GROUP BY 1
        HAVING bool_and(function_type = 'scalar' AND coalesce(stability, 'CONSISTENT') = 'CONSISTENT')
    """
    with open_locked_duckdb() as connection:
        return frozenset(name for (name,) in connection.sql(query).fetchall())


def _iterate_nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from _iterate_nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from _iterate_nodes(value)


@lru_cache(maxsize=256)
def find_sql_columns(sql: str) -> frozenset[str]:
    """The columns that an expression reads.

    Raises:
        ValueError: it is not one expression over the columns of a row, or not true or false. The message says why.
    """
    import duckdb

    query = f"SELECT (\n{sql}\n) AS keep FROM seen"
    with open_locked_duckdb() as connection:
        connection.register("seen", pl.DataFrame(schema=SQL_SCHEMA).to_arrow())
        try:
            serialized = connection.execute("SELECT json_serialize_sql($1)", [query]).fetchall()[0][0]
        except duckdb.Error as error:
            raise ValueError(f"not an expression in DuckDB's SQL: {_get_first_line(error)}") from None
        tree = json.loads(serialized)
        if tree.get("error"):
            raise ValueError(f"not an expression in DuckDB's SQL: {tree.get('error_message', '')}".splitlines()[0])
        columns = _check_expression(tree)
        try:
            result = connection.sql(query)
            kind, rows = str(result.types[0]), len(result.fetchall())
        except duckdb.Error as error:
            raise ValueError(f"DuckDB rejects the expression: {_get_first_line(error)}") from None
    if kind != "BOOLEAN" or rows:
        raise ValueError(f"the expression must be true or false for each row; it is of type {kind}")
    return columns


def _check_expression(tree: dict[str, Any]) -> frozenset[str]:
    statements = tree["statements"]
    node = statements[0]["node"] if len(statements) == 1 else {}
    table = node.get("from_table", {})
    plain = table.get("type") == "BASE_TABLE" and table.get("table_name") == "seen" and not table.get("schema_name")
    more = any(node.get(name) for name in _FORBIDDEN_CLAUSES) or node.get("cte_map", {}).get("map")
    if node.get("type") != "SELECT_NODE" or not plain or more or len(node["select_list"]) != 1:
        raise ValueError("write one expression and nothing else: no second statement, no FROM, no WHERE")
    names: set[str] = set()
    for part in _iterate_nodes(node["select_list"]):
        kind = part.get("class")
        if kind is None:
            continue
        if kind not in _ALLOWED_CLASSES:
            raise ValueError(f"an expression reads one row: {str(kind).lower()} is not allowed")
        if kind == "FUNCTION":
            name = str(part["function_name"]).lower()
            if (
                part.get("schema")
                or part.get("catalog")
                or (name not in _list_pure_functions() and not part.get("is_operator"))
            ):
                raise ValueError(f"the function {name}() is unknown, reads several rows, or may change its result")
        if kind == "COLUMN_REF":
            name = ".".join(part["column_names"]).lower()
            if name not in SQL_SCHEMA:  # also a name that only looks like a column, such as current_date
                raise ValueError(f"there is no column {name!r}; the columns are {', '.join(SQL_SCHEMA)}")
            names.add(name)
    return frozenset(names)


def _get_first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


class SqlFilter(Filter):
    """Keeps the rows for which a SQL expression is true. Rows for which it is false or null are dropped."""

    label: str = Field(exclude=True, description="its name, which is also the drop reason")
    sql: str

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.label

    @property
    def reason(self) -> str:  # type: ignore[override]
        return self.label

    def list_scorers(self) -> list[Scorer]:
        return [scorer for scorer in SCORERS.values() if set(scorer.fields) & find_sql_columns(self.sql)]

    def drop_expr(self, task: TaskView) -> pl.Expr:
        names = [name for name in SQL_SCHEMA if name.lower() in find_sql_columns(self.sql)]
        sources = {"text": pl.col("messages"), "answer": pl.col("answer"), "answer_json": pl.col("answer")}
        columns = [
            sources.get(name, pl.col(name) if name in SQL_COLUMNS else score_expr(name)).alias(name) for name in names
        ]
        return pl.struct(pl.col("prompt_id").alias("_row"), *columns).map_batches(
            self._evaluate, return_dtype=pl.Boolean, is_elementwise=True
        )

    def _evaluate(self, rows: pl.Series) -> pl.Series:
        """Which rows to drop; `rows` has the columns that the expression reads."""
        import duckdb

        frame = rows.struct.unnest().with_columns(pl.Series("_row", range(len(rows)), dtype=pl.Int64))
        if "text" in frame.columns:
            frame = frame.with_columns(extract_user_texts(frame["text"]).alias("text"))
        if "answer" in frame.columns:
            frame = frame.with_columns(extract_answer_texts(frame["answer"]).alias("answer"))
        connection = _get_thread_connection()
        connection.register("seen", frame.to_arrow())
        try:
            result = connection.sql(f"SELECT _row, (\n{self.sql}\n) AS keep FROM seen")
            keep = pl.DataFrame(result.to_arrow_table()).sort("_row")["keep"]
        except duckdb.Error as error:
            why = f"The filter {self.label} (curation.filters.own) failed: {_get_first_line(error)}"
            raise DistillError(why) from None
        finally:
            connection.unregister("seen")
        return ~keep.cast(pl.Boolean).fill_null(False)

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return pl.lit(f"not: {self.sql}" if len(self.sql) <= 200 else f"not: {self.sql[:199]}…")
