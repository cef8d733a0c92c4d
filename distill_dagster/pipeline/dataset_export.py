"""Write the dataset of a task for other programs, with its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from distill_dagster.curation.filters import select_task_filters
from distill_dagster.pipeline.model_terms import list_model_terms
from distill_dagster.pipeline.stages.dataset import list_filters
from distill_dagster.release.cards import CARD_FILE, DatasetCardFacts, DatasetFacts, build_dataset_card
from distill_dagster.release.dataset_formats import DatasetFormat, write_dataset
from distill_dagster.tables.lake import Lake
from distill_dagster.tasks import TaskFolder


def build_dataset_facts(folder: TaskFolder, lake: Lake, dataset: pl.DataFrame) -> DatasetFacts:
    """The counts of the dataset, with the filters of the task and what each dropped."""
    record = lake.read_record(folder.name, "filtered_dataset")
    extra: dict[str, Any] = record.extra if record is not None else {}
    reasons = extra.get("reasons", {})
    return DatasetFacts.from_table(
        dataset,
        record.data_version if record is not None else "",
        folder.task.has_labels,
        reasons,
        extra.get("candidates"),
        list_filters(select_task_filters(folder.task), reasons),
    )


def export_dataset(
    folder: TaskFolder, lake: Lake, dataset: pl.DataFrame, format: DatasetFormat, target: Path
) -> list[Path]:
    """Write the dataset and its card into a folder. Returns the files."""
    files = write_dataset(folder.task, dataset, format, target)
    facts = build_dataset_facts(folder, lake, dataset)
    card = build_dataset_card(
        DatasetCardFacts(folder.task, folder.name, facts, list_model_terms(folder.task), has_data=True)
    )
    card.save(target / CARD_FILE)
    return [*files, target / CARD_FILE]
