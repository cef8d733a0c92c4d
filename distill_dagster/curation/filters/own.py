"""A user's own filter: one SQL expression in task.yaml, or a class from an installed package.

A task folder is not trusted. Its expression is parsed by DuckDB and has to be exactly one, over the columns of one
row: no second statement, no subquery, no table, no aggregate, no function whose result may change. It runs on a
connection of its own that can reach no file and no network, loads no extension and cannot be configured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib import metadata
from threading import local
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from distill_dagster.core.errors import DistillError
from distill_dagster.curation.filters.base import Filter, score_expr
from distill_dagster.curation.scores import SCORERS, Scorer
from distill_dagster.curation.task_view import TaskView
from distill_dagster.curation.text_columns import extract_answer_texts, extract_user_texts
from distill_dagster.tables.schemas import SCORES

if TYPE_CHECKING:
    import duckdb

FILTER_ENTRY_POINTS = "distill_dagster.filters"
FILTER_NAME_PATTERN = r"^[a-z][a-z0-9_]{0,40}$"
SQL_COLUMNS = {
    **dict.fromkeys(("prompt_id", "slice", "origin", "text", "answer", "answer_json", "reasoning"), pl.String),
    **dict.fromkeys(("reference", "target_label", "teacher"), pl.String),
    "words": pl.Int64,
    **dict.fromkeys(("agreement", "confidence", "teacher_agreement", "judge_score"), pl.Float64),
}
"""What an expression may name, beside every score: `answer` is the answer's words, `text` the user's turns."""
SQL_SCHEMA = pl.Schema({**SQL_COLUMNS, **SCORES.to_schema()})
# What an expression consists of; all other classes of DuckDB's parser look beyond the row, or are placeholders.
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
    """A DuckDB in memory that reaches nothing else and cannot be opened from within."""
    import duckdb

    return duckdb.connect(
        ":memory:",
        config={
            "enable_external_access": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "python_enable_replacements": False,  # a name in the SQL is never a variable of this program
            "memory_limit": "2GB",
            "max_temp_directory_size": "0GB",
            "lock_configuration": True,
        },
    )


_THREAD_LOCAL = local()


def _get_thread_connection() -> duckdb.DuckDBPyConnection:
    """One for each thread: making it takes longer than most expressions over a batch."""
    if not hasattr(_THREAD_LOCAL, "connection"):
        _THREAD_LOCAL.connection = open_locked_duckdb()
    connection: duckdb.DuckDBPyConnection = _THREAD_LOCAL.connection
    return connection


@cache
def _list_pure_functions() -> frozenset[str]:
    """Functions of one row that always give the same for the same."""
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
    """The columns that an expression names.

    Raises:
        ValueError: it is not one expression over the columns of a row that is true or false; the message says why.
    """
    import duckdb

    query = f"SELECT (\n{sql}\n) AS keep FROM seen"
    with open_locked_duckdb() as connection:
        connection.register("seen", pl.DataFrame(schema=SQL_SCHEMA).to_arrow())
        try:
            serialized = connection.execute("SELECT json_serialize_sql($1)", [query]).fetchall()[0][0]
        except duckdb.Error as error:
            raise ValueError(f"not an expression of DuckDB's SQL: {_get_first_line(error)}") from None
        tree = json.loads(serialized)
        if tree.get("error"):
            raise ValueError(f"not an expression of DuckDB's SQL: {tree.get('error_message', '')}".splitlines()[0])
        found = _check_expression(tree)
        try:
            result = connection.sql(query)
            kind, rows = str(result.types[0]), len(result.fetchall())
        except duckdb.Error as error:
            raise ValueError(f"DuckDB does not take it: {_get_first_line(error)}") from None
    if kind != "BOOLEAN" or rows:
        raise ValueError(f"the expression must be true or false for each row; it is of type {kind}")
    return found


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
            raise ValueError(f"an expression looks at one row alone: {str(kind).lower()} is not allowed")
        if kind == "FUNCTION":
            name = str(part["function_name"]).lower()
            if (
                part.get("schema")
                or part.get("catalog")
                or (name not in _list_pure_functions() and not part.get("is_operator"))
            ):
                raise ValueError(f"the function {name}() is unknown, looks at several rows, or may change its result")
        if kind == "COLUMN_REF":
            name = ".".join(part["column_names"]).lower()
            if name not in SQL_SCHEMA:  # also what looks like a column and is none, such as current_date
                raise ValueError(f"there is no column {name!r}; there are {', '.join(SQL_SCHEMA)}")
            names.add(name)
    return frozenset(names)


def _get_first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


class SqlFilter(Filter):
    """Keeps the rows for which a SQL expression is true; where it is false or null they are dropped."""

    called: str
    sql: str

    @property
    def label(self) -> str:
        return self.called

    @property
    def drop_reason(self) -> str:
        return self.called

    def shown(self) -> dict[str, Any]:
        return {"sql": self.sql}

    def scorers(self) -> list[Scorer]:
        return [one for one in SCORERS.values() if set(one.fields) & find_sql_columns(self.sql)]

    @property
    def _column(self) -> str:
        return f"own {self.called}"

    def prepared(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        schema = rows.collect_schema()
        return rows.map_batches(self._judged, schema={**schema, self._column: pl.Boolean()}, streamable=True)

    def _judged(self, rows: pl.DataFrame) -> pl.DataFrame:
        import duckdb

        named = find_sql_columns(self.sql)
        read = {
            "text": lambda: extract_user_texts(rows["messages"]),
            "answer": lambda: extract_answer_texts(rows["answer"]),
            "answer_json": lambda: rows["answer"],
        }
        seen = {
            name: read[name]()
            if name in read
            else rows[name]
            if name in SQL_COLUMNS
            else rows.select(score_expr(name)).to_series()
            for name in SQL_SCHEMA
            if name.lower() in named
        }
        frame = pl.DataFrame({"_row": pl.Series(range(rows.height), dtype=pl.Int64), **seen})
        connection = _get_thread_connection()
        connection.register("seen", frame.to_arrow())
        try:
            result = connection.sql(f"SELECT _row, (\n{self.sql}\n) AS keep FROM seen")
            keep = pl.DataFrame(result.to_arrow_table()).sort("_row")["keep"]
        except duckdb.Error as error:
            why = f"The filter {self.called} (curation.filters.own) failed: {_get_first_line(error)}"
            raise DistillError(why) from None
        finally:
            connection.unregister("seen")
        return rows.with_columns(keep.cast(pl.Boolean).fill_null(False).alias(self._column))

    def drops(self, about: TaskView) -> pl.Expr:
        return ~pl.col(self._column)

    def detail(self, about: TaskView) -> pl.Expr:
        return pl.lit(f"not: {self.sql}" if len(self.sql) <= 200 else f"not: {self.sql[:199]}…")


class CustomFilterSpec(BaseModel):
    """A filter of one's own: `name` with `sql`, or `use` with `settings`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=FILTER_NAME_PATTERN)] | None = Field(
        default=None, description="also the drop reason of its rows; small letters, digits and _"
    )
    sql: Annotated[str, Field(min_length=1, max_length=2000)] | None = Field(
        default=None, description="one expression of DuckDB's SQL that is true for the rows to keep"
    )
    use: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(
        default=None, description=f"a class of an installed package: an entry point in the group {FILTER_ENTRY_POINTS}"
    )
    settings: dict[str, Any] = Field(default={}, description="of the class")

    @field_validator("name", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        import re

        if isinstance(value, str) and not re.fullmatch(FILTER_NAME_PATTERN, value):
            raise ValueError(f"a name matches {FILTER_NAME_PATTERN}")
        return value

    @field_validator("sql")
    @classmethod
    def _expression(cls, value: str | None) -> str | None:
        if value is not None:
            find_sql_columns(value)
        return value

    @model_validator(mode="after")
    def _whole(self) -> CustomFilterSpec:
        if (self.sql is None) == (self.use is None):
            raise ValueError("a filter of one's own has either `sql` or `use`")
        if self.sql is not None and (self.name is None or self.settings):
            raise ValueError("a filter with `sql` wants a `name`, and has no `settings`")
        if self.use is not None:
            self.filter()
        return self

    def filter(self) -> Filter:
        """The filter itself.

        Raises:
            ValueError: no installed package has that class, or its settings are not what it takes.
        """
        if self.sql is not None:
            return SqlFilter(called=self.name or "", sql=self.sql)
        found = {one.name: one for one in metadata.entry_points(group=FILTER_ENTRY_POINTS)}
        if self.use not in found:
            raise ValueError(
                f"no installed package has a filter {self.use!r} (entry points of the group {FILTER_ENTRY_POINTS}: "
                f"{', '.join(sorted(found)) or 'none'})"
            )
        try:
            made = found[self.use].load()(**self.settings)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"settings.{field}: {first['msg']}") from None
        except Exception as error:
            raise ValueError(f"the filter {self.use!r} could not be loaded: {error}") from error
        if not isinstance(made, Filter):
            raise ValueError(f"{self.use!r} is no subclass of distill_dagster.curation.filters.base.Filter")
        return made

    def hash_fields(self) -> dict[str, Any]:
        """The settings and, for a class, the version of its package, for the hash of the curation settings."""
        fields = self.model_dump(mode="json", exclude_defaults=True)
        if self.use is not None:
            package = {one.name: one for one in metadata.entry_points(group=FILTER_ENTRY_POINTS)}[self.use].dist
            fields["version"] = package.version if package is not None else None
        return fields
