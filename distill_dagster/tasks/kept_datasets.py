"""Earlier datasets that a person kept in the task folder, so that students can replay their rows."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import polars as pl

from distill_dagster.config import SLICE_KEY_PATTERN
from distill_dagster.core.errors import DistillError, InputError, Problem
from distill_dagster.core.files import make_symlink_problem
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.parquet import write_parquet
from distill_dagster.tables.schemas import DATASET

KEPT_FOLDER = "datasets"
"""The folder in the task folder with one Parquet file per kept dataset."""


def get_kept_path(folder: Path, name: str) -> Path:
    """The file of a kept dataset in a task folder."""
    return folder / KEPT_FOLDER / f"{name}.parquet"


def write_kept_dataset(folder: Path, name: str, dataset: pl.DataFrame) -> Path:
    """Keep a dataset (schema DATASET) in a task folder under a name.

    Raises:
        DistillError: the name is not allowed, or a dataset is kept under it.
    """
    if not SLICE_KEY_PATTERN.fullmatch(name):
        raise DistillError(f"{name!r} cannot be the name of a dataset. It must match {SLICE_KEY_PATTERN.pattern}.")
    path = get_kept_path(folder, name)
    if path.exists() or path.is_symlink():
        raise DistillError(f"{path} exists. A kept dataset is never replaced: choose another name, or remove the file.")
    if path.parent.is_symlink():
        raise InputError([make_symlink_problem(path.parent)])
    write_parquet(dataset, path, {})
    return path


def read_kept_dataset(folder: Path, name: str) -> pl.DataFrame:
    """A kept dataset of a task folder, with the schema DATASET.

    Raises:
        InputError: there is none of this name, or its file is not a dataset.
    """
    path = get_kept_path(folder, name)
    for place in (path, path.parent):
        if place.is_symlink():
            raise InputError([make_symlink_problem(place)])
    if not path.is_file():
        kept = ", ".join(list_kept_names(folder)) or "none"
        remedy = f"Kept: {kept}. `distill keep {folder.name} {name}` keeps the dataset of today under this name."
        raise InputError([Problem(path, "this dataset was not kept.", remedy)])
    return _read_checked(path, path.stat().st_mtime_ns)[0]


def compute_kept_version(folder: Path, name: str) -> str:
    """The data version of a kept dataset. It is that of its rows, not of its file.

    Raises:
        InputError: as `read_kept_dataset`.
    """
    read_kept_dataset(folder, name)
    path = get_kept_path(folder, name)
    return _read_checked(path, path.stat().st_mtime_ns)[1]


def list_kept_names(folder: Path) -> list[str]:
    """The names of the kept datasets of a task folder, sorted."""
    return sorted(path.stem for path in (folder / KEPT_FOLDER).glob("*.parquet"))


@lru_cache(maxsize=4)
def _read_checked(path: Path, changed_ns: int) -> tuple[pl.DataFrame, str]:
    """The rows of a file and their data version, read once as long as the file does not change."""
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        problem = Problem(path, f"the file is not a Parquet file ({error}).", "Remove it, and keep a dataset again.")
        raise InputError([problem]) from None
    if dict(frame.schema) != dict(DATASET):
        remedy = "Only a file that `distill keep` wrote with this version can be replayed. Remove it."
        raise InputError([Problem(path, "the file does not have the columns of a dataset.", remedy)])
    return frame, compute_data_version(frame)
