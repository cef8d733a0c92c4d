"""`distill schema` prints what an editor reads, and nothing else."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from distill_dagster.cli import app
from distill_dagster.pipeline.task_schema import SchemaFile, render_file_schema


@pytest.mark.parametrize("arguments", [[], ["task"], ["slice"], ["row"]])
def test_a_schema_is_printed(arguments: list[SchemaFile]) -> None:
    shown = CliRunner().invoke(app, ["schema", *arguments])
    assert shown.exit_code == 0
    assert shown.stderr == ""
    schema = json.loads(shown.stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    kind: SchemaFile = arguments[0] if arguments else "task"
    assert shown.stdout == render_file_schema(kind)
    assert {"task": "kind", "slice": "seeds", "row": "label"}[kind] in schema["properties"]


def test_an_unknown_file_is_refused() -> None:
    shown = CliRunner().invoke(app, ["schema", "golden"])
    assert shown.exit_code == 2
    assert "golden" in shown.stderr
