"""`distill schema`: print the JSON Schema of the files that people write."""

from __future__ import annotations

from typing import Annotated

import typer

from distill_dagster.pipeline.task_schema import SchemaFile, render_file_schema


def schema(
    file: Annotated[
        SchemaFile,
        typer.Argument(help="task: task.yaml; slice: a file in slices/; row: one line of a JSONL file."),
    ] = "task",
) -> None:
    """Print a JSON Schema, with which an editor completes fields and marks mistakes. Runs nothing.

    For example `distill schema > task.schema.json`. docs/task-yaml.md shows how to use it, and lists all fields.
    """
    typer.echo(render_file_schema(file), nl=False)
