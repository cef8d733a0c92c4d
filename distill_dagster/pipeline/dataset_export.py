"""Write the dataset of a task for other programs, with its card."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import polars as pl

from distill_dagster.core.errors import DistillError
from distill_dagster.curation.filters import select_task_filters
from distill_dagster.pipeline.model_terms import list_model_terms
from distill_dagster.pipeline.stages.dataset import list_filters
from distill_dagster.release.cards import CARD_FILE, DatasetCardFacts, DatasetFacts, build_dataset_card
from distill_dagster.release.dataset_formats import DatasetFormat, write_dataset
from distill_dagster.tables.lake import Lake
from distill_dagster.tasks import TaskFolder

if TYPE_CHECKING:
    from huggingface_hub import DatasetCard


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
    """Write the dataset and its card into a new or an empty folder, all or nothing. Returns the files.

    Raises:
        DistillError: there is a file or a folder with files in the place of `target`.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise DistillError(f"{target} is not an empty folder. Choose another one with --out, or delete it.")
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        unfinished = Path(temporary) / target.name
        names = [path.name for path in write_dataset(folder.task, dataset, format, unfinished)]
        _build_card(folder, lake, dataset).save(unfinished / CARD_FILE)
        if target.is_dir():  # it may be the working directory of a shell, so it stays the same folder
            for path in unfinished.iterdir():
                path.replace(target / path.name)
        else:
            unfinished.replace(target)
    return [target / name for name in (*names, CARD_FILE)]


def _build_card(folder: TaskFolder, lake: Lake, dataset: pl.DataFrame) -> DatasetCard:
    facts = build_dataset_facts(folder, lake, dataset)
    terms = list_model_terms(folder.task)
    return build_dataset_card(DatasetCardFacts(folder.task, folder.name, facts, terms, has_data=True))
