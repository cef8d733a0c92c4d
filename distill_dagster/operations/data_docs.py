"""Build Great Expectations' Data Docs: a site with every table of a task, its expectations and their results.

The pages need no network.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from distill_dagster.core.files import get_temporary_path, swap_folder
from distill_dagster.core.progress import report_progress
from distill_dagster.operations.data_docs_pages import ValidatedTable, write_pages
from distill_dagster.tables.lake import Lake, format_artifact_name
from distill_dagster.tables.validation import EXPECTATIONS, build_suite, select_expected_columns

_SITE_NAME = "data_docs"


def build_data_docs(lake: Lake, task: str, tables: Iterable[tuple[str, str | None]], target: Path) -> int:
    """Validate every existing table and write the site. Returns the number of tables.

    It replaces the whole site. If no table exists, it writes nothing.

    Args:
        tables: stages and partitions. Those without expectations or without a table are skipped.
        target: the folder of the site; its start page is `index.html`.
    """
    import great_expectations as gx
    from great_expectations.checkpoint import UpdateDataDocsAction

    existing = [
        (stage, key) for stage, key in tables if stage in EXPECTATIONS and lake.get_path(task, stage, key).is_file()
    ]
    if not existing:
        return 0
    temporary = get_temporary_path(target)
    shutil.rmtree(temporary, ignore_errors=True)
    # The library warns that it does not save the context. That is intended.
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    for name in list(context.get_site_names()):
        context.delete_data_docs_site(name)
    backend = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(temporary)}
    site = {"class_name": "SiteBuilder", "store_backend": backend, "show_how_to_buttons": False}
    context.add_data_docs_site(_SITE_NAME, site | {"site_index_builder": {"class_name": "DefaultSiteIndexBuilder"}})
    validated = list[ValidatedTable]()
    source = context.data_sources.add_pandas(task)
    try:
        for number, (stage, key) in enumerate(existing):
            name = format_artifact_name(stage, key)
            report_progress("validating tables", number, len(existing))
            batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
            suite = context.suites.add(build_suite(name, EXPECTATIONS[stage]))
            definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
            actions = [UpdateDataDocsAction(name="docs", site_names=[_SITE_NAME])]
            checkpoint = gx.Checkpoint(name=name, validation_definitions=[definition], actions=actions)
            rows = (
                select_expected_columns(stage, pl.scan_parquet(lake.get_path(task, stage, key))).collect().to_pandas()
            )
            result = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": rows})
            [counts] = [found.statistics for found in result.run_results.values()]
            met, expected = counts["successful_expectations"], counts["evaluated_expectations"]
            validated.append(ValidatedTable(name, len(rows), expected, met))
        context.build_data_docs(site_names=[_SITE_NAME])
        write_pages(temporary, task, validated)
        target.parent.mkdir(parents=True, exist_ok=True)
        swap_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(existing)
