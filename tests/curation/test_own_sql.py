"""SQL of users: one expression over one row, on a DuckDB that reaches nothing (design: invariant 9)."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from distill_dagster.core.errors import DistillError
from distill_dagster.curation.filters import FilterSettings, select_filters
from distill_dagster.curation.filters.sql import find_sql_columns, open_locked_duckdb
from tests.curation.test_filters import ABOUT, candidate, cut

REFUSED = [
    "(SELECT count(*) FROM read_csv('{file}')) > 0",
    "EXISTS (SELECT 1 FROM '{file}')",
    "answer IN (SELECT content FROM read_text('{file}'))",
    "read_text('{file}') IS NOT NULL",
    "glob('{file}') IS NOT NULL",
    "true; ATTACH '{file}' AS x",
    "true) AS keep FROM seen; COPY (SELECT 1) TO '{out}'; SELECT (true",
    "true) AS keep FROM read_csv('{file}') --",
    "true) AS keep FROM seen, read_csv('{file}') AS (",
    "ATTACH '{file}'",
    "COPY (SELECT 1) TO '{out}'",
    "SET threads = 1",
    "INSTALL httpfs",
    "true;",
    "count(*) > 1",
    "row_number() OVER () > 1",
    "random() > 0.5",
    "current_date > DATE '2020-01-01'",
    "now() IS NULL",
    "getenv('HOME') = ''",
    "current_setting('threads') = '1'",
    "$1 = 2",
    "?",
    "COLUMNS(*) IS NULL",
    "unknown_column > 3",
    "rows IS NULL",
    "frame IS NULL",
    "length(answer)",
    "NULL",
    "list_transform([1], lambda x: x + 1) IS NULL",
    "",
    "--",
]


@pytest.mark.parametrize("sql", REFUSED)
def test_a_forbidden_expression_is_rejected_when_it_is_read(sql: str, tmp_path: Path) -> None:
    file, out = tmp_path / "secret.csv", tmp_path / "out.csv"
    file.write_text("a\n1\n")
    with pytest.raises(ValueError, match=r"\S"):
        find_sql_columns(sql.format(file=file, out=out))
    assert sorted(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_csv('{file}')",
        "SELECT * FROM '{file}'",
        "SELECT * FROM read_text('{file}')",
        "SELECT * FROM glob('{folder}/*')",
        "ATTACH '{folder}/x.db'",
        "COPY (SELECT 1) TO '{folder}/out.csv'",
        "EXPORT DATABASE '{folder}/all'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SET memory_limit = '100GB'",
        "SELECT * FROM a_frame_of_python",
    ],
)
def test_the_connection_itself_is_locked(statement: str, tmp_path: Path) -> None:
    import polars as pl

    a_frame_of_python = pl.DataFrame({"a": [1]}).to_arrow()
    file = tmp_path / "secret.csv"
    file.write_text("a\n1\n")
    with open_locked_duckdb() as connection, pytest.raises(duckdb.Error):
        connection.execute(statement.format(file=file, folder=tmp_path)).fetchall()
    assert sorted(tmp_path.iterdir()) == [file]
    assert a_frame_of_python.num_rows == 1


def test_an_expression_keeps_rows_for_which_it_is_true() -> None:
    rows = [candidate(n, "Where is it", answer, None) for n, answer in enumerate(["no", "yes it is", 12, {"a": [1]}])]
    rows.append(candidate(9, "Where is it", "no reference", None, reference='"x"'))

    def kept(sql: str) -> set[str]:
        found = cut(rows, {"own": [{"name": "mine", "sql": sql}]})
        assert found.count_reasons()["mine"] + found.count_reasons()["duplicate"] == found.rejected.height
        # The same text: of kept rows but one are duplicates, which tells as well that they were kept till then.
        here = found.rejected.filter(found.rejected["drop_reason"] == "duplicate")
        return {*found.dataset["answer"], *here["answer"]}

    assert kept("length(answer) > 2") == {'"yes it is"', '{"a":[1]}', '"no reference"'}
    assert kept("answer = 'no'") == {'"no"'}
    assert kept("answer_json LIKE '{%'") == {'{"a":[1]}'}
    assert kept("reference IS NOT NULL") == {'"no reference"'}
    assert kept("reference = '\"x\"'") == {'"no reference"'}, "where it is null the row is dropped"
    assert kept("answer_words >= 2 AND words = 3") == {'"yes it is"', '"no reference"', '{"a":[1]}'}
    assert kept("text LIKE 'Where%' AND teacher = 't' AND confidence > 0.4 -- all") == {row["answer"] for row in rows}


def test_the_scores_of_an_expression_are_computed() -> None:
    [rule] = select_filters(
        FilterSettings.model_validate({"own": [{"name": "a", "sql": "echo < 0.5 or answer_words > 3"}]}), ABOUT
    )[-1:]
    assert [one.name for one in rule.list_scorers()] == ["lengths", "echo"]


def test_an_expression_that_fails_over_a_row_names_itself() -> None:
    with pytest.raises(DistillError, match=r"filter mine \(curation\.filters\.own\) failed.*Could not convert"):
        cut([candidate(0, "a text", "word", None)], {"own": [{"name": "mine", "sql": "CAST(answer AS INTEGER) > 3"}]})
