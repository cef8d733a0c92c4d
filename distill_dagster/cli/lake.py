"""`distill clean-lake`: remove old versions from an object store."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from distill_dagster.cli.console import out, print_json, show_problems
from distill_dagster.cli.options import JsonOption
from distill_dagster.cli.run_display import show_progress
from distill_dagster.core.errors import DistillError
from distill_dagster.core.formatting import count_noun, format_bytes
from distill_dagster.core.paths import Home

DEFAULT_DAYS = 7


def clean_lake(
    older_than: Annotated[
        int, typer.Option("--older-than-days", min=0, help="Keep what was written in these days, and in the last hour.")
    ] = DEFAULT_DAYS,
    as_json: JsonOption = False,
) -> None:
    """Remove replaced versions from a lake in an object store. What a pointer names always stays."""
    with show_problems():
        from distill_dagster.pipeline.open_lake import open_lake
        from distill_dagster.tables.object_lake.garbage import remove_garbage
        from distill_dagster.tables.object_lake.lake import ObjectLake

        lake = open_lake(Home.from_env())
        if not isinstance(lake, ObjectLake):
            raise DistillError("A lake in a folder keeps no replaced versions: there is nothing to remove.")
        with show_progress():
            found = remove_garbage(lake.bucket, lake.pointers, timedelta(days=older_than))
        removed = count_noun(found.objects, "object")
        out.print(f"Removed {removed}, {format_bytes(found.bytes)}. In use or younger: {found.kept_objects:,} objects.")
        print_json(
            {"removed": found.objects, "removed_bytes": found.bytes, "kept": found.kept_objects}
            | {"kept_bytes": found.kept_bytes}
        )
